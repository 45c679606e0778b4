"""Schemas that clients send (D01, D03, D07): what is refused, and that the refusal names the place."""

import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.chat import schema as rules
from edged.chat.schema import Allowance, check, closed
from edged.errors import InvalidRequest, Unsupported

PLACE = "response_format.json_schema.schema"
TREE = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["name", "children"],
}


def refused(schema, kind=InvalidRequest):
    with pytest.raises(kind) as caught:
        check(schema, PLACE)
    return caught.value


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object"},
        TREE,
        {
            "$ref": "#/$defs/node",
            "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
        },
        {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"]},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False},
        {"type": "object", "properties": {"gone": False, "here": True}},
        {"definitions": {"a/b~c": {"type": "string"}}, "$ref": "#/definitions/a~1b~0c"},
        {"enum": [1, "two", None]},
        {"type": "string", "maxLength": 2**31 - 1},
        {"type": "array", "items": [{"type": "string"}]},
        {"type": ["object", "null"], "properties": {"again": {"$ref": "#"}}, "required": ["again"]},
    ],
)
def test_sound_schemas_pass(schema):
    """Legal recursion, which reads something of the answer at each turn, is legal."""
    check(schema, PLACE)


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"$ref": "#"}, ""),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, ""),
        ({"properties": {"x": {"$ref": "#/properties/x"}}}, ".properties.x"),
        ({"anyOf": [{"type": "string"}, {"$ref": "#"}]}, ""),
        ({"type": "object", "properties": {"x": {"allOf": [{"$ref": "#/properties/x"}]}}}, ".properties.x"),
    ],
)
def test_a_reference_that_reads_nothing_is_refused(schema, place):
    """A cycle of $ref with no consuming step would never end (D01)."""
    assert refused(schema).param == PLACE + place


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ({"enum": []}, ".enum"),
        ({"type": "object", "properties": {"a": {"enum": []}}}, ".properties.a.enum"),
        ({"type": "object", "properties": {"a": False}, "required": ["a"]}, ""),
        ({"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]}, ""),
        ({"allOf": [{"type": "string"}, False]}, ""),
        ({"anyOf": [False, False]}, ""),
        ({"type": "array", "minItems": 1, "items": False}, ""),
        ({"$ref": "#/$defs/never", "$defs": {"never": False}}, ""),
    ],
)
def test_what_nothing_can_satisfy_is_refused(schema, place):
    """An answer to it could only be wrong (D07)."""
    assert refused(schema).param == PLACE + place


@pytest.mark.parametrize(
    "ref",
    ["https://example.com/schema.json", "file:///etc/passwd", "other.json#/a", "#/nowhere", "#anchor", "#/type", 5],
)
def test_references_stay_inside_their_document(ref):
    """Nothing is ever fetched, from the network or from disk (D01)."""
    assert refused({"type": "object", "properties": {"a": {"$ref": ref}}}).param == f"{PLACE}.properties.a.$ref"


@pytest.mark.parametrize(
    ("schema", "place"),
    [
        ([], ""),
        (True, ""),
        ("string", ""),
        ({"properties": []}, ".properties"),
        ({"properties": {"a": 5}}, ".properties.a"),
        ({"anyOf": []}, ".anyOf"),
        ({"anyOf": {}}, ".anyOf"),
        ({"items": "string"}, ".items"),
        ({"items": [5]}, ".items[0]"),
        ({"required": "a"}, ".required"),
        ({"required": [1]}, ".required"),
        ({"maxLength": -1}, ".maxLength"),
        ({"maxLength": 2**31}, ".maxLength"),
        ({"maxLength": 1.5}, ".maxLength"),
        ({"maxItems": True}, ".maxItems"),
        ({"multipleOf": 0}, ".multipleOf"),
        ({"multipleOf": 10_001}, ".multipleOf"),
        ({"multipleOf": "2"}, ".multipleOf"),
        ({"minItems": 65_537}, ".minItems"),
        ({"enum": {"a": 1}}, ".enum"),
    ],
)
def test_what_is_no_schema_is_named(schema, place):
    """The message begins with the place, in the notation of the other errors."""
    error = refused(schema)
    assert error.param == PLACE + place
    assert error.message.startswith(error.param)


