"""A process that promises calls until it is killed: prints each id once the ledger says that it is on disk."""

import sys
import threading
from pathlib import Path

from ledger_builders import a_ledger

from edged.core import DayMark, Reservation


def main() -> None:
    ledger = a_ledger(Path(sys.argv[1]))
    mark = DayMark(number=1, date=1, open_s=0.0, wall_s=0.0)
    for number in range(100_000):
        promise = Reservation(
            id=f"p{number}", request_id="r", upstream="u", model="m", route="auto", tenant="", amount_uusd=1
        )
        said = threading.Event()
        ledger.promise(promise, mark, lambda kept, said=said: said.set() if kept else None)
        said.wait(10)
        sys.stdout.write(f"{promise.id}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
