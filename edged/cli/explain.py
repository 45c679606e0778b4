"""``edged explain``: the story of one request."""

import argparse
from typing import Any

from edged.cli.reading import as_json, command, ledger_path, printable
from edged.ledger import find, story


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "explain",
        parents=[common],
        help="tell why one request was answered where it was",
        description="What was decided, each number against its threshold, who tried, what it cost and what was wasted.",
    )
    parser.add_argument("request_id", metavar="REQUEST_ID", help="x-edged-request-id, or the beginning of it")
    parser.add_argument("--json", action="store_true", help="print the record as one JSON object")
    parser.set_defaults(func=run)


@command
def run(args: argparse.Namespace) -> None:
    """Print the record the id belongs to."""
    record = find(ledger_path(args), args.request_id)
    if args.json:
        print(as_json(record))
        return
    for line in story(record):
        print(printable(line))
