"""JSON schemas that clients send: bounded, free of cycles, satisfiable. Pure; everything here walks without recursion.

What a grammar can express of a schema is judged where it is compiled; here is what no compiler should be asked.
An error names the place: ``response_format.json_schema.schema.properties.city.enum``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edged.errors import InvalidRequest, Unsupported

MAX_BYTES = 131_072
MAX_DEPTH = 32
MAX_SUBSCHEMAS = 5_000
MAX_PROPERTIES = 1_000
MAX_ENUM_VALUES = 1_000
MAX_REQUIRED_COUNT = 65_536
"""The longest ``minLength`` or ``minItems``: more than an answer could hold."""
MAX_COUNT = 2**31 - 1
MAX_MULTIPLE = 10_000
"""A grammar counts remainders: the largest ``multipleOf`` whose grammar compiles in no time."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLES = (
    "additionalProperties",
    "items",
    "additionalItems",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
)
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties", "minContains")
_DYNAMIC = ("$dynamicRef", "$recursiveRef")
_SHOWN_CHARACTERS = 40

Schema = Mapping[str, Any] | bool


@dataclass(slots=True)
class Allowance:
    """What is left of the limits; shared by all schemas of one request."""

    bytes: int = MAX_BYTES
    properties: int = MAX_PROPERTIES
    enum_values: int = MAX_ENUM_VALUES


@dataclass(slots=True, eq=False)
class _Node:
    """One subschema with its place; ``children`` by the keyword they stand under."""

    schema: Schema
    place: str
    depth: int
    children: dict[str, "list[_Node]"] = field(default_factory=dict)
    target: "_Node | None" = None


