"""What a command that takes long says on standard error: how far it is, and how it ended."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from edged.errors import EdgedError

LINE_EVERY_PERCENT = 10
_INTERRUPTED = 130


def say(text: str) -> None:
    print(f"edged: {text}", file=sys.stderr, flush=True)


def resumable(work: Callable[[], int]) -> int:
    """The exit code of work that goes on where it was when run again; 1 with one line said, 130 interrupted."""
    try:
        return work()
    except EdgedError as exc:
        say(exc.message)
        return 1
    except OSError as exc:
        say(f"{exc.filename or 'file'}: {exc.strerror or exc}")
        return 1
    except KeyboardInterrupt:
        say("interrupted: run it again to go on")
        return _INTERRUPTED


@contextmanager
def listener(amounts: Callable[[], tuple[Any, ...]], *, shown: Callable[[int], str] = str) -> Iterator["_Lines | _Bar"]:
    """Bars on a terminal, with the columns that ``amounts`` makes of rich's; elsewhere lines with amounts ``shown``."""
    if not sys.stderr.isatty():
        yield _Lines(shown)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), *amounts(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield _Bar(bars)


class _Lines:
    """Progress for logs and pipes: a line every ten percent."""

    def __init__(self, shown: Callable[[int], str]) -> None:
        self._shown = shown
        self._last = ("", -1)

    def progress(self, stage: str, done: int, total: int, /) -> None:
        step = (stage, done * 100 // max(total, 1) // LINE_EVERY_PERCENT)
        if step != self._last:
            self._last = step
            say(f"{stage}: {self._shown(done)} of {self._shown(total)}")

    def note(self, text: str) -> None:
        say(text)


class _Bar:
    """Progress for people: one bar per stage."""

    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}

    def progress(self, stage: str, done: int, total: int, /) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)

    def note(self, text: str) -> None:
        self._bars.console.print(text, markup=False, highlight=False)
