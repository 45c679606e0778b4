"""Answer forms that leave a few texts to choose from."""

import json

import pytest

from edged.chat.closed import MAX_ANSWER_CHARS, MAX_ANSWERS, closed
from edged.core import OutputFormat, OutputKind

ENUM = {"type": "string", "enum": ["a", 'b "c"', "ü"]}


def of(schema):
    return closed(OutputFormat(OutputKind.JSON_SCHEMA, json.dumps(schema)))


def an_object(schema, **more):
    return {"type": "object", "properties": {"x": schema}, "required": ["x"], **more}


@pytest.mark.parametrize(
    ("schema", "values"),
    [
        (ENUM, ENUM["enum"]),
        ({"enum": ["a", "b"]}, ["a", "b"]),
        ({"type": "boolean"}, [True, False]),
        (an_object(ENUM), [{"x": value} for value in ENUM["enum"]]),
        (an_object({"type": "boolean"}, additionalProperties=False), [{"x": True}, {"x": False}]),
        (an_object({"type": "boolean", "description": "is it?"}, title="T"), [{"x": True}, {"x": False}]),
    ],
)
def test_every_answer_is_the_json_of_its_value(schema, values):
    """Opening and ending make the whole text, and each label stands for one of them."""
    found = of(schema)
    assert [json.loads(found.answer(place)) for place in range(len(values))] == values
    assert len(found.labels) == len(found.endings) == len(values)
    assert all(found.answer(place).startswith(found.opening.strip()) for place in range(len(values)))
    assert found.most_bytes == max(len(found.answer(place).encode()) for place in range(len(values)))


def test_only_what_tells_answers_apart_is_scored():
    """The end of the JSON too, where one label is the beginning of another."""
    assert of(an_object({"enum": ["play", "stop"]})).endings == ("play", "stop")
    assert of(an_object({"enum": ["play", "playlist"]})).endings == ('play"}', 'playlist"}')
    assert of({"type": "boolean"}).endings == ("true", "false")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "string", "enum": ["only"]},
        {"type": "string", "enum": ["a", "a"]},
        {"type": "string", "enum": ["a", ""]},
        {"enum": ["a", 1]},
        {"enum": [True, False]},
        {"type": "string", "enum": ["a", "b"], "minLength": 2},
        {"type": "string", "enum": [str(i) for i in range(MAX_ANSWERS + 1)]},
        {"type": "string", "enum": ["a", "x" * (MAX_ANSWER_CHARS + 1)]},
        {"type": ["string", "null"], "enum": ["a", "b"]},
        {"type": "object", "properties": {"x": ENUM}},
        {"type": "object", "properties": {"x": ENUM, "y": ENUM}, "required": ["x", "y"]},
        an_object(ENUM, minProperties=1),
        an_object(ENUM, additionalProperties={"type": "string"}),
        an_object(an_object(ENUM)),
        an_object({"$ref": "#/$defs/x"}, **{"$defs": {"x": ENUM}}),
        {"anyOf": [ENUM, {"type": "boolean"}]},
        {},
    ],
)
def test_whatever_leaves_more_to_say_is_generated(schema):
    """Anything but an enum of strings, a boolean, or an object with exactly one required such property."""
    assert of(schema) is None


def test_other_formats_have_no_closed_set():
    """Text, objects without a schema, and a schema that is none."""
    assert closed(OutputFormat()) is None
    assert closed(OutputFormat(OutputKind.JSON_OBJECT)) is None
    assert closed(OutputFormat(OutputKind.JSON_SCHEMA, "[")) is None
    assert closed(OutputFormat(OutputKind.JSON_SCHEMA, "[" * 30_000)) is None
