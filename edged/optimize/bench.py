"""Loaded files, side by side while the memory lasts."""

from dataclasses import dataclass
from pathlib import Path

from edged.engine import probe_protocol as protocol
from edged.optimize.child import Answer, Probe, ProbeFailed
from edged.optimize.effort import Effort
from edged.optimize.items import Task
from edged.optimize.state import Pair, Scores, Timing

POOL_TOKENS = 2048
SLOTS = 32
BATCH_TOKENS = 512
CHUNK_QUESTIONS = 12


@dataclass(frozen=True, slots=True)
class Setup:
    """A file and how it is run."""

    path: Path
    threads: int
    chunk_tokens: int = BATCH_TOKENS
    kv_format: str = "f16"

    @property
    def loaded_as(self) -> tuple[Path, str]:
        """Setups that can share one loaded file."""
        return (self.path, self.kv_format)


class Benches:
    """Keeps ``capacity`` files loaded: two, where they fit, so that a pair of timings is taken without a load between.

    One owner; ``close`` ends every probe.
    """

    def __init__(self, *, effort: Effort, text: str, capacity: int) -> None:
        self._effort = effort
        self._text = text
        self.capacity = capacity
        self._open: dict[tuple[Path, str], Probe] = {}
        self._descriptions: dict[Path, str] = {}

    def __repr__(self) -> str:
        return f"Benches({self._open!r})"

    def pair(self, before: Setup, after: Setup) -> Pair:
        """Time one, then the other. Raises: ProbeFailed."""
        return Pair(self.time(before), self.time(after))

    def time(self, setup: Setup) -> Timing:
        """One request. Raises: ProbeFailed."""
        effort = self._effort
        command = protocol.Time(
            self._text, effort.prefill_tokens, effort.decode_tokens, setup.threads, setup.chunk_tokens
        )
        timed = self._ask(setup, command, protocol.Timed)
        return Timing(timed.prefill_s, timed.decode_s, timed.resident_bytes)

    def score(self, setup: Setup, task: Task, scores: Scores) -> bool:
        """Score a task's next few questions into ``scores``; False when there are none left. Raises: ProbeFailed."""
        known = scores.setdefault(task.name, [])
        some = task.questions[len(known) : len(known) + CHUNK_QUESTIONS]
        if not some:
            return False
        scored = self._ask(setup, protocol.Score(task.prefix, some), protocol.Scored)
        known += [tuple(round(score, 6) for score in options) for options in scored.scores]
        return True

    def describe(self, setup: Setup) -> str:
        """llama.cpp's own description of a file, such as ``llama 256M Q4_1``. Raises: ProbeFailed."""
        if setup.path not in self._descriptions:
            self._probe(setup)
        return self._descriptions[setup.path]

    def forget(self, path: Path) -> None:
        """Unload a file."""
        for key in [key for key in self._open if key[0] == path]:
            self._open.pop(key).close()

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _ask(self, setup: Setup, command: protocol.Command, expected: type[Answer]) -> Answer:
        try:
            return self._probe(setup).ask(command, expected)
        except ProbeFailed as exc:
            exc.path = setup.path
            self.forget(setup.path)
            raise

    def _probe(self, setup: Setup) -> Probe:
        key = setup.loaded_as
        if key in self._open:
            return self._open[key]
        while len(self._open) >= self.capacity:
            oldest = next(iter(self._open))
            self._open.pop(oldest).close()
        probe = self._open[key] = Probe()
        opening = protocol.Open(
            path=str(setup.path),
            threads=setup.threads,
            pool_tokens=POOL_TOKENS,
            slots=SLOTS,
            batch_tokens=BATCH_TOKENS,
            kv_format=setup.kv_format,
        )
        self._descriptions[setup.path] = probe.ask(opening, protocol.Opened).description
        return probe
