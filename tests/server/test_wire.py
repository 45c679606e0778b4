"""Rules of the JSON door: what is refused, how it is worded, and that nothing a client sends can break an encoder."""

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from edged.errors import Busy, InvalidRequest, Unsupported
from edged.server.wire import MAX_DEPTH, MAX_KEYS, MAX_VALUES, encode_json, error_body, parse_json, validate

NOT_JSON = [
    (b"", "is empty"),
    (b" \n", "is empty"),
    (b"[]", "must be a JSON object, not an array"),
    (b"null", "must be a JSON object, not null"),
    (b"5", "must be a JSON object, not a number"),
    (b'"text"', "must be a JSON object, not a string"),
    (b"true", "must be a JSON object, not a boolean"),
    (b"<html>", "is not valid JSON"),
    (b"{'a': 1}", "is not valid JSON"),
    (b'{"a": 1,}', "is not valid JSON"),
    (b'{"a": 1} {}', "is not valid JSON"),
    (b'{"a": 01}', "is not valid JSON"),
    (b'{"a": "\x00"}', "is not valid JSON"),
    (b'{"a": NaN}', "is not valid JSON"),
    (b'{"a": Infinity}', "is not valid JSON"),
    (b'{"a": -Infinity}', "is not valid JSON"),
    (b'{"a": 1e999}', "out of range"),
    (b'{"a": ' + b"9" * 5_000 + b"}", "out of range"),
    (b'{"a": ' * 500 + b"1e999" + b"}" * 500, "out of range"),
    (b'\xef\xbb\xbf{"a": 1}', "byte order mark"),
    ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
    ('{"a": 1}'.encode("utf-16-le"), "is not UTF-8"),
    ('{"a": 1}'.encode("utf-16-be"), "is not UTF-8"),
    ('{"a": 1}'.encode("utf-32"), "is not UTF-8"),
    (b'{"a": "\xff"}', "is not valid UTF-8"),
    (b'{"a": "\xed\xa0\xbd"}', "is not valid UTF-8"),
    (b'{"a": "\\ud83d"}', "half of a UTF-16 surrogate pair"),
    (b'{"a": "\\ud83d and much more text"}', "half of a UTF-16 surrogate pair"),
    (b'{"a": "\\ude00\\ud83d"}', "half of a UTF-16 surrogate pair"),
    (b'{"\\ud83d": 1, "b": "and much more text"}', "half of a UTF-16 surrogate pair"),
    (b'{"a": "\\ud83d\\ude00", "b": ', "is not valid JSON"),
    (b"[" * 20_000, "nested more than 64 levels"),
    (b'{"a": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested more than 64 levels"),
    (b'{"a": ' * 20_000 + b"1" + b"}" * 20_000, "nested more than 64 levels"),
]


@pytest.mark.parametrize(("body", "said"), NOT_JSON, ids=[str(i) for i in range(len(NOT_JSON))])
def test_what_is_not_one_json_object_is_refused_with_the_reason(body: bytes, said: str) -> None:
    """C01, C11, C12, C13: a body that is not strict UTF-8 JSON with an object on top is a 400 `invalid_json`."""
    with pytest.raises(InvalidRequest) as caught:
        parse_json(body)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_json", None)
    assert said in caught.value.message
    assert len(caught.value.message) < 200


def test_depth_is_allowed_up_to_the_stated_limit() -> None:
    """The deepest legal document passes, one level more does not."""
    assert parse_json(b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH)
    with pytest.raises(InvalidRequest, match=str(MAX_DEPTH)):
        parse_json(b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1))


def test_the_last_of_two_equal_keys_counts() -> None:
    """C13: what RFC 8259 leaves open is settled as OpenAI settles it."""
    assert parse_json(b'{"n": 1, "n": 2}') == {"n": 2}


