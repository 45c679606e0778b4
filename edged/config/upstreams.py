"""``[[upstream]]``: providers and their prices."""

from datetime import date
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from edged.config.openrouter import OpenRouterConfig
from edged.config.secrets import SecretReference, check_reference
from edged.config.section import Name, Seconds, Section, refuse_duplicates
from edged.core import Trust


class UpstreamModelConfig(Section):
    """``[[upstream.model]]``: prices in dollars per million tokens, as providers publish them.

    ``vision``, ``tools`` and ``json_schema`` say what the model can do; it is not asked for anything else.
    """

    name: str = Field(min_length=1, max_length=200)
    context_tokens: int = Field(default=8192, ge=16)
    max_output_tokens: int = Field(default=4096, ge=1, le=10_000_000)
    vision: bool = False
    tools: bool = True
    json_schema: bool = True
    input_usd_per_mtok: float = Field(ge=0, le=10_000)
    output_usd_per_mtok: float = Field(ge=0, le=10_000)
    cached_input_usd_per_mtok: float | None = Field(default=None, ge=0, le=10_000)
    cache_write_usd_per_mtok: float | None = Field(default=None, ge=0, le=10_000)
    prices_as_of: date | None = None


class UpstreamConfig(Section):
    """``[[upstream]]``"""

    name: Name
    kind: Literal["openai", "anthropic"] = "openai"
    base_url: str = Field(pattern=r"^https?://[^\s/@]+(/[^\s?#@]*)?$")
    api_key: SecretReference | None = None
    trust: Trust = Trust.CLOUD
    connect_timeout_s: Seconds = 3.0
    first_token_timeout_s: Seconds = 10.0
    idle_timeout_s: Seconds = 30.0
    expected_ttft_s: Seconds = 0.3
    expected_tokens_per_s: float = Field(default=50.0, gt=0, le=100_000)
    max_response_bytes: int = Field(default=33_554_432, ge=1_024)
    openrouter: OpenRouterConfig | None = None
    models: tuple[UpstreamModelConfig, ...] = Field(alias="model", min_length=1)

    @field_validator("api_key")
    @classmethod
    def _key_is_a_reference(cls, value: str | None) -> str | None:
        return None if value is None else check_reference(value)

    @model_validator(mode="after")
    def _openrouter_speaks_openai(self) -> Self:
        if self.openrouter is not None and self.kind != "openai":
            raise ValueError(f'openrouter: needs kind = "openai", not "{self.kind}"')
        return self

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        refuse_duplicates([model.name for model in self.models], "model")
        return self
