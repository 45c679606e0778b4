"""``edged split``: who answered, why, how fast, at what cost."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from edged.cli import budgets
from edged.cli.audit import sentence
from edged.cli.reading import columns, command, console, ledger_path, printable, since
from edged.ledger import By, Split, audits, kept_money, split
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
    parser.add_argument(
        "--by", choices=[by.value for by in By], help="a line per reason, model, route, key or hour (UTC)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


@command
def run(args: argparse.Namespace) -> None:
    """Print the split of the window asked for."""
    result = split(ledger_path(args), since_s=args.since, by=By(args.by) if args.by else None)
    compared = audits(ledger_path(args), since_s=args.since)
    money = kept_money(ledger_path(args))
    if args.json:
        print(json.dumps(result.as_json() | {"audits": compared.as_json(), "budgets": budgets.as_json(money)}))
        return
    out = console()
    tables = [_fates(result), _reasons(result)]
    if result.groups is not None:
        tables.append(_groups(result.groups, args.by))
    for table in tables:
        out.print(table)
        out.print()
    out.print(_cost(result))
    if compared.audited:
        out.print(sentence(compared))
    if (today := budgets.table(money)) is not None:
        out.print()
        out.print(today)


def _fates(result: Split) -> Table:
    table = columns("answered by", "requests", "share", "tokens", "TTFT p50", "TTFT p95")
    for name, count, tokens, ttft in (
        ("local", result.local, result.tokens.local, result.local_ttft),
        ("cloud", result.cloud, result.tokens.cloud, result.cloud_ttft),
    ):
        speeds = (seconds(ttft.p50), seconds(ttft.p95))
        table.add_row(name, str(count), _share(count, result.requests), str(tokens), *speeds)
    for name, count in (
        ("- rejected", result.rejected),
        ("- cancelled", result.cancelled),
        ("- failed", result.failed),
    ):
        table.add_row(name, str(count), _share(count, result.requests))
    table.add_row("all", str(result.requests))
    table.add_row("thrown away", "", "", str(result.tokens.discarded))
    return table


def _share(count: int, total: int) -> str:
    return f"{100 * count / total:.1f} %" if total else "-"


def _reasons(result: Split) -> Table:
    table = columns("reason", "requests", "share")
    for reason, count in result.by_reason.items():
        table.add_row(printable(reason), str(count), _share(count, result.requests))
    return table


def _groups(groups: Mapping[str, Split], title: str) -> Table:
    table = columns(title, "all", "local", "cloud", "wasted", "cost", "local p50", "cloud p50")
    for key, group in groups.items():
        counts = (group.requests, group.local, group.cloud, group.tokens.discarded)
        speeds = (seconds(group.local_ttft.p50), seconds(group.cloud_ttft.p50))
        table.add_row(printable(key) or "-", *map(str, counts), dollars(group.cost_uusd), *speeds)
    return table


def _cost(result: Split) -> str:
    estimated = f" ({dollars(result.cost_estimated_uusd)} of it estimated)" if result.cost_estimated_uusd else ""
    error = result.prediction_error
    off = f"; first token predicted to within {seconds(error.p50)} (p95 {seconds(error.p95)})" if error.p50 else ""
    return f"cost {dollars(result.cost_uusd)}{estimated}{off}"
