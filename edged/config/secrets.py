"""Secrets by reference: never inline, never shown."""

import os
import re
from pathlib import Path

from edged.errors import ConfigError

_REFERENCE = re.compile(r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+|credential:[A-Za-z0-9._-]+)$")


class Secret:
    """A credential whose text never shows in a repr, a log line or an error."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one header it goes into."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"


def check_reference(value: str) -> str:
    """Accept ``env:NAME``, ``file:/path`` or ``credential:NAME``; refuse an inline secret without repeating it."""
    if not _REFERENCE.match(value):
        raise ValueError('must be "env:NAME", "file:/path" or "credential:NAME", never the key itself')
    return value


SecretReference = str


def resolve_secret(reference: str) -> Secret:
    """Read the secret behind a reference.

    Raises: ConfigError where the variable or file is missing or empty.
    """
    kind, _, rest = reference.partition(":")
    if kind == "env":
        text = os.environ.get(rest, "")
    else:
        path = Path(rest) if kind == "file" else Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / rest
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"cannot read the secret {reference}: {type(exc).__name__}") from exc
    if not text.strip():
        raise ConfigError(f"the secret {reference} is empty or not set")
    return Secret(text.strip())
