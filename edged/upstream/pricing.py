"""What an answer costs, in integer micro-dollars, always rounded up.

A price in dollars per million tokens is the same number in micro-dollars per token, so no float touches the money:
prices are read as the decimals the operator wrote. A provider's own cost figure travels in ``Chunk.cost_uusd``; this
table gives the second opinion, and the only one where the provider names none. Of a usage

    cost = (prompt - cached - cache_write) * input + cached * cached_input + cache_write * cache_write
         + completion * output

reasoning tokens are a part of the completion and cost what it costs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from decimal import ROUND_CEILING, Decimal

from edged.config import UpstreamConfig, UpstreamModelConfig
from edged.core import Chat, Request, Usage
from edged.errors import ModelNotFound

_LETTERS = re.compile(r"[A-Za-z ]+")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_LETTERS_PER_TOKEN = 3
_OTHER_BYTES_PER_TOKEN = 2
_TOKENS_PER_MESSAGE = 8
_TOKENS_PER_IMAGE = 5_000  # the most that a large image counts in the APIs that publish it
_CACHE_WRITE_FACTOR = Decimal("1.25")
"""What a provider that counts cache writes apart asks for them, in input tokens, where the config does not say."""


@dataclass(frozen=True, slots=True)
class Price:
    """Micro-dollars per token, as exact decimals."""

    input: Decimal
    output: Decimal
    cached_input: Decimal
    cache_write: Decimal

    @classmethod
    def of(cls, model: UpstreamModelConfig) -> "Price":
        """The configured price; without a price of their own cached tokens cost what any input costs."""
        full = _decimal(model.input_usd_per_mtok)
        cached, write = model.cached_input_usd_per_mtok, model.cache_write_usd_per_mtok
        return cls(
            input=full,
            output=_decimal(model.output_usd_per_mtok),
            cached_input=full if cached is None else _decimal(cached),
            cache_write=full * _CACHE_WRITE_FACTOR if write is None else _decimal(write),
        )

    def dearest_input(self, *, writes_caches: bool) -> Decimal:
        """The most an input token can cost; a cache write may cost more than a plain one."""
        return max(self.input, self.cached_input, self.cache_write if writes_caches else self.input)


class PriceTable:
    """Prices by (upstream, model). A model that is not in the table has no price, which is never zero."""

    def __init__(self, upstreams: Sequence[UpstreamConfig]) -> None:
        self._prices = {(u.name, m.name): Price.of(m) for u in upstreams for m in u.models}
        self._writes_caches = {(u.name, m.name): _writes_caches(u, m) for u in upstreams for m in u.models}

    def __repr__(self) -> str:
        return f"PriceTable(models={len(self._prices)})"

    def cost_uusd(self, upstream: str, model: str, usage: Usage) -> int:
        """Cost of what was used. Cached and reasoning tokens are part of prompt and completion: each counts once.

        Raises: ModelNotFound.
        """
        price = self._price(upstream, model)
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        written = min(usage.cache_write_tokens, usage.prompt_tokens - cached)
        fresh = usage.prompt_tokens - cached - written
        prompt = fresh * price.input + cached * price.cached_input + written * price.cache_write
        return _ceil(prompt + usage.completion_tokens * price.output)

    def worst_case_uusd(self, upstream: str, model: str, *, prompt_tokens: int, max_tokens: int, n: int = 1) -> int:
        """The most a call can cost: no cache hit, every choice as long as allowed. What a budget reserves.

        Raises: ModelNotFound.
        """
        price = self._price(upstream, model)
        dearest = price.dearest_input(writes_caches=self._writes_caches[upstream, model])
        return _ceil(prompt_tokens * dearest + n * max_tokens * price.output)

    def _price(self, upstream: str, model: str) -> Price:
        try:
            return self._prices[upstream, model]
        except KeyError:
            raise ModelNotFound(f'no price is known for "{upstream}/{model}"', param="model") from None


def _writes_caches(upstream: UpstreamConfig, model: UpstreamModelConfig) -> bool:
    """Whether answers may count cache writes apart: where a price is named for them, and with Anthropic's API."""
    return upstream.kind == "anthropic" or model.cache_write_usd_per_mtok is not None


def stale_prices(upstreams: Sequence[UpstreamConfig], *, today: date, after_days: int) -> Iterator[tuple[str, int]]:
    """``UPSTREAM/model`` and the age in days of every price that was read longer ago than that."""
    for upstream in upstreams:
        for model in upstream.models:
            age_days = 0 if model.prices_as_of is None else (today - model.prices_as_of).days
            if age_days > after_days:
                yield f"{upstream.name}/{model.name}", age_days


def usd_to_uusd(amount: float) -> int:
    """Dollars as a provider states them, to micro-dollars, rounded up."""
    return _ceil(_decimal(amount) * 1_000_000)


def estimate_tokens(text: str) -> int:
    """About how many tokens a text is, erring high: 3 letters or spaces, one other ASCII character, or 2 bytes each.

    Stands in only where a provider gives no count; no tokenizer of the local model fits a remote one.
    """
    if not text:
        return 0
    ascii_text = text if text.isascii() else _NOT_ASCII.sub("", text)
    other_bytes = 0 if ascii_text is text else len(text.encode("utf-8", "surrogatepass")) - len(ascii_text)
    signs = len(_LETTERS.sub("", ascii_text))
    letters = len(ascii_text) - signs
    return max(1, -(-letters // _LETTERS_PER_TOKEN) + signs - (-other_bytes // _OTHER_BYTES_PER_TOKEN))


def estimate_prompt_tokens(request: Request) -> int:
    """About how many tokens a request's prompt is for a remote model, erring high."""
    form = len(request.images) * _TOKENS_PER_IMAGE
    form += sum(estimate_tokens(repr(tool)) for tool in request.tools) + estimate_tokens(request.output.definition)
    if isinstance(request.input, Chat):
        return form + sum(_message_tokens(message.text, message.tool_calls) for message in request.input.messages)
    prompt = request.input.prompt
    return form + (estimate_tokens(prompt) if isinstance(prompt, str) else len(prompt))


def estimate_usage(request: Request, answer: str) -> Usage:
    """Usage of a call that ended without a count (cancelled, failed, or a provider that gives none), marked as such."""
    return Usage(
        prompt_tokens=estimate_prompt_tokens(request),
        completion_tokens=estimate_tokens(answer),
        estimated=True,
    )


def _message_tokens(text: str | None, tool_calls: Sequence[object]) -> int:
    calls = sum(estimate_tokens(repr(call)) for call in tool_calls)
    return _TOKENS_PER_MESSAGE + estimate_tokens(text or "") + calls


def _decimal(value: float) -> Decimal:
    return Decimal(repr(value))


def _ceil(amount: Decimal) -> int:
    return int(amount.to_integral_value(ROUND_CEILING))
