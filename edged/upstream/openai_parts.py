"""The parts of an OpenAI answer that need care: strict JSON, usage, cost, log-probabilities, split surrogates."""

import json
from collections.abc import Mapping
from typing import NoReturn

from edged.core import Token, Usage
from edged.upstream.pricing import usd_to_uusd

_MOST_TOKENS = 1_000_000_000
_MOST_USD = 1_000_000
_LARGEST = 1e300  # also keeps out infinity, NaN and integers beyond a float


class Malformed(ValueError):
    """The provider's JSON is not what its API promises; the message names the part, never its content."""


def parse_json(text: str) -> object:
    """Read JSON, refusing NaN and nesting that exhausts the stack (C12, C13). Raises: Malformed."""
    try:
        value: object = _JSON.decode(text)
    except (ValueError, RecursionError):
        raise Malformed("not JSON") from None
    return value


def _refuse_constant(_: str) -> NoReturn:
    raise Malformed("not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def as_object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not an object")
    return value


def as_list(value: object, what: str) -> list[object]:
    """A list; a missing or null one is empty."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Malformed(f"{what} is not a list")
    return value


def as_text(value: object, what: str) -> str:
    """A string; a missing or null one is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{what} is not a string")
    return value


def as_integer(value: object, what: str) -> int:
    """An integer, which a boolean is not."""
    if type(value) is not int:
        raise Malformed(f"{what} is not an integer")
    return value


def as_number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise Malformed(f"{what} is not a number")
    return float(value)


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
    reasoning = _detail(wire, "completion_tokens_details", "reasoning_tokens") or 0
    total = _count(wire.get("total_tokens")) or 0
    if reasoning > completion or (reasoning and total == prompt + completion + reasoning):
        completion += reasoning
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=max(completion, total - prompt),
        cached_tokens=min(cached, prompt),
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


# -- text ------------------------------------------------------------------------------------------------------------


class SurrogateJoin:
    """Joins UTF-16 pairs that a provider split over two deltas; a half without its other half becomes U+FFFD (C11)."""

    def __init__(self) -> None:
        self._half = ""

    def join(self, text: str) -> str:
        """The text with what was held before; holds back a trailing high half."""
        text, self._half = self._half + text, ""
        if text.isascii():
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return _repaired(text)

    def flush(self) -> str:
        """What is still held, once no more text comes."""
        half, self._half = self._half, ""
        return _repaired(half)


def _repaired(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
