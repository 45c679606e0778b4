"""``edged audit``: how often the cloud agreed with the answers that were kept."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

from edged.cli.reading import command, console, ledger_path, printable, since
from edged.ledger import Agreed, Audits, audits
from edged.ledger.story import dollars

_EXPLAINED = {
    "json": "JSON, by value",
    "calls": "tool calls, by function and arguments",
    "exact": "closed forms, by letter",
    "words": "text, by the F1 of its words: a rough measure",
}


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "audit",
        parents=[common],
        help="show how often the cloud agreed with local answers",
        description="What the comparisons of [route.audit] say of the answers the thresholds kept, from the ledger.",
    )
    parser.add_argument(
        "--since",
        type=since,
        default="7d",
        metavar="TIME",
        help="how far back: 90s, 15m, 24h, 7d or all (default: 7d)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


@command
def run(args: argparse.Namespace) -> None:
    """Print the audits of the window asked for."""
    found = audits(ledger_path(args), since_s=args.since)
    if args.json:
        print(json.dumps(found.as_json()))
        return
    out = console()
    if not found.audited:
        out.print("No answer was audited in this time: set share in [route.audit].")
        return
    out.print(sentence(found))
    for title, groups in (("compared by", _named(found.by_measure)), ("route", found.by_route)):
        out.print()
        out.print(_table(title, groups))
    out.print(f"\ncost {dollars(found.cost_uusd)}, {found.unanswered} without an answer from the cloud")


def sentence(found: Audits) -> str:
    """The result in one line, with its exact interval."""
    whole, (low, high) = found.whole, found.whole.interval
    if not whole.compared:
        return f"audits: {found.audited}, none answered by the cloud yet"
    share = f"{100 * whole.agreed / whole.compared:.1f} %"
    return (
        f"audits: {whole.compared} kept answers compared, {share} agreed "
        f"(95 % interval {100 * low:.1f} to {100 * high:.1f} %, Clopper-Pearson)"
    )


def _named(groups: Mapping[str, Agreed]) -> dict[str, Agreed]:
    return {_EXPLAINED.get(key, key): group for key, group in groups.items()}


def _table(title: str, groups: Mapping[str, Agreed]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(title, overflow="fold")
    for column in ("compared", "agreed", "95 % interval", "mean score"):
        table.add_column(column, justify="right", no_wrap=True)
    for key, group in groups.items():
        low, high = group.interval
        share, score = f"{100 * (group.share or 0):.1f} %", f"{group.mean_score or 0:.2f}"
        table.add_row(printable(key) or "-", str(group.compared), share, f"{100 * low:.1f} - {100 * high:.1f} %", score)
    return table
