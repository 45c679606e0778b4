"""``python -m edged.chaos``: a storm, and 0 violations."""

import argparse
import asyncio
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edged.catalogue import State, Store, find, load
from edged.chaos import report
from edged.chaos.run import Options, run
from edged.errors import CatalogueError

STARTER = "smollm2-135m-instruct"
_MAX_SECONDS = 86_400


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: 0 without a violation, 1 with one, 2 where the storm could not begin."""
    args = _parser().parse_args(arguments)
    if not 1 <= args.seconds <= _MAX_SECONDS:
        print(f"chaos: --seconds {args.seconds:g}: must be between 1 and {_MAX_SECONDS}", file=sys.stderr)
        return 2
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # the upstreams' connections break on purpose
    try:
        options = Options(args.seconds, args.seed, args.model or _starter())
        result = asyncio.run(run(options))
    except (CatalogueError, RuntimeError, TimeoutError) as exc:
        print(f"chaos: {exc or 'the local model was not ready in time'}", file=sys.stderr)
        return 2
    found = report.document(options, result)
    print(json.dumps(found) if args.json else "\n".join(report.lines(found)))
    return 1 if found["violations_total"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos",
        description="Clients, failing upstreams and killed workers around a real daemon; then its guarantees.",
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long the storm lasts (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="plans requests and faults (default: 1)")
    parser.add_argument("--model", type=Path, metavar="FILE", help="a GGUF file (default: the starter model)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _starter() -> Path:
    """$EDGED_TEST_MODEL, else the installed starter model. Raises: CatalogueError."""
    if given := os.environ.get("EDGED_TEST_MODEL"):
        return Path(given)
    entry, store = find(STARTER, load()), Store()
    if store.status(entry).state not in (State.INSTALLED, State.UNVERIFIED):
        raise CatalogueError(f"the starter model is not installed: edged models pull {STARTER}, or --model FILE")
    return store.usable(entry)


if __name__ == "__main__":
    sys.exit(main())