def check(schema: Any, place: str, allowance: Allowance | None = None) -> None:
    """Judge a client's schema; ``place`` is the field it came in.

    Raises: InvalidRequest, or Unsupported where the schema is sound but beyond what edged does.
    """
    allowance = allowance or Allowance()
    if not isinstance(schema, dict):
        raise _wrong(place, "must be a JSON schema, which is an object")
    allowance.bytes -= len(json.dumps(schema, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if allowance.bytes < 0:
        raise _wrong(place, f"is too large: all schemas of a request together may have {MAX_BYTES} bytes")
    nodes = _collect(schema, place)
    for node in nodes:
        _check_node(node, allowance)
    _resolve(schema, nodes, place)
    _check_cycles(nodes)
    _check_satisfiable(nodes)


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with every object that declares properties closed to others, unless it says or combines otherwise.

    A small model asked for ``{"city": ...}`` with the door open goes on inventing properties. What the closed schema
    takes the original takes too. Schemas with ``allOf`` stay as they are: there one part's properties are another's
    additional ones.
    """
    copy: dict[str, Any] = json.loads(json.dumps(schema))
    nodes = _collect(copy, "")
    if any("allOf" in node.schema for node in nodes if isinstance(node.schema, dict)):
        return copy
    for node in nodes:
        if isinstance(node.schema, dict) and _closable(node.schema):
            node.schema["additionalProperties"] = False
    return copy


_OPENERS = frozenset(
    {"additionalProperties", "patternProperties", "unevaluatedProperties", "anyOf", "oneOf", "$ref", "minProperties"}
)


def _closable(schema: dict[str, Any]) -> bool:
    properties = schema.get("properties")
    if schema.get("type") != "object" or not properties or _OPENERS & schema.keys():
        return False
    return set(schema.get("required") or ()) <= set(properties)


# -- the walk --------------------------------------------------------------------------------------------------------


def _collect(schema: Schema, place: str) -> list[_Node]:
    """Every subschema, the root first. Raises: InvalidRequest where something stands in a schema's place."""
    nodes = [_Node(schema, place, 1)]
    for node in nodes:  # grows while we walk
        if isinstance(node.schema, bool):
            continue
        if node.depth > MAX_DEPTH:
            raise _wrong(place, f"is nested more than {MAX_DEPTH} levels deep")
        if len(nodes) > MAX_SUBSCHEMAS:
            raise _wrong(place, f"holds more than {MAX_SUBSCHEMAS} schemas")
        for keyword, child, child_place in _subschemas(node.schema, node.place):
            if not isinstance(child, dict | bool):
                raise _wrong(child_place, "must be a schema: an object, true or false")
            below = _Node(child, child_place, node.depth + 1)
            node.children.setdefault(keyword, []).append(below)
            nodes.append(below)
    return nodes


def _subschemas(schema: Mapping[str, Any], place: str) -> Iterator[tuple[str, Any, str]]:
    for keyword in _MAPS:
        group = schema.get(keyword, {})
        if not isinstance(group, dict):
            raise _wrong(f"{place}.{keyword}", "must be an object")
        yield from ((keyword, child, f"{place}.{keyword}.{_shown(name)}") for name, child in group.items())
    for keyword in _LISTS:
        if keyword in schema:
            yield from _listed(schema[keyword], keyword, f"{place}.{keyword}")
    for keyword in _SINGLES:
        if isinstance(schema.get(keyword), list) and keyword == "items":  # drafts before 2020-12
            yield from _listed(schema[keyword], "prefixItems", f"{place}.{keyword}")
        elif keyword in schema:
            yield keyword, schema[keyword], f"{place}.{keyword}"


def _listed(group: Any, keyword: str, place: str) -> Iterator[tuple[str, Any, str]]:
    if not isinstance(group, list) or not group:
        raise _wrong(place, "must be an array with at least one schema")
    yield from ((keyword, child, f"{place}[{index}]") for index, child in enumerate(group))


# -- one subschema ---------------------------------------------------------------------------------------------------


def _check_node(node: _Node, allowance: Allowance) -> None:
    schema, place = node.schema, node.place
    if isinstance(schema, bool):
        return
    allowance.properties -= len(node.children.get("properties", ()))
    if allowance.properties < 0:
        text = f"has too many properties: all schemas of a request together may have {MAX_PROPERTIES}"
        raise _wrong(f"{place}.properties", text)
    if "enum" in schema:
        _check_enum(schema["enum"], f"{place}.enum", allowance)
    for keyword in _COUNTS:
        if keyword in schema:
            _check_count(keyword, schema[keyword], f"{place}.{keyword}")
    multiple = schema.get("multipleOf", 1)
    if type(multiple) not in (int, float) or not 0 < multiple <= MAX_MULTIPLE:
        raise _wrong(f"{place}.multipleOf", f"must be a number over 0, at most {MAX_MULTIPLE}")
    required = schema.get("required", [])
    if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
        raise _wrong(f"{place}.required", "must be an array of property names")
    for keyword in _DYNAMIC:
        if keyword in schema:
            raise Unsupported(f"{place}.{keyword} is not supported: use $ref", param=f"{place}.{keyword}")


def _check_enum(values: Any, place: str, allowance: Allowance) -> None:
    if not isinstance(values, list) or not values:
        raise _wrong(place, "must be an array with at least one value: nothing satisfies an empty one")
    allowance.enum_values -= len(values)
    if allowance.enum_values < 0:
        raise _wrong(place, f"has too many values: all enums of a request together may have {MAX_ENUM_VALUES}")


def _check_count(keyword: str, count: Any, place: str) -> None:
    most = MAX_REQUIRED_COUNT if keyword.startswith("min") else MAX_COUNT
    if type(count) is not int or not 0 <= count <= most:
        raise _wrong(place, f"must be a whole number from 0 to {most}")


# -- references ------------------------------------------------------------------------------------------------------


def _resolve(schema: Schema, nodes: Sequence[_Node], place: str) -> None:
    """Find every ``$ref``'s target among the nodes of its own document; nothing else is ever fetched."""
    by_identity = {id(node.schema): node for node in nodes if isinstance(node.schema, dict)}
    for node in nodes:
        if isinstance(node.schema, bool) or "$ref" not in node.schema:
            continue
        ref, where = node.schema["$ref"], f"{node.place}.$ref"
        if not isinstance(ref, str) or not ref.startswith("#"):
            raise _wrong(where, 'must point inside the schema, as "#/$defs/name" does: nothing is fetched')
        found = _pointed(schema, ref.removeprefix("#"))
        node.target = by_identity.get(id(found))
        if node.target is None and isinstance(found, bool):
            node.target = _Node(found, node.place, node.depth)
        if node.target is None:
            raise _wrong(where, f"points at no schema of {place}")


def _pointed(document: Any, pointer: str) -> Any:
    """What a JSON pointer finds (RFC 6901), or None."""
    if pointer and not pointer.startswith("/"):
        return None
    for step in pointer.split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(document, dict):
            document = document.get(key)
        elif isinstance(document, list) and key.isdecimal() and int(key) < len(document):
            document = document[int(key)]
        else:
            return None
    return document


def _check_cycles(nodes: Sequence[_Node]) -> None:
    """Refuse references that lead back to themselves without reading any of the answer (A -> B -> A)."""
    done: set[_Node] = set()
    for start in nodes:
        path: dict[_Node, None] = {}
        stack = [(start, False)]
        while stack:
            node, leaving = stack.pop()
            if leaving:
                path.pop(node)
                done.add(node)
            elif node in path:
                raise _wrong(start.place, "holds a $ref that leads back to itself without describing anything")
            elif node not in done:
                path[node] = None
                stack.append((node, True))
                stack += [(below, False) for below in _not_consuming(node)]


def _not_consuming(node: _Node) -> list[_Node]:
    """The schemas that speak of the very same value."""
    below = [child for keyword in ("allOf", "anyOf", "oneOf") for child in node.children.get(keyword, ())]
    return [*below, node.target] if node.target else below


def _check_satisfiable(nodes: Sequence[_Node]) -> None:
    """Refuse a schema that no finite value satisfies: the least fixed point of "some value of this is known"."""
    known: set[_Node] = set()
    waiting: dict[_Node, list[_Node]] = {}
    for node in nodes:
        for below in (*(child for group in node.children.values() for child in group), node.target):
            if below is not None:
                waiting.setdefault(below, []).append(node)
    queue = [*(node.target for node in nodes if node.target), *nodes]  # taken from the end: children before parents
    while queue:
        node = queue.pop()
        if node not in known and _has_value(node, known):
            known.add(node)
            queue += waiting.get(node, ())
    if nodes[0] not in known:
        raise _wrong(nodes[0].place, "cannot be satisfied by any finite value")


def _has_value(node: _Node, known: set[_Node]) -> bool:
    schema = node.schema
    if isinstance(schema, bool):
        return schema
    if node.target is not None and node.target not in known:
        return False
    if not all(child in known for child in node.children.get("allOf", ())):
        return False
    for keyword in ("anyOf", "oneOf"):
        if keyword in node.children and not any(child in known for child in node.children[keyword]):
            return False
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    return any(_has_value_of(kind, node, known) for kind in kinds)


def _has_value_of(kind: object, node: _Node, known: set[_Node]) -> bool:
    """Objects need all required properties, arrays their first items; other kinds need nothing."""
    schema = node.schema
    assert isinstance(schema, dict)
    if kind == "object":
        declared = dict(zip(schema.get("properties") or (), node.children.get("properties", ()), strict=True))
        return all(declared[name] in known for name in schema.get("required", ()) if name in declared)
    if kind == "array":
        least = schema.get("minItems", 0)
        first = node.children.get("prefixItems", [])[:least]
        rest = node.children.get("items", []) if least > len(first) else []
        return all(child in known for child in (*first, *rest))
    return True


# -- wording ---------------------------------------------------------------------------------------------------------


def _wrong(place: str, must: str) -> InvalidRequest:
    return InvalidRequest(f"{place} {must}", param=place, code="invalid_json_schema")


def _shown(name: str) -> str:
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
