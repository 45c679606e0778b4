"""``edged split``: who answered, why, how fast, at what cost."""

import argparse
import json
from typing import Any

from rich import box
from rich.table import Table

from edged.cli.reading import command, console, ledger_path, printable, since
from edged.ledger import By, Percentiles, Split, split
from edged.ledger.story import dollars, seconds


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "split",
        parents=[common],
        help="show who answered, why, how fast and at what cost",
        description="Shares of local and cloud answers, their reasons, tokens, latency and cost, from the ledger.",
    )
    parser.add_argument(
        "--since",
        type=since,
        default="24h",
        metavar="TIME",
        help="how far back: 90s, 15m, 24h, 7d or all (default: 24h)",
    )
    parser.add_argument("--by", type=By, choices=list(By), help="one line per reason, model, route or hour (UTC)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


@command
def run(args: argparse.Namespace) -> None:
    """Print the split of the window asked for."""
    result = split(ledger_path(args), since_s=args.since, by=args.by)
    if args.json:
        print(json.dumps(result.as_json()))
        return
    out = console()
    out.print(_fates(result))
    out.print(_reasons(result))
    if result.groups is not None:
        out.print(_groups(result, str(args.by)))
    out.print(_cost(result))


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def _fates(result: Split) -> Table:
    table = _table("", "requests", "share", "tokens", "TTFT p50", "TTFT p95")
    local, cloud, none = result.local_ttft, result.cloud_ttft, Percentiles()
    rows = (
        ("local", result.local, result.tokens.local, local),
        ("cloud", result.cloud, result.tokens.cloud, cloud),
        ("rejected", result.rejected, None, none),
        ("cancelled", result.cancelled, None, none),
        ("failed", result.failed, None, none),
    )
    for name, count, tokens, ttft in rows:
        shown = "" if tokens is None else str(tokens)
        table.add_row(name, str(count), _share(count, result.requests), shown, *_ttft(ttft))
    table.add_row("all", str(result.requests), "", f"{result.tokens.discarded} thrown away", "", "")
    return table


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "-"


def _ttft(values: Percentiles) -> tuple[str, str]:
    return ("", "") if values == Percentiles() else (seconds(values.p50), seconds(values.p95))


def _reasons(result: Split) -> Table:
    table = _table("reason", "requests", "share")
    for reason, count in result.by_reason.items():
        table.add_row(printable(reason), str(count), _share(count, result.requests))
    return table


def _groups(result: Split, title: str) -> Table:
    columns = ("local", "cloud", "rejected", "cancelled", "failed", "thrown away", "cost", "local p50", "cloud p50")
    table = _table(title, "requests", *columns)
    for key, group in (result.groups or {}).items():
        counts = (group.requests, group.local, group.cloud, group.rejected, group.cancelled, group.failed)
        speeds = (seconds(group.local_ttft.p50), seconds(group.cloud_ttft.p50))
        wasted = str(group.tokens.discarded)
        table.add_row(printable(key) or "-", *map(str, counts), wasted, dollars(group.cost_uusd), *speeds)
    return table


def _cost(result: Split) -> str:
    estimated = f" ({dollars(result.cost_estimated_uusd)} of it estimated)" if result.cost_estimated_uusd else ""
    return f"cost {dollars(result.cost_uusd)}{estimated}"
