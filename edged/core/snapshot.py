"""A frozen look at an engine."""

from dataclasses import dataclass
from enum import StrEnum


class EngineState(StrEnum):
    """What a model's worker is doing; an unloaded one is loaded by the next request."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """A frozen, advisory look at one engine. Rates are the worker's own, in tokens per second; None = not yet known.

    ``load_wait_s`` is how long a request would wait until a model that loads on demand is there; None where it is
    there, or where waiting is of no use. ``last_load_s`` and ``median_load_s`` are measured cold loads.
    """

    state: EngineState
    slots: int = 0
    running: int = 0
    waiting: int = 0
    context_tokens: int = 0
    queued_prompt_tokens: int = 0
    prefill_tps: float | None = None
    decode_tps: float | None = None
    load_wait_s: float | None = None
    last_load_s: float | None = None
    median_load_s: float | None = None
    host_pressure: bool = False
