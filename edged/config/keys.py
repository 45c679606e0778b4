"""``[[api_key]]``: who may ask, by name, and what for."""

from pydantic import Field, field_validator

from edged.config.secrets import SecretReference, check_reference
from edged.config.section import Name, Section
from edged.core import Locality


class ApiKeyConfig(Section):
    """``[[api_key]]``: ``name`` is what the ledger, metrics and budgets call its owner; ``routes`` empty = all."""

    name: Name
    key: SecretReference
    usd_per_day: float | None = Field(default=None, ge=0, le=1_000_000)
    locality: Locality = Locality.ANY
    routes: tuple[str, ...] = ()

    _key_is_a_reference = field_validator("key")(check_reference)
