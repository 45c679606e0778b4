"""What was measured, for people and for programs."""

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from edged.bench.load import Plan, Round
from edged.bench.stats import METRICS, Figures, Ratio, medians, ratios

_TITLES = {
    "ttft_p50_s": "TTFT p50 ms",
    "ttft_p95_s": "TTFT p95 ms",
    "itl_p50_s": "ITL p50 ms",
    "itl_p95_s": "ITL p95 ms",
    "itl_max_s": "ITL max ms",
    "decode_tps": "decode tok/s",
    "total_tps": "total tok/s",
}
_WIDTH = 190


def say(round_: Round) -> None:
    """One line of progress, on stderr."""
    figures = round_.figures
    rate = "-" if figures.total_tps is None else f"{figures.total_tps:.1f}"
    trouble = f"  {figures.errors} failed: {round_.error}" if figures.errors else ""
    place = f"concurrency {round_.concurrency} round {round_.number + 1} {round_.target}"
    print(f"{place}: {rate} tok/s, {figures.completion_tokens} tokens{trouble}", file=sys.stderr, flush=True)


def as_json(plan: Plan, rounds: Sequence[Round]) -> dict[str, Any]:
    """Everything: the plan, the box, each round, the medians and the ratios to the first target."""
    results = [
        {
            "concurrency": concurrency,
            "target": target,
            "tokens_counted_by_chunks": any(entry.counted for entry in rounds if entry.target == target),
            "median": medians(own),
            "ratio": {name: asdict(ratio) if ratio else None for name, ratio in ratios(own, base).items()},
            "rounds": [asdict(figures) for figures in own],
        }
        for concurrency, target, own, base in _groups(rounds)
    ]
    box = {"machine": platform.machine(), "kernel": platform.release(), "cores": len(os.sched_getaffinity(0))}
    return {"plan": asdict(plan), "box": box | {"load_1min": os.getloadavg()[0]}, "results": results}


def show(plan: Plan, rounds: Sequence[Round]) -> None:
    """Print one table per concurrency: medians, and below each target its ratios to the first."""
    out = Console(width=max(Console().width, _WIDTH), highlight=False, markup=False)
    out.print(
        f"{plan.rounds} rounds, prompts of about {plan.prompt_tokens} tokens, at most {plan.max_tokens} answered; "
        f"medians over rounds; x = median of the per-round ratios to the first target [their range]"
    )
    for concurrency in plan.concurrencies:
        table = Table(box=None, pad_edge=False, collapse_padding=True)
        for title in (f"{concurrency} at once", *_TITLES.values(), "tokens", "failed"):
            table.add_column(title, justify="left" if title.endswith("at once") else "right", no_wrap=True)
        for number, target, own, base in _groups(rounds):
            if number == concurrency:
                _add_rows(table, target, own, base)
        out.print(table)


def _groups(rounds: Sequence[Round]) -> list[tuple[int, str, list[Figures], list[Figures]]]:
    """Concurrency, target, its rounds, the first target's rounds at that concurrency."""
    cells: dict[tuple[int, str], list[Figures]] = {}
    for entry in rounds:
        cells.setdefault((entry.concurrency, entry.target), []).append(entry.figures)
    first = rounds[0].target
    return [(concurrency, target, own, cells[concurrency, first]) for (concurrency, target), own in cells.items()]


def _add_rows(table: Table, target: str, own: list[Figures], base: list[Figures]) -> None:
    middle = medians(own)
    counts = [_number(middle["completion_tokens"]), _number(middle["errors"])]
    table.add_row(target, *(_metric(name, middle[name]) for name in METRICS), *counts)
    if own is not base:
        compared = ratios(own, base)
        table.add_row("", *(_times(compared[name]) for name in METRICS), "", "")


def _metric(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value * 1e3:.1f}" if name.endswith("_s") else f"{value:.1f}"


def _times(ratio: Ratio | None) -> str:
    return f"x{ratio.median:.2f} [{ratio.low:.2f}-{ratio.high:.2f}]" if ratio else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
