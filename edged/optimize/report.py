"""From measurements to a table and a choice: pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

from edged.optimize import stats
from edged.optimize.choice import Measured, Verdict, choose, judge
from edged.optimize.items import Task
from edged.optimize.state import Pair, Scores, State, Trial
from edged.optimize.stats import Answers, Interval


@dataclass(frozen=True, slots=True)
class Row:
    """One format, or one setting: speeds in tokens/s and as multiples of what it is compared with.

    ``accuracy_change`` and ``auroc_change`` are None where it was not asked the questions, ``agreement`` likewise.
    """

    name: str
    verdict: Verdict | None
    bytes: int = 0
    resident_bytes: int = 0
    prefill_tps: float | None = None
    decode_tps: float | None = None
    prefill_ratio: float | None = None
    decode_ratio: float | None = None
    request_ratio: float | None = None
    accuracy: float | None = None
    accuracy_change: Interval | None = None
    auroc: float | None = None
    auroc_change: Interval | None = None
    agreement: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The whole result. ``choice`` is a format, or None to stay with the published file."""

    rows: tuple[Row, ...]
    settings: tuple[Row, ...]
    choice: str | None
    items: int
    threads: int
    cores: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Scale:
    """What one timing is: so many tokens in, so many out."""

    prefill_tokens: int
    decode_tokens: int


def report(state: State, tasks: Sequence[Task], scale: Scale, *, published_bytes: int) -> Report:
    """Every format measured, judged by the rule, and the settings tried on the choice."""
    published = answers(state.published, tasks)
    rows = [_row(name, trial, published, tasks, scale) for name, trial in state.formats.items() if trial.done]
    choice = choose(_measured(row) for row in rows if row.verdict is Verdict.GOOD)
    rows = [replace(row, verdict=Verdict.CHOSEN) if row.name == choice else row for row in rows]
    base = answers(state.published if choice is None else state.formats[choice].scores, tasks)
    settings = [_row(name, trial, base, tasks, scale) for name, trial in state.settings.items() if trial.done]
    return Report(
        rows=(_published_row(state, published, scale, published_bytes), *rows),
        settings=tuple(replace(row, verdict=None) for row in settings),
        choice=choice,
        items=sum(len(task.questions) for task in tasks),
        threads=state.threads,
        cores=state.cores,
    )


def answers(scores: Scores, tasks: Sequence[Task]) -> Answers | None:
    """What a file answered; None until it was asked everything."""
    if any(len(scores.get(task.name, ())) < len(task.questions) for task in tasks):
        return None
    return stats.joined(
        [
            stats.answers(
                [list(options) for options in scores[task.name]],
                task.answers,
                fixed_labels=task.fixed_labels,
                task=number,
            )
            for number, task in enumerate(tasks)
        ]
    )


def request_ratio(pairs: Sequence[Pair]) -> float:
    """How many times faster a whole request is; the median over the pairs."""
    return median(pair.before.total_s / pair.after.total_s for pair in pairs)


def _published_row(state: State, published: Answers | None, scale: Scale, size_bytes: int) -> Row:
    timings = [pair.before for trial in state.formats.values() for pair in trial.pairs]
    row = Row("published", Verdict.PUBLISHED, bytes=size_bytes)
    if timings:
        row = replace(
            row,
            resident_bytes=max(timing.resident_bytes for timing in timings),
            prefill_tps=scale.prefill_tokens / median(timing.prefill_s for timing in timings),
            decode_tps=scale.decode_tokens / median(timing.decode_s for timing in timings),
            prefill_ratio=1.0,
            decode_ratio=1.0,
            request_ratio=1.0,
        )
    if published is not None:
        row = replace(row, accuracy=stats.accuracy(published), auroc=stats.auroc(published), agreement=1.0)
    return row


def _row(name: str, trial: Trial, base: Answers | None, tasks: Sequence[Task], scale: Scale) -> Row:
    if trial.problem is not None:
        verdict = Verdict.SKIPPED if trial.skipped else Verdict.FAILED
        return Row(name, verdict, bytes=trial.bytes, problem=trial.problem)
    row = _quality(_speed(name, trial, scale), base, answers(trial.scores, tasks))
    return replace(row, verdict=judge(_measured(row)))


def _speed(name: str, trial: Trial, scale: Scale) -> Row:
    pairs = trial.pairs
    return Row(
        name,
        None,
        bytes=trial.bytes,
        resident_bytes=max(pair.after.resident_bytes for pair in pairs),
        prefill_tps=scale.prefill_tokens / median(pair.after.prefill_s for pair in pairs),
        decode_tps=scale.decode_tokens / median(pair.after.decode_s for pair in pairs),
        prefill_ratio=median(pair.before.prefill_s / pair.after.prefill_s for pair in pairs),
        decode_ratio=median(pair.before.decode_s / pair.after.decode_s for pair in pairs),
        request_ratio=request_ratio(pairs),
    )


def _quality(row: Row, base: Answers | None, given: Answers | None) -> Row:
    if base is None or given is None:
        return row
    return replace(
        row,
        accuracy=stats.accuracy(given),
        accuracy_change=stats.accuracy_change(base, given),
        auroc=stats.auroc(given),
        auroc_change=stats.auroc_change(base, given),
        agreement=stats.agreement(base, given),
    )


def _measured(row: Row) -> Measured:
    assert row.request_ratio is not None
    return Measured(row.name, row.request_ratio, row.bytes, row.accuracy_change, row.auroc_change)
