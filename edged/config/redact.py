"""``[redact]``: what counts as personal data where a label says ``redact``."""

import re
from typing import Literal, Self

from pydantic import Field, model_validator

from edged.config.section import Section

Kind = Literal["email", "phone", "iban", "card", "ip", "name"]
KINDS: tuple[Kind, ...] = ("email", "phone", "iban", "card", "ip", "name")

_PATTERN_NAME = re.compile(r"[a-z](?:_?[a-z]){1,29}")
_MAX_PATTERN_CHARS = 1_000
_MAX_ENTRIES = 10_000
_REGION = re.compile(r"[A-Z]{2}")


class RedactConfig(Section):
    """``[redact]``: ``patterns`` are RE2 expressions, by the name their placeholders get; ``names`` are people's."""

    kinds: tuple[Kind, ...] = KINDS
    phone_regions: tuple[str, ...] = ("US", "GB", "DE")
    names: tuple[str, ...] = Field(default=(), max_length=_MAX_ENTRIES)
    patterns: dict[str, str] = Field(default={}, max_length=50)
    max_chars: int = Field(default=200_000, ge=1_000, le=20_000_000)

    @model_validator(mode="after")
    def _is_usable(self) -> Self:
        if wrong := [region for region in self.phone_regions if not _REGION.fullmatch(region)]:
            raise ValueError(f'phone_regions: "{wrong[0]}" is no region; write two capital letters, for example "DE"')
        if any(not name.strip() for name in self.names):
            raise ValueError("names: an empty name would match everywhere")
        for name, pattern in self.patterns.items():
            _check_pattern(name, pattern)
        return self


def _check_pattern(name: str, pattern: str) -> None:
    if not _PATTERN_NAME.fullmatch(name):
        raise ValueError(f'patterns: "{name}" must be 2 to 60 small letters, with single "_" between them')
    if name in KINDS:
        raise ValueError(f'patterns: "{name}" is the name of a built-in kind')
    if not 0 < len(pattern) <= _MAX_PATTERN_CHARS:
        raise ValueError(f"patterns.{name}: must have 1 to {_MAX_PATTERN_CHARS} characters")
