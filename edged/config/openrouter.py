"""``[upstream.openrouter]``: how OpenRouter chooses among the providers behind it.

A closed list of its documented preferences: a typo is an error here, not a preference that is silently not kept.
"""

from typing import Literal

from pydantic import Field

from edged.config.section import Section

_Slug = str
_Usd = float


class MaxPrice(Section):
    """``max_price``: dollars per million tokens, or per request or image, beyond which no provider is used."""

    prompt: _Usd | None = Field(default=None, ge=0)
    completion: _Usd | None = Field(default=None, ge=0)
    request: _Usd | None = Field(default=None, ge=0)
    image: _Usd | None = Field(default=None, ge=0)


class ProviderPreferences(Section):
    """``provider``: sent as it is, with the keys that were given."""

    order: tuple[_Slug, ...] | None = Field(default=None, max_length=50)
    only: tuple[_Slug, ...] | None = Field(default=None, max_length=50)
    ignore: tuple[_Slug, ...] | None = Field(default=None, max_length=50)
    allow_fallbacks: bool | None = None
    require_parameters: bool | None = None
    data_collection: Literal["allow", "deny"] | None = None
    zdr: bool | None = None
    sort: Literal["price", "throughput", "latency"] | None = None
    quantizations: tuple[str, ...] | None = Field(default=None, max_length=20)
    max_price: MaxPrice | None = None


class OpenRouterConfig(Section):
    """``[upstream.openrouter]``; ``models`` are asked, in order, where the model itself cannot answer."""

    provider: ProviderPreferences | None = None
    models: tuple[str, ...] = Field(default=(), max_length=20)
