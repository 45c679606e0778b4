"""The parts of an OpenAI answer that need care: usage, cost, log-probabilities."""

from collections.abc import Mapping

from edged.core import Token, Usage
from edged.upstream.pricing import usd_to_uusd
from edged.upstream.wire import Malformed, as_integer, as_list, as_number, as_object, as_text

_MOST_TOKENS = 1_000_000_000
_MOST_USD = 1_000_000


# -- usage and cost --------------------------------------------------------------------------------------------------


def read_usage(wire: Mapping[str, object]) -> Usage | None:
    """Tokens as the provider counts them, or None where the numbers are no counts.

    Cached and reasoning tokens are parts of prompt and completion. Some providers count reasoning beside the
    completion instead; then the total says so, and it is added, so that no count is below the provider's own.
    """
    prompt, completion = _count(wire.get("prompt_tokens")), _count(wire.get("completion_tokens"))
    if prompt is None or completion is None:
        return None
    cached = _detail(wire, "prompt_tokens_details", "cached_tokens") or _count(wire.get("prompt_cache_hit_tokens")) or 0
    written = _detail(wire, "prompt_tokens_details", "cache_write_tokens") or 0
    reasoning = _detail(wire, "completion_tokens_details", "reasoning_tokens") or 0
    total = _count(wire.get("total_tokens")) or 0
    if reasoning > completion or (reasoning and total == prompt + completion + reasoning):
        completion += reasoning
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=max(completion, total - prompt),
        cached_tokens=min(cached, prompt),
        cache_write_tokens=min(written, prompt),
        reasoning_tokens=reasoning,
    )


def read_cost_uusd(wire: Mapping[str, object]) -> int | None:
    """The provider's own cost figure (OpenRouter's ``usage.cost``), plus what an own key behind it paid."""
    cost_usd = _usd(wire.get("cost"))
    if cost_usd is None:
        return None
    cost_uusd = usd_to_uusd(cost_usd)
    details = wire.get("cost_details")
    if wire.get("is_byok") is True and isinstance(details, Mapping):
        cost_uusd += usd_to_uusd(_usd(details.get("upstream_inference_cost")) or 0)
    return cost_uusd


def _count(value: object) -> int | None:
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None


def _detail(wire: Mapping[str, object], group: str, name: str) -> int | None:
    details = wire.get(group)
    return _count(details.get(name)) if isinstance(details, Mapping) else None


def _usd(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 <= value <= _MOST_USD else None


# -- log-probabilities -----------------------------------------------------------------------------------------------


def read_logprobs(value: object) -> tuple[Token, ...]:
    """Tokens of a choice's ``logprobs``: chat's ``content`` list or the parallel lists of plain completions."""
    if value is None:
        return ()
    wire = as_object(value, "logprobs")
    if "content" in wire or "refusal" in wire:
        return tuple(_chat_token(as_object(item, "a logprob")) for item in as_list(wire.get("content"), "logprobs"))
    return _completion_tokens(wire)


def _chat_token(wire: Mapping[str, object]) -> Token:
    alternatives = [as_object(item, "a top logprob") for item in as_list(wire.get("top_logprobs"), "top_logprobs")]
    top = [(_piece(item), as_number(item.get("logprob"), "logprob")) for item in alternatives]
    return _token(_piece(wire), as_number(wire.get("logprob"), "logprob"), top)


def _completion_tokens(wire: Mapping[str, object]) -> tuple[Token, ...]:
    pieces = as_list(wire.get("tokens"), "tokens")
    logprobs = as_list(wire.get("token_logprobs"), "token_logprobs")
    tops = as_list(wire.get("top_logprobs"), "top_logprobs") or [None] * len(pieces)
    if not len(pieces) == len(logprobs) == len(tops):
        raise Malformed("logprobs lists differ in length")
    return tuple(
        _token(_encode(as_text(piece, "a token")), as_number(logprob, "logprob"), _top_map(top))
        for piece, logprob, top in zip(pieces, logprobs, tops, strict=True)
        if logprob is not None
    )


def _top_map(value: object) -> list[tuple[bytes, float]]:
    if value is None:
        return []
    wire = as_object(value, "top_logprobs")
    return [(_encode(piece), as_number(logprob, "logprob")) for piece, logprob in wire.items()]


def _token(piece: bytes, logprob: float, top: list[tuple[bytes, float]]) -> Token:
    ranked = sorted(top, key=lambda pair: -pair[1])
    margin = ranked[0][1] - ranked[1][1] if len(ranked) > 1 else None
    return Token(piece, logprob, margin=margin, top=tuple(ranked))


def _piece(wire: Mapping[str, object]) -> bytes:
    """The token's bytes: ``bytes`` where given, since ``token`` cannot spell half a character."""
    numbers = wire.get("bytes")
    if numbers is None:
        return _encode(as_text(wire.get("token"), "token"))
    try:
        return bytes(as_integer(number, "bytes") for number in as_list(numbers, "bytes"))
    except ValueError:
        raise Malformed("bytes are not bytes") from None


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "replace")
