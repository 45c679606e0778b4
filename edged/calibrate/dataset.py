"""The labelled items of a task: read, checked, and put into an order that depends on nothing but their text."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edged.config import TaskFile
from edged.errors import ConfigError

MAX_BYTES = 256 * 1024 * 1024
MAX_ITEMS = 50_000
MAX_TEXT_CHARACTERS = 100_000
FEWEST_LABELS = 20
_SHOWN = 5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """One line: an input and, where it is labelled, the answer (of a schema: JSON text)."""

    input: str
    answer: str | None
    line: int

    @property
    def sha256(self) -> str:
        """Of the input as people would compare it; the order of items follows it."""
        return hashlib.sha256(_plain(self.input).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Dataset:
    """``items`` have different inputs, in an order that says nothing of their answers. ``warnings`` are for people."""

    items: tuple[Item, ...]
    warnings: tuple[str, ...] = ()

    @property
    def labelled(self) -> tuple[Item, ...]:
        return tuple(item for item in self.items if item.answer is not None)


def read(path: Path, task: TaskFile, *, limit: int | None = None) -> Dataset:
    """Read ``{"input": ..., "answer": ...}`` lines; ``limit`` takes so many of them, always the same ones.

    Inputs among the task's own examples are left out, since the model is shown their answers; so are repeated ones.
    Raises: ConfigError naming file, line and limit.
    """
    items = list(_items(path, task))
    if not items:
        raise ConfigError(f"{path.name}: there is no item in it")
    if task.is_closed:
        _check_options(path, items, task)
    kept, warnings = _distinct(items, task)
    if not kept:
        raise ConfigError(f"{path.name}: every item is among the task's own examples")
    kept.sort(key=lambda item: item.sha256)
    kept = kept[:limit]
    return Dataset(tuple(kept), tuple(warnings))


def check_labels(items: Sequence[Item], task: TaskFile) -> tuple[str, ...]:
    """Whether the labels can teach anything; returns warnings. Raises: ConfigError that says what is missing."""
    if len(items) < FEWEST_LABELS:
        raise ConfigError(f"{len(items)} labelled items are too few: at least {FEWEST_LABELS} are needed")
    if not task.is_closed:
        return ()
    counts = Counter(item.answer for item in items)
    if len(counts) == 1:
        only = next(iter(counts))
        raise ConfigError(
            f'every one of the {len(items)} answers is "{only}": items of at least two options are needed'
        )
    absent = [option for option in task.option_names if option not in counts]
    if not absent:
        return ()
    names = _some([f'"{option}"' for option in absent])
    return (f"no item is labelled {names}: whether such requests are answered right is not known",)


def halves(items: Sequence[T]) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """One half to fit on, a disjoint one to certify on."""
    middle = len(items) // 2
    return tuple(items[:middle]), tuple(items[middle:])


def _items(path: Path, task: TaskFile) -> Iterator[Item]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path.name} is over the limit of {MAX_BYTES} bytes")
        with path.open(encoding="utf-8") as file:
            number = 0
            for line_number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                number += 1
                if number > MAX_ITEMS:
                    raise ConfigError(f"{path.name} has more than the limit of {MAX_ITEMS} items")
                yield _item(f"{path.name}: line {line_number}", line, line_number, task)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path.name} is not UTF-8 text") from exc


def _item(place: str, line: str, number: int, task: TaskFile) -> Item:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{place}: not JSON") from exc
    if not isinstance(row, dict) or not isinstance(row.get("input"), str) or not row["input"].strip():
        raise ConfigError(f'{place}: needs an object with the text "input", and the "answer" where it is known')
    if len(row["input"]) > MAX_TEXT_CHARACTERS:
        raise ConfigError(f"{place}: input: over the limit of {MAX_TEXT_CHARACTERS} characters")
    return Item(row["input"], _answer(place, row.get("answer"), task), number)


def _answer(place: str, answer: Any, task: TaskFile) -> str | None:
    if answer is None or isinstance(answer, str):
        return answer
    if task.answer_schema is None:
        raise ConfigError(f"{place}: answer: must be a text, it is {json.dumps(answer)[:80]}")
    return json.dumps(answer, ensure_ascii=False)


def _check_options(path: Path, items: Sequence[Item], task: TaskFile) -> None:
    known = set(task.option_names)
    strangers = [item for item in items if item.answer is not None and item.answer not in known]
    if strangers:
        first = strangers[0]
        names = _some(sorted({f'"{item.answer}"' for item in strangers}))
        raise ConfigError(
            f"{path.name}: line {first.line}: answer: {names} not among the task's {len(known)} options "
            f"({len(strangers)} of {len(items)} items)"
        )


def _distinct(items: Sequence[Item], task: TaskFile) -> tuple[list[Item], list[str]]:
    shown = {_plain(example.input) for example in task.examples}
    kept: dict[str, Item] = {}
    leaks = repeated = contradicted = 0
    for item in items:
        plain = _plain(item.input)
        if plain in shown:
            leaks += 1
        elif plain not in kept:
            kept[plain] = item
        else:
            repeated += 1
            contradicted += kept[plain].answer != item.answer
    warnings = []
    if leaks:
        warnings.append(f"{_items_are(leaks)} left out: they are among the task's examples, whose answers are shown")
    if repeated:
        also = f", {contradicted} of them with another answer" if contradicted else ""
        warnings.append(f"{_items_are(repeated)} left out: their inputs came before{also}")
    return list(kept.values()), warnings


def _items_are(count: int) -> str:
    return f"{count} item is" if count == 1 else f"{count} items are"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