def test_a_surrogate_pair_is_one_character() -> None:
    """Escaped emoji are legal JSON."""
    assert parse_json(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize("filler", [b"[],", b"{},", b'"",', rb'"\\",', b"1,", b'{"a":[]},'])
def test_a_body_of_too_many_values_is_refused_before_it_costs_memory(filler: bytes) -> None:
    """16 MiB of tiny values would keep the event loop busy for seconds: they are counted before they are built."""
    body = b'{"x": [' + filler * (16_000_000 // len(filler)) + b"1]}"
    started = time.perf_counter()
    with pytest.raises(InvalidRequest, match=str(MAX_VALUES)):
        parse_json(body)
    assert time.perf_counter() - started < 2


def test_text_is_not_counted_as_values() -> None:
    """A long text full of brackets, commas and escaped quotes is one value."""
    text = 'a, [b], {c}, "d" \\' * 50_000
    assert parse_json(json.dumps({"a": text}).encode()) == {"a": text}


def test_an_unclosed_text_is_looked_through_in_linear_time() -> None:
    """A pattern that starts over at every quote would need hours for this body."""
    started = time.perf_counter()
    with pytest.raises(InvalidRequest):
        parse_json(b'{"a": "' + b'\\",' * 2_000_000)
    assert time.perf_counter() - started < 2


def test_an_object_may_not_have_endless_keys() -> None:
    """Every unknown key is an error to word: their number is bounded first."""
    keys = {f"k{i}": i for i in range(MAX_KEYS + 1)}
    with pytest.raises(InvalidRequest, match=str(MAX_KEYS)):
        parse_json(json.dumps({"a": [keys]}).encode())


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_document_or_an_invalid_request(body: bytes) -> None:
    """No byte sequence raises anything else."""
    try:
        document = parse_json(body)
    except InvalidRequest:
        return
    assert isinstance(document, dict)


# -- validation ------------------------------------------------------------------------------------------------------


class Inner(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    text: str


class Outer(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")
    count: int | None = Field(default=None, ge=1, le=8)
    share: float = 0.0
    items: list[Inner] = []


class Refusing(BaseModel):
    count: int

    @field_validator("count")
    @classmethod
    def _refuse(cls, _: int) -> int:
        raise PydanticCustomError("unsupported_parameter", "is not supported yet")


@pytest.mark.parametrize(
    ("document", "code", "param", "message"),
    [
        ({"count": 9}, "invalid_value", "count", "count must be at most 8 (got 9)"),
        ({"count": True}, "invalid_type", "count", "count must be an integer, not a boolean"),
        ({"count": "5"}, "invalid_type", "count", "count must be an integer, not a string"),
        ({"count": 10**400}, "invalid_value", "count", "count must be at most 8"),
        ({"share": 10**400}, "invalid_value", "share", "share is too large a number"),
        ({"share": "x"}, "invalid_type", "share", "share must be a number, not a string"),
        ({"other": 1}, "unknown_parameter", "other", "unknown parameter: other"),
        ({"items": [{}]}, "missing_required_parameter", "items[0].text", "items[0].text is required"),
        (
            {"items": [{"text": "a"}, {"text": 5}]},
            "invalid_type",
            "items[1].text",
            "items[1].text must be a string, not a number",
        ),
        ({"items": {"0": 1}}, "invalid_type", "items", "items must be an array, not an object"),
        ({"items": [[]]}, "invalid_type", "items[0]", "items[0] must be an object, not an array"),
    ],
)
def test_a_problem_names_the_field_and_the_limit(document: dict, code: str, param: str, message: str) -> None:
    """pydantic's errors come out in OpenAI's words: message, param and code."""
    with pytest.raises(InvalidRequest) as caught:
        validate(Outer, document)
    assert (caught.value.code, caught.value.param, caught.value.message) == (code, param, message)


@pytest.mark.parametrize("key", ["k" * 10_000, "line\nbreak", "\u202eabc", "\ud800"])
def test_a_client_cannot_fill_or_break_an_error_with_its_own_text(key: str) -> None:
    """Names are repeated short and printable, values not at all where they are long."""
    with pytest.raises(InvalidRequest) as caught:
        validate(Outer, {key: 1})
    assert len(caught.value.message) < 100
    assert caught.value.message.isprintable()
    assert encode_json(error_body(caught.value)).isascii()


def test_a_model_can_say_that_something_is_not_supported_yet() -> None:
    """The custom error type `unsupported_parameter` becomes the Unsupported of the taxonomy."""

    with pytest.raises(Unsupported) as caught:
        validate(Refusing, {"count": 1})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "count")
    assert caught.value.message == "count is not supported yet"


# -- out -------------------------------------------------------------------------------------------------------------


def test_an_error_body_always_has_openais_four_keys() -> None:
    """`param` is null where no field is to blame."""
    assert error_body(Busy("the queue is full")) == {
        "error": {"message": "the queue is full", "type": "overloaded_error", "param": None, "code": "rejected_busy"}
    }
    assert error_body(Unsupported("no", param="tools"))["error"]["param"] == "tools"


@pytest.mark.parametrize(
    "text", ["plain", "caf\xe9", "\u2028\u2029\x85\r\n", "\U0001f9d1\u200d\U0001f680", "\ud83d", "\x00"]
)
def test_outgoing_json_is_one_ascii_line_whatever_the_text(text: str) -> None:
    """C11: no text, a lone surrogate included, can crash the encoder or end a line early."""
    raw = encode_json({"a": text})
    assert raw.isascii()
    assert len(raw.splitlines()) == 1
    assert json.loads(raw) == {"a": text}


def test_outgoing_numbers_are_always_json() -> None:
    """NaN and infinity are null: no parser has to know them."""
    assert encode_json({"a": float("nan"), "b": float("inf"), "c": "\xe9"}) == b'{"a":null,"b":null,"c":"\\u00e9"}'
