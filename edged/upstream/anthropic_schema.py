"""JSON schemas as Anthropic's constrained decoding takes them: every object closed, no counts and ranges. Pure.

An object that does not say whether it may hold more members is closed: an answer to the closed schema is one to the
open schema too. What could only be widened (a range, an object that must stay open) is refused. The rules are those of
Anthropic's published client library.
"""

from collections.abc import Mapping

from edged.errors import Unsupported

_REFUSED = {
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength"),
    *("maxItems", "uniqueItems", "contains", "prefixItems", "minProperties", "maxProperties", "patternProperties"),
    *("propertyNames", "dependentSchemas", "dependentRequired", "not", "if", "then", "else", "oneOf"),
}
_MEMBERS = ("properties", "$defs", "definitions")
_LISTS = ("anyOf", "allOf")


def closed_schema(schema: Mapping[str, object], *, param: str) -> dict[str, object]:
    """A schema whose every answer satisfies ``schema``. Raises: Unsupported naming the keyword."""
    return {str(name): value for name, value in _object(schema, param).items()}


def _object(schema: Mapping[str, object], param: str) -> dict[str, object]:
    for name in schema:
        if name in _REFUSED:
            raise Unsupported(f"{param}: Anthropic's schemas have no {name}", param=param)
    if schema.get("minItems") not in (None, 0, 1):
        raise Unsupported(f"{param}: Anthropic's schemas have minItems of 0 and 1 only", param=param)
    closed = {name: _below(name, value, param) for name, value in schema.items()}
    if schema.get("type") == "object" or "properties" in schema:
        if schema.get("additionalProperties") not in (None, False):
            text = f"{param}: Anthropic's schemas have no open objects (additionalProperties)"
            raise Unsupported(text, param=param)
        closed["additionalProperties"] = False
    return closed


def _below(name: str, value: object, param: str) -> object:
    """The schemas inside a keyword's value; anything else as it is."""
    if name in _MEMBERS and isinstance(value, dict):
        return {member: _schema(inner, param) for member, inner in value.items()}
    if name in _LISTS and isinstance(value, list):
        return [_schema(inner, param) for inner in value]
    return _schema(value, param) if name == "items" else value


def _schema(value: object, param: str) -> object:
    return _object(value, param) if isinstance(value, dict) else value
