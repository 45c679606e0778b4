"""The schema that a request asks its answer to have, read for what kind of answer that is; ``schema`` judges it."""

import json
from typing import Any

from edged.core import OutputFormat, OutputKind

MAX_CHARS = 65_536
"""Of a longer one nothing is told: reading it would hold up everybody."""


def definition(output: OutputFormat) -> str | None:
    """The schema's text; None where there is none, or it is too long."""
    is_schema = output.kind is OutputKind.JSON_SCHEMA and len(output.definition) <= MAX_CHARS
    return output.definition if is_schema else None


def parsed(definition: str) -> dict[str, Any] | None:
    """None where it is no JSON object."""
    try:
        schema = json.loads(definition)
    except (ValueError, RecursionError):
        return None
    return schema if isinstance(schema, dict) else None


def asked_schema(output: OutputFormat) -> dict[str, Any] | None:
    """Both in one."""
    text = definition(output)
    return None if text is None else parsed(text)
