"""What has been measured so far, beside the model: an interrupted optimization goes on from it."""

from pathlib import Path

import msgspec

from edged.catalogue.store import read_record, write_record

_LIMIT_BYTES = 16 * 1024 * 1024


class Key(msgspec.Struct, frozen=True):
    """What the measurements hold for; with any other they start anew."""

    source_sha256: str
    llama_cpp: str
    cpu: str
    plan: str


class Timing(msgspec.Struct, frozen=True, array_like=True):
    """One request: seconds of prefill and of decode, resident memory after it."""

    prefill_s: float
    decode_s: float
    resident_bytes: int

    @property
    def total_s(self) -> float:
        return self.prefill_s + self.decode_s


class Pair(msgspec.Struct, frozen=True, array_like=True):
    """Two timings taken one right after the other, so that whatever else the box did hit both."""

    before: Timing
    after: Timing


Scores = dict[str, list[tuple[float, ...]]]
"""By task, by question: the score of each option."""


class Trial(msgspec.Struct):
    """One thing compared with the published file, or one setting with the usual one.

    ``problem`` says why it was skipped or failed; ``done`` that nothing is left to measure.
    """

    bytes: int = 0
    sha256: str = ""
    pairs: list[Pair] = []
    scores: Scores = {}
    skipped: bool = False
    problem: str | None = None
    done: bool = False


class State(msgspec.Struct):
    """Everything measured, on so many threads of so many usable cores; ``began_at`` is Unix time, a label."""

    key: Key
    began_at: float = 0.0
    threads: int = 0
    cores: int = 0
    published: Scores = {}
    formats: dict[str, Trial] = {}
    settings: dict[str, Trial] = {}


def load(path: Path, key: Key) -> State:
    """What was measured under the same key, else a blank state."""
    record = read_record(path, limit_bytes=_LIMIT_BYTES)
    try:
        state = msgspec.convert(record, State)
    except msgspec.ValidationError:
        return State(key)
    return state if state.key == key else State(key)


def save(path: Path, state: State) -> None:
    """Replace the file at once or not at all. Raises: OSError."""
    write_record(path, msgspec.to_builtins(state))