def test_limits_hold_for_all_schemas_of_a_request_together():
    """Many small schemas cost what one large one does."""
    for name, schema in {
        "properties": {"type": "object", "properties": {f"p{i}": {} for i in range(rules.MAX_PROPERTIES // 2 + 1)}},
        "enum": {"enum": list(range(rules.MAX_ENUM_VALUES // 2 + 1))},
        "bytes": {"description": "x" * (rules.MAX_BYTES // 2)},
    }.items():
        allowance = Allowance()
        check(schema, "tools[0].function.parameters", allowance)
        with pytest.raises(InvalidRequest) as caught:
            check(schema, "tools[1].function.parameters", allowance)
        assert str(caught.value.param).startswith("tools[1].function.parameters"), name
        assert "together" in caught.value.message


def test_depth_is_limited():
    """A schema as deep as the limit passes, one level more does not."""

    def nested(levels):
        return {"type": "array", "items": nested(levels - 1)} if levels > 1 else {"type": "string"}

    check(nested(rules.MAX_DEPTH), PLACE)
    assert f"{rules.MAX_DEPTH} levels" in refused(nested(rules.MAX_DEPTH + 1)).message


def test_dynamic_references_are_unsupported_rather_than_wrong():
    """They are sound JSON schema: another backend may know them."""
    refused({"type": "object", "properties": {"a": {"$dynamicRef": "#x"}}}, Unsupported)


def test_long_chains_of_references_are_judged_in_no_time():
    """Neither the stack nor the clock suffers from a chain as long as the size limit allows."""
    count = 2_000
    names = [f"d{(i * 7919) % count}" for i in range(count)]
    definitions = {name: {"$ref": f"#/$defs/{following}"} for name, following in itertools.pairwise(names)}
    definitions[names[-1]] = {"type": "string"}
    started_s = time.monotonic()
    check({"$ref": f"#/$defs/{names[0]}", "$defs": definitions}, PLACE)
    assert time.monotonic() - started_s < 2


ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from(["#", "#/$defs/a", "object", "array"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "properties",
                    "$ref",
                    "$defs",
                    "items",
                    "anyOf",
                    "allOf",
                    "enum",
                    "required",
                    "minItems",
                    "a",
                    "not",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=30,
)


@given(ANY_JSON)
def test_any_json_is_taken_or_refused(document):
    """Nothing a client sends as a schema raises anything but our own error."""
    try:
        check(document, PLACE)
    except InvalidRequest as error:
        assert str(error.param).startswith(PLACE)  # noqa: PT017 - either outcome is fine, another exception is not


# -- closing ---------------------------------------------------------------------------------------------------------


def test_objects_that_declare_properties_are_closed():
    """A small model does not invent properties nobody asked for; the original is left as it was."""
    original = {"type": "object", "properties": {"in": {"type": "object", "properties": {"a": {}}}}}
    before = json.dumps(original)
    made = closed(original)
    assert made["additionalProperties"] is False
    assert made["properties"]["in"]["additionalProperties"] is False
    assert json.dumps(original) == before


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": {}}, "additionalProperties": True},
        {"type": "object", "properties": {"a": {}}, "patternProperties": {"^x": {}}},
        {"type": "object", "properties": {"a": {}}, "required": ["b"]},
        {"type": "object", "properties": {"a": {}}, "anyOf": [{"required": ["a"]}]},
        {"allOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object", "properties": {"b": {}}}]},
        {"type": "object", "properties": {"a": {}}, "minProperties": 2},
    ],
)
def test_objects_that_may_need_more_stay_open(schema):
    """Closing never makes a schema stricter than what somebody wrote on purpose, nor unsatisfiable."""
    assert closed(schema) == schema
