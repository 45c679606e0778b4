"""``[[api_key]]``: who may ask, by name, and what for."""

from collections.abc import Sequence

from pydantic import Field, field_validator

from edged.config.secrets import Secret, SecretReference, check_reference, resolve_secret
from edged.config.section import Name, Section
from edged.core import Locality
from edged.errors import ConfigError


class ApiKeyConfig(Section):
    """``[[api_key]]``: ``name`` is what the ledger, metrics and budgets call its owner; ``routes`` empty = all."""

    name: Name
    key: SecretReference
    usd_per_day: float | None = Field(default=None, ge=0, le=1_000_000)
    locality: Locality = Locality.ANY
    routes: tuple[str, ...] = ()

    _key_is_a_reference = field_validator("key")(check_reference)


def named_secrets(keys: Sequence[ApiKeyConfig]) -> dict[str, Secret]:
    """The secrets by their keys' names. Raises: ConfigError where one cannot be read or two keys share one."""
    found: dict[str, Secret] = {}
    names: dict[str, str] = {}
    for key in keys:
        found[key.name] = secret = resolve_secret(key.key)
        if (other := names.setdefault(secret.reveal(), key.name)) != key.name:
            raise ConfigError(f'api_key "{key.name}" has the same secret as "{other}": whose money would it be?')
    return found
