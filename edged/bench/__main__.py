"""``scripts/bench SUBCOMMAND``."""

import argparse
import signal
import sys
from collections.abc import Sequence

from edged.bench import compare, engine, proxy, serve
from edged.bench.client import BenchError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand: 0, 1 where a request or the measurement failed, 2 for a wrong command line."""
    parser = argparse.ArgumentParser(
        prog="bench", description="Load on OpenAI-compatible servers, and what it felt like."
    )
    subparsers = parser.add_subparsers(required=True, metavar="SUBCOMMAND")
    for subcommand in (serve, compare, engine, proxy):
        subcommand.add_parser(subparsers)
    args = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored
    signal.signal(signal.SIGTERM, _stop)
    try:
        return int(args.func(args))
    except BenchError as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _stop(*_: object) -> None:
    """End as Ctrl-C does, which asyncio turns into an orderly end: the servers that were started are ended too."""
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
