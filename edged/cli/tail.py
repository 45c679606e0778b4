"""``edged tail``: the last requests, one line each."""

import argparse
import re
import time
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.text import Text

from edged.cli.reading import as_json, command, console, ledger_path, printable
from edged.core import Record, Status, Target
from edged.ledger import NoLedger, after, last_seq, tail
from edged.ledger.files import identity
from edged.ledger.story import dollars, seconds, when

POLL_S = 0.5
_COLUMNS = ("received", "request", "model", "answered by", "reason", "conf", "TTFT", "total", "tokens", "cost")
_WIDTHS = (23, 20, 24, 11, 19, 5, 8, 8, 6, 9)


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "tail",
        parents=[common],
        help="show the last requests and where each was answered",
        description="The last requests of the ledger, oldest first, one line each.",
    )
    parser.add_argument("-n", type=_count, default=20, metavar="N", dest="count", help="how many (default: 20)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on with new ones as they come, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.set_defaults(func=run)


def _count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f'"{printable(text)}" is not a number of requests from 0 to 999999999')
    return int(text)


@command
def run(args: argparse.Namespace) -> None:
    """Print the last records and, if asked, those that follow."""
    path = ledger_path(args)
    file = identity(path)
    out = None if args.json else console()
    found = tail(path, args.count)
    if out is not None:
        out.print(Text(_line(_COLUMNS), style="bold"), soft_wrap=True)
    _show(out, (record for _, record in found))
    seq = found[-1][0] if found else last_seq(path)
    while args.follow:
        time.sleep(POLL_S)
        if identity(path) != file:
            file, seq = identity(path), 0  # a new ledger has begun
        try:
            new = after(path, seq)
        except NoLedger:
            continue
        _show(out, (record for _, record in new))
        seq = new[-1][0] if new else seq


def _show(out: Console | None, records: Iterable[Record]) -> None:
    for record in records:
        if out is None:
            print(as_json(record), flush=True)
        else:
            out.print(Text(_line(_cells(record)), style=_style(record)), soft_wrap=True)


def _cells(record: Record) -> tuple[str, ...]:
    served = record.served
    return (
        when(record.received_at),
        record.id,
        record.served_model or record.model,
        str(record.served_by if record.status is Status.OK else record.status),
        str(record.reason),
        "-" if record.confidence is None else f"{record.confidence:.2f}",
        seconds(record.ttft_s),
        seconds(record.total_s),
        "-" if served is None else str(served.usage.completion_tokens),
        dollars(record.cost_uusd),
    )


def _line(cells: tuple[str, ...]) -> str:
    """Cells in fixed columns; a longer one moves the rest of its line, nothing is cut: ids are there to be copied."""
    padded = (f"{printable(cell):<{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))
    return "  ".join(padded).rstrip()


def _style(record: Record) -> str:
    if record.status is not Status.OK:
        return "yellow" if record.status is Status.CANCELLED else "red"
    return "cyan" if record.served_by is Target.CLOUD else ""
