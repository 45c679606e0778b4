"""``[[upstream]]``: providers and their prices."""

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from edged.config.secrets import SecretReference, check_reference
from edged.config.section import Name, Seconds, Section, refuse_duplicates


class UpstreamModelConfig(Section):
    """``[[upstream.model]]``: prices in dollars per million tokens, as providers publish them."""

    name: str = Field(min_length=1, max_length=200)
    context_tokens: int = Field(default=8192, ge=16)
    input_usd_per_mtok: float = Field(ge=0, le=10_000)
    output_usd_per_mtok: float = Field(ge=0, le=10_000)
    cached_input_usd_per_mtok: float | None = Field(default=None, ge=0, le=10_000)


class UpstreamConfig(Section):
    """``[[upstream]]``"""

    name: Name
    kind: Literal["openai"] = "openai"
    base_url: str = Field(pattern=r"^https?://[^\s/@]+(/[^\s?#@]*)?$")
    api_key: SecretReference | None = None
    connect_timeout_s: Seconds = 3.0
    first_token_timeout_s: Seconds = 10.0
    idle_timeout_s: Seconds = 30.0
    max_response_bytes: int = Field(default=33_554_432, ge=1_024)
    models: tuple[UpstreamModelConfig, ...] = Field(alias="model", min_length=1)

    @field_validator("api_key")
    @classmethod
    def _key_is_a_reference(cls, value: str | None) -> str | None:
        return None if value is None else check_reference(value)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        refuse_duplicates([model.name for model in self.models], "model")
        return self
