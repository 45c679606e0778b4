"""When the local engine would answer, from its own numbers and what was learned of them."""

from dataclasses import dataclass

from edged.core import EngineSnapshot
from edged.routing.pace import Curve

EXPECTED_ANSWER_TOKENS = 128
"""The length assumed for an answer whose request sets no limit."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What the daemon knows beyond the worker's own rates: see ``pace.LocalPace`` and ``heat.Heat``.

    ``speed`` is the share of full speed that heat leaves. It applies to the curve alone: the worker's rates are those
    of its latest steps, slow already where the box is.
    """

    curve: Curve | None = None
    bias: float = 1.0
    speed: float = 1.0


NOTHING_LEARNED = Learned()


def predict_ttft_s(
    snapshot: EngineSnapshot, *, uncached_tokens: int, cached_tokens: int = 0, learned: Learned = NOTHING_LEARNED
) -> float | None:
    """Seconds until a newcomer's first token: everyone's prompts before it, then its own. None until measured.

    A token deep in a context costs more than one at its beginning, so a curve, where there is one, goes before the
    worker's single rate.
    """
    raw_s = raw_wait_s(snapshot, uncached_tokens=uncached_tokens, cached_tokens=cached_tokens, learned=learned)
    return None if raw_s is None else raw_s * learned.bias


def raw_wait_s(
    snapshot: EngineSnapshot, *, uncached_tokens: int, cached_tokens: int, learned: Learned = NOTHING_LEARNED
) -> float | None:
    """The prediction before its bias, which is learned from it."""
    own_s = _prefill_s(snapshot, learned, cached_tokens, uncached_tokens)
    if own_s is None:
        return None
    queued_s = _queued_s(snapshot, learned)
    return own_s + queued_s + _slot_wait_s(snapshot)


def _prefill_s(snapshot: EngineSnapshot, learned: Learned, start_tokens: int, tokens: int) -> float | None:
    if learned.curve is not None:
        return learned.curve.prefill_s(start_tokens, tokens) / learned.speed
    return tokens / snapshot.prefill_tps if snapshot.prefill_tps else None


def _queued_s(snapshot: EngineSnapshot, learned: Learned) -> float:
    """Prompts in front: how many they are is known, how long each is not; they are taken to be of one length."""
    tokens = snapshot.queued_prompt_tokens
    if learned.curve is not None:
        each_tokens = tokens / max(1, snapshot.waiting)
        return tokens * (learned.curve.base_s + learned.curve.slope_s * each_tokens / 2) / learned.speed
    return tokens / snapshot.prefill_tps if snapshot.prefill_tps else 0.0


def _slot_wait_s(snapshot: EngineSnapshot) -> float:
    """Time until a slot is free, when all are taken: the mean rest of an expected answer, per request in front."""
    if snapshot.running < snapshot.slots or not snapshot.decode_tps:
        return 0.0
    rest_s = EXPECTED_ANSWER_TOKENS / 2 / snapshot.decode_tps
    return rest_s * (1 + snapshot.waiting / max(snapshot.slots, 1))


def predict_total_s(snapshot: EngineSnapshot, *, ttft_s: float, answer_tokens: int | None) -> float | None:
    """Seconds until the whole answer is there. None until measured."""
    if not snapshot.decode_tps:
        return None
    return ttft_s + (answer_tokens or EXPECTED_ANSWER_TOKENS) / snapshot.decode_tps
