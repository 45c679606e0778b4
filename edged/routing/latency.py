"""When the local engine would answer, from its own numbers."""

from edged.core import EngineSnapshot

EXPECTED_ANSWER_TOKENS = 128
"""The length assumed for an answer whose request sets no limit."""


def predict_ttft_s(snapshot: EngineSnapshot, *, uncached_tokens: int) -> float | None:
    """Seconds until a newcomer's first token: everyone's prompts before it, then its own. None until measured."""
    if not snapshot.prefill_tps:
        return None
    prefill_s = (snapshot.queued_prompt_tokens + uncached_tokens) / snapshot.prefill_tps
    return prefill_s + _slot_wait_s(snapshot)


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
