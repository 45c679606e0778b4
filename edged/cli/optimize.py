"""``edged models optimize``: measure weight formats on this box, show the table, install the choice."""

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from edged import __version__, catalogue
from edged.catalogue import Entry, Store, optimized
from edged.cli.progress import LINE_EVERY_PERCENT, say
from edged.cli.tables import Columns, print_table
from edged.optimize import FULL, QUICK, Interval, Listener, Optimization, Report, Row, Verdict
from edged.optimize.choice import MAX_ACCURACY_DROP, MAX_AUROC_DROP, MIN_GAIN

_HEADER = ("FORMAT", "SIZE", "MEMORY", "PREFILL", "DECODE", "REQUEST", "ACCURACY", "AUROC", "SAME", "VERDICT")


def run(args: argparse.Namespace) -> int:
    """Measure, show, install; 0 also where the published file stays the best. Raises: EdgedError, OSError."""
    entry = catalogue.find(args.name, catalogue.load())
    store = Store(args.dir)
    store.usable(entry)
    with store.lock(entry, wait=False):
        if args.revert:
            return _revert(store, entry)
        with _listener() as listener:
            optimization = Optimization(entry, store, effort=QUICK if args.quick else FULL, listener=listener)
            if args.fresh:
                optimization.forget()
            elif optimization.is_resumed:
                say("going on with what was measured before (--fresh starts anew)")
            report = optimization.run()
        if not args.json:
            _show(report)
        installed = report.choice is not None and _is_wanted(args, report)
        if installed:
            _install(optimization, report)
        if args.json:
            print(json.dumps({**report.as_json(), "name": entry.name, "installed": installed}, indent=2))
        return 0


def _is_wanted(args: argparse.Namespace, report: Report) -> bool:
    if args.yes:
        return True
    if args.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        say("nothing was installed: run it again with --yes; what was measured is kept")
        return False
    return input(f"Install {report.choice} beside the published file and use it? [y/N] ").strip().lower() == "y"


def _install(optimization: Optimization, report: Report) -> None:
    assert report.choice is not None
    part = optimization.write(report.choice)
    installed = optimized.install(
        optimization.store,
        optimization.entry,
        part,
        weight_format=report.choice,
        record=_provenance(optimization, report),
    )
    name = optimization.entry.name
    say(f"{name}: {report.choice} is used from the next start on: {installed.path}")
    say(f"its digest is {installed.sha256[:12]}: what was calibrated on the published file does not hold for it")
    say(f"to go back: edged models optimize {name} --revert")


def _provenance(optimization: Optimization, report: Report) -> dict[str, Any]:
    chosen = next(row for row in report.rows if row.verdict is Verdict.CHOSEN)
    return {
        "measured_at": datetime.fromtimestamp(optimization.state.began_at, UTC).isoformat(timespec="seconds"),
        "effort": optimization.effort.name,
        "items": report.items,
        "threads": report.threads,
        "cores": report.cores,
        "published": asdict(report.rows[0]),
        "measured": asdict(chosen),
        "rule": {"min_gain": MIN_GAIN, "max_accuracy_drop": MAX_ACCURACY_DROP, "max_auroc_drop": MAX_AUROC_DROP},
        "versions": {"edged": __version__, "llama-cpp-python": metadata.version("llama-cpp-python")},
        "platform": platform.platform(),
    }


def _revert(store: Store, entry: Entry) -> int:
    freed_bytes = optimized.revert(store, entry)
    what = f"reverted, {freed_bytes / 1e6:.1f} MB freed" if freed_bytes else "was not optimized"
    print(f"{entry.name}: {what}; the published file is used")
    return 0


# -- what is printed -----------------------------------------------------------------------------------------------


def _show(report: Report) -> None:
    print_table(_HEADER, [_line(row) for row in report.rows])
    if report.settings:
        print()
        chosen = report.choice or "published"
        print(f"Settings tried on {chosen}, against {report.threads} threads, chunks of 512 tokens, f16 KV cache:")
        print_table(("SETTING", *_HEADER[2:9], "PROBLEM"), [_setting(row) for row in report.settings])
    print()
    for line in notes(report):
        print(line)


def _line(row: Row) -> Columns:
    if row.problem is not None:
        size = f"{row.bytes / 1e6:.1f} MB" if row.bytes else "-"
        return (row.name, size, *("-",) * 7, f"{row.verdict}: {row.problem}")
    return (
        row.name,
        f"{row.bytes / 1e6:.1f} MB",
        f"{row.resident_bytes / 1e6:.0f} MB" if row.resident_bytes else "-",
        _speed(row.prefill_tps, row.prefill_ratio),
        _speed(row.decode_tps, row.decode_ratio),
        "-" if row.request_ratio is None else f"x{row.request_ratio:.2f}",
        _quality(row.accuracy, row.accuracy_change),
        _quality(row.auroc, row.auroc_change),
        "-" if row.agreement is None else f"{row.agreement:.0%}",
        str(row.verdict or ""),
    )


def _setting(row: Row) -> Columns:
    return (row.name, *_line(row)[2:9], row.problem or "")


def _speed(tps: float | None, ratio: float | None) -> str:
    return "-" if tps is None or ratio is None else f"{tps:.0f} tok/s x{ratio:.2f}"


def _quality(value: float | None, change: Interval | None) -> str:
    if value is None:
        return "-"
    if change is None:
        return f"{value:.3f}"
    return f"{value:.3f} {change.value:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"


def notes(report: Report) -> Iterator[str]:
    """What the table does not say by itself."""
    rule = f"at least x{MIN_GAIN:.2f}, accuracy and AUROC not measurably worse"
    limits = f"never by more than {MAX_ACCURACY_DROP:.2f} and {MAX_AUROC_DROP:.2f}"
    yield f"Rule: the fastest request, {rule}, {limits}; {report.items} questions, changes with 95 % intervals."
    if report.threads < report.cores:
        yield (
            f"This box was busy: measured on {report.threads} of {report.cores} cores. "
            "Ratios hold less well then: run it again with --fresh when it is idle."
        )
    if report.choice is None:
        yield "Choice: stay with the published file."
    else:
        yield f"Choice: {report.choice}."


class _Lines:
    """Progress for logs and pipes: a line every ten percent."""

    def __init__(self) -> None:
        self._last = -1

    def progress(self, stage: str, done: int, total: int) -> None:
        step = done * 100 // total // LINE_EVERY_PERCENT
        if step != self._last:
            self._last = step
            say(f"{step * LINE_EVERY_PERCENT} %: {stage}")


class _Bar:
    """Progress for people: one bar, the stage before it."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._task = bars.add_task("measuring", total=None)

    def progress(self, stage: str, done: int, total: int) -> None:
        self._bars.update(self._task, description=stage, completed=done, total=total)


@contextmanager
def _listener() -> Iterator[Listener]:
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield _Bar(bars)
