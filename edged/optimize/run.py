"""One optimization: what is measured, in which order, and what is left on the disk whatever happens."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Protocol

import psutil

from edged.catalogue import Entry, Store
from edged.catalogue.machine import cpu_identity
from edged.engine.cores import CoreBudget, sample, usable_cores
from edged.errors import EngineError
from edged.optimize import items, state, writing
from edged.optimize.bench import POOL_TOKENS, Benches, Setup
from edged.optimize.child import ProbeFailed
from edged.optimize.choice import MIN_GAIN
from edged.optimize.effort import Effort
from edged.optimize.report import Report, Scale, report, request_ratio
from edged.optimize.state import Key, Trial

_SAMPLES, _SAMPLE_S = 5, 0.2
_CHUNKS_TOKENS = (64, 128, 256)
_ROUND_UNITS = 10
_REPACKED = 1  # llama.cpp may hold a second copy of the weights, arranged for this CPU's vector units
_PUBLISHED = "published"


class Listener(Protocol):
    """Hears how far an optimization is, in units of about equal work."""

    def progress(self, stage: str, done: int, total: int) -> None: ...


class Optimization:
    """Measures the candidates of one installed model. The caller holds the model's lock.

    Raises: CatalogueError where the model is not installed, EngineError where the memory does not hold it.
    """

    def __init__(
        self,
        entry: Entry,
        store: Store,
        *,
        effort: Effort,
        listener: Listener,
        free_bytes: Callable[[Path], int] = writing.free_bytes,
    ) -> None:
        self.entry, self.store, self.effort = entry, store, effort
        self.source = store.usable(entry)
        self.files = store.files(entry)
        self.tasks = tuple(task.first(effort.items) for task in items.built_in())
        self.state = state.load(self.files.optimizing, self._key())
        self._free_bytes = free_bytes
        self._meter = _Meter(listener, self._units())
        text = items.all_text(self.tasks)
        self._benches = Benches(effort=effort, text=text, capacity=_files_that_fit(entry))

    def __repr__(self) -> str:
        return f"Optimization({self.entry.name}, {self.effort.name}, {self._meter!r})"

    @property
    def is_resumed(self) -> bool:
        return self.state.began_at > 0

    def forget(self) -> None:
        """Measure everything anew."""
        self.state = state.State(self._key())

    def run(self) -> Report:
        """Measure what has not been measured yet.

        Raises: EngineError where the published file cannot be measured or the disk is full, OSError. Nothing but the
        state stays on the disk, which the next run goes on from.
        """
        try:
            self.files.drop_optimized(suffix=".gguf.part")  # of a run that was killed
            self._look_around()
            self._score(self._published, self.state.published, _PUBLISHED)
            self._meter.next(self._items)
            for weight_format in self.effort.formats:
                self._format(weight_format)
                self._meter.next(self._format_units)
            self._settings()
        finally:
            self._benches.close()
            self.files.drop_optimized(suffix=".gguf.part")
        return self.report()

    def report(self) -> Report:
        scale = Scale(self.effort.prefill_tokens, self.effort.decode_tokens)
        return report(self.state, self.tasks, scale, published_bytes=self.entry.bytes)

    def write(self, weight_format: str) -> Path:
        """Write a format that was measured, brought to the disk, and check that it is the same file.

        Raises: EngineError, OSError; nothing is left then.
        """
        part = self._write(weight_format)
        trial = self.state.formats[weight_format]
        measured = trial.sha256
        writing.identify(part, trial)
        if trial.sha256 != measured:
            part.unlink()
            raise EngineError(f"{weight_format} came out different from what was measured: run it again")
        return part

    # -- one format --

    def _format(self, weight_format: str) -> None:
        trial = self.state.formats.setdefault(weight_format, Trial())
        if trial.done:
            return
        part = self.files.optimized_part(weight_format)
        try:
            self._candidate(weight_format, trial, part)
        except ProbeFailed as exc:
            self._blame(exc, trial)
        finally:
            self._benches.forget(part)
            part.unlink(missing_ok=True)
        trial.done = True
        self._save()

    def _candidate(self, weight_format: str, trial: Trial, part: Path) -> None:
        self._meter.at(f"{weight_format}: writing", 0)
        trial.problem = writing.why_not(self.source, weight_format, self._benches.describe(self._published))
        trial.skipped = trial.problem is not None
        if trial.skipped:
            return
        writing.identify(self._write(weight_format), trial)
        candidate = Setup(part, self.state.threads)
        self._time(weight_format, trial, self._published, candidate)
        if request_ratio(trial.pairs) >= MIN_GAIN:
            self._score(candidate, trial.scores, weight_format)

    def _blame(self, exc: ProbeFailed, trial: Trial) -> None:
        """A candidate's problem is part of the result; without the published file there is none."""
        if exc.path == self.source:
            raise EngineError(f"the published file cannot be measured: {exc.message}") from exc
        trial.problem = exc.message

    def _time(self, name: str, trial: Trial, before: Setup, after: Setup) -> None:
        """Pairs of timings. The first request of a freshly loaded file pays for its page faults: it does not count."""
        if len(trial.pairs) < self.effort.rounds:
            self._benches.pair(before, after)
        while len(trial.pairs) < self.effort.rounds:
            self._meter.at(f"{name}: speed", len(trial.pairs) * _ROUND_UNITS)
            trial.pairs.append(self._benches.pair(before, after))
            self._save()

    def _score(self, setup: Setup, scores: state.Scores, name: str) -> None:
        timed_units = 0 if name == _PUBLISHED else self.effort.rounds * _ROUND_UNITS
        for task in self.tasks:
            while self._benches.score(setup, task, scores):
                self._save()
                self._meter.at(f"{name}: answers", timed_units + sum(map(len, scores.values())))

    # -- settings of the chosen file --

    def _settings(self) -> None:
        """Threads, chunk of the prompt and format of the KV cache, each against the usual one."""
        left = [(name, tried) for name, tried in self._tries() if not self._trial(name).done]
        if not left:
            return
        choice = self.report().choice
        path = self.source if choice is None else self.write(choice)
        try:
            for name, tried in left:
                self._setting(name, replace(self._published, path=path), replace(tried, path=path))
                self._meter.next(self.effort.rounds * _ROUND_UNITS)
        finally:
            self._benches.forget(path)

    def _setting(self, name: str, usual: Setup, tried: Setup) -> None:
        trial = self._trial(name)
        try:
            self._time(name, trial, usual, tried)
            if tried.kv_format != usual.kv_format:
                self._score(tried, trial.scores, name)
        except ProbeFailed as exc:
            trial.problem = exc.message
        trial.done = True
        self._save()

    def _tries(self) -> Iterator[tuple[str, Setup]]:
        """Name and setup of each; the file is filled in later."""
        if not self.effort.settings:
            return
        usual, cores = self._published, self.state.cores
        for threads in sorted({1, max(1, cores // 2), cores} - {usual.threads}):
            yield f"threads {threads}", replace(usual, threads=threads)
        for chunk_tokens in _CHUNKS_TOKENS:
            yield f"chunk {chunk_tokens}", replace(usual, chunk_tokens=chunk_tokens)
        yield "kv q8_0", replace(usual, kv_format="q8_0")

    def _trial(self, name: str) -> Trial:
        return self.state.settings.setdefault(name, Trial())

    # -- the box, the file, the state --

    @property
    def _published(self) -> Setup:
        return Setup(self.source, self.state.threads)

    @property
    def _items(self) -> int:
        return sum(len(task.questions) for task in self.tasks)

    @property
    def _format_units(self) -> int:
        return self.effort.rounds * _ROUND_UNITS + self._items

    def _units(self) -> int:
        settings = (len(_CHUNKS_TOKENS) + 3) * self.effort.rounds * _ROUND_UNITS if self.effort.settings else 0
        return self._items + len(self.effort.formats) * self._format_units + settings

    def _write(self, weight_format: str) -> Path:
        return writing.write(
            self.source, self.files, weight_format, threads=max(1, self.state.threads), free=self._free_bytes
        )

    def _look_around(self) -> None:
        """Use the cores that are really free: threads that spin beside a busy neighbour measure the neighbour."""
        if self.is_resumed:
            return
        cores = usable_cores()
        budget = CoreBudget(cores)
        for _ in range(_SAMPLES):
            budget.observe(sample((), at_s=time.monotonic()))
            time.sleep(_SAMPLE_S)
        self.state.threads, self.state.cores, self.state.began_at = budget.granted, cores, time.time()

    def _save(self) -> None:
        state.save(self.files.optimizing, self.state)

    def _key(self) -> Key:
        plan = repr((self.effort, self.tasks)).encode()
        return Key(
            source_sha256=self.entry.sha256,
            llama_cpp=metadata.version("llama-cpp-python"),
            cpu=cpu_identity(),
            plan=hashlib.sha256(plan).hexdigest(),
        )


class _Meter:
    """Counts equal units of work over stages of known size."""

    def __init__(self, listener: Listener, total: int) -> None:
        self._listener = listener
        self._total = total
        self._before = 0

    def __repr__(self) -> str:
        return f"{self._before}/{self._total} units"

    def at(self, stage: str, done: int) -> None:
        self._listener.progress(stage, min(self._before + done, self._total), self._total)

    def next(self, units: int) -> None:
        """A stage of so many units is over, whether or not all of it had to be done."""
        self._before += units


def _files_that_fit(entry: Entry) -> int:
    """How many files may be loaded at once: two, or one after the other.

    Raises: EngineError where not even one fits.
    """
    available_bytes = int(psutil.virtual_memory().available)
    needed_bytes = entry.memory_bytes(POOL_TOKENS) + _REPACKED * entry.bytes
    if available_bytes < needed_bytes:
        raise EngineError(
            f"not enough free memory: {entry.name} needs {needed_bytes / 1e6:.0f} MB to be measured, "
            f"{available_bytes / 1e6:.0f} MB are free"
        )
    return 2 if available_bytes >= 2 * needed_bytes else 1
