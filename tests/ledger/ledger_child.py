"""A process that writes to a ledger until it is killed: prints the last acknowledged number after every flush."""

import sys
from pathlib import Path

from ledger_builders import a_ledger, a_record


def main() -> None:
    path, round_name = Path(sys.argv[1]), sys.argv[2]
    ledger = a_ledger(path)
    for number in range(1_000_000):
        ledger.append(a_record(f"{round_name}-{number:06}"))
        if number % 25 == 24 and ledger.flush(10):
            sys.stdout.write(f"{number}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
