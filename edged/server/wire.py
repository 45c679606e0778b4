"""JSON at the door, for every public API: parse it strictly, validate it, and word what is wrong with it.

An error names the field in OpenAI's notation (``messages[0].content``) and its limit, and repeats at most a few dozen
characters of what the client sent.
"""

import json
import re
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from edged.errors import EdgedError, InvalidRequest, Unsupported

MAX_DEPTH = 64
# Bounds on work, not on text: 16 MiB of "[]," would keep the event loop busy for seconds, 16 MiB of prose does not.
MAX_VALUES = 262_144
MAX_KEYS = 1_024
SHOWN_CHARACTERS = 60

_BOM = b"\xef\xbb\xbf"
_UTF_16_OR_32 = re.compile(rb"\xff\xfe|\xfe\xff|\x00|[^\x00]\x00")
_LONE_SURROGATE = re.compile(rb"\\u[dD][89aAbB]..(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89aAbB]..)\\u[dD][c-fC-F]", re.DOTALL)
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")

_decoder = msgspec.json.Decoder()
_Model = TypeVar("_Model", bound=BaseModel)


class Strict(BaseModel):
    """A part of a body: no field it does not know, no value of another type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


# -- in --------------------------------------------------------------------------------------------------------------


def parse_json(body: bytes, *, what: str = "the request body", max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Decode one JSON object: UTF-8, finite numbers, no lone surrogates, bounded depth and size.

    Of a key given twice the last one counts, as RFC 8259 leaves it and OpenAI does it.
    Raises: InvalidRequest with the code ``invalid_json``.
    """
    if _count_values(body) > MAX_VALUES:
        raise _not_json(f"{what} holds more than {MAX_VALUES} values")
    try:
        document = _decoder.decode(body)
    except RecursionError as exc:
        raise _not_json(f"{what} is nested more than {max_depth} levels deep") from exc
    except (ValueError, OverflowError) as exc:  # msgspec's own errors and UnicodeDecodeError are ValueErrors
        raise _not_json(f"{what} {_why_not_json(body, exc)}") from exc
    if not isinstance(document, dict):
        raise _not_json(f"{what} must be a JSON object, not {_kind(document)}")
    _check_shape(document, what, max_depth)
    return document


def _not_json(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_json")


def _count_values(body: bytes) -> int:
    """An upper bound of the JSON values in the body; text is looked through only where its commas could matter."""
    rough = _count_marks(body)
    if rough <= MAX_VALUES:
        return rough
    unescaped = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if (quotes := unescaped.count(b'"')) > 4 * MAX_VALUES:  # a key and a value, two quotes each
        return quotes // 4
    return _count_marks(b"s".join(unescaped.split(b'"')[::2]))


def _count_marks(body: bytes) -> int:
    """Every value but the first follows a comma or opens an array or object."""
    empty = body.count(b"[]") + body.count(b"{}")
    return body.count(b",") + body.count(b"[") + body.count(b"{") - empty


def _why_not_json(body: bytes, exc: Exception) -> str:
    if not body.strip():
        return "is empty: expected a JSON object"
    if body.startswith(_BOM):
        return "starts with a byte order mark: expected plain UTF-8"
    if _UTF_16_OR_32.match(body):
        return "is not UTF-8"
    if isinstance(exc, UnicodeDecodeError):
        return "is not valid UTF-8"
    if _LONE_SURROGATE.search(body):  # which msgspec, near the end of the body, calls truncated input
        return "holds half of a UTF-16 surrogate pair"
    reason = str(exc).removeprefix("JSON is malformed: ")  # ends in the place, which can be a long path
    return f"is not valid JSON: {reason[: 2 * SHOWN_CHARACTERS]}"


def _check_shape(document: dict[str, Any], what: str, max_depth: int) -> None:
    """Walk level by level, so that no depth can exhaust the stack."""
    level: list[Any] = [document]
    for _ in range(max_depth):
        if any(type(node) is dict and len(node) > MAX_KEYS for node in level):
            raise _not_json(f"{what} holds an object with more than {MAX_KEYS} keys")
        level = [child for node in level for child in _children(node) if type(child) in (dict, list)]
        if not level:
            return
    raise _not_json(f"{what} is nested more than {max_depth} levels deep")


def _children(node: Any) -> Any:
    return node.values() if type(node) is dict else node


# -- validation ------------------------------------------------------------------------------------------------------

# pydantic's error type -> our words; the names in braces come from its context.
_TYPE_TEXTS = {
    "string_type": "must be a string",
    "int_type": "must be an integer",
    "int_from_float": "must be an integer",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be an array",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
}
_VALUE_TEXTS = {
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be greater than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "finite_number": "must be a finite number",
    "int_parsing_size": "is too large an integer",
    "string_unicode": "holds half of a UTF-16 surrogate pair",
    "string_too_short": "must have at least {min_length} characters",
    "string_too_long": "must have at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}",
    "too_short": "must have at least {min_length} entries",
    "too_long": "must have at most {max_length} entries",
    "literal_error": "must be {expected}",
}


def validate(model: type[_Model], document: dict[str, Any], *, inside: str = "") -> _Model:
    """Validate a document; ``inside`` is put before the names of its fields.

    Raises: InvalidRequest for the first problem found, Unsupported where the model's own check says so.
    """
    try:
        return model.model_validate(document)
    except ValidationError as exc:
        problem = exc.errors(include_url=False)[0]
    raise _translated(problem, document, inside)


def _translated(problem: ErrorDetails, document: object, inside: str) -> InvalidRequest:
    kind = problem["type"]
    param = _param(problem["loc"], document, inside, missing=kind == "missing")
    if kind == "extra_forbidden":
        return InvalidRequest(f"unknown parameter: {param}", param=param, code="unknown_parameter")
    if kind == "missing":
        return missing(param)
    if kind == Unsupported.code:
        return Unsupported(f"{param} {problem['msg']}", param=param)
    if kind == "float_type" and type(problem["input"]) is int:
        return wrong_value(param, "is too large a number", problem["input"])
    if kind == "invalid_type" or kind in _TYPE_TEXTS:
        return wrong_type(param, _TYPE_TEXTS.get(kind, problem["msg"]), problem["input"])
    text = _VALUE_TEXTS.get(kind, problem["msg"].removeprefix("Value error, ")).format(**problem.get("ctx", {}))
    return wrong_value(param, text, problem["input"])


def _param(loc: tuple[int | str, ...], document: object, inside: str, *, missing: bool) -> str:
    """Write a location as ``a.b[0].c``, keeping the steps the client's document really has (see ``_step``)."""
    param, here = inside, document
    for position, part in enumerate(loc):
        is_last = position == len(loc) - 1
        found, here = _step(here, part)
        if isinstance(part, int):
            param += f"[{part}]" if found else ""
        elif found or (missing and is_last):
            param += f".{shown_name(part)}" if param else shown_name(part)
    return param


def _step(here: object, part: int | str) -> tuple[bool, object]:
    """One step into the document; a step that only a normalised value or a union's branch has stays where it is."""
    if isinstance(here, dict) and part in here:
        return True, here[part]
    if isinstance(here, list) and isinstance(part, int) and part < len(here):
        return True, here[part]
    return False, here


# -- wording ---------------------------------------------------------------------------------------------------------


def missing(param: str) -> InvalidRequest:
    """A required field is not there."""
    return InvalidRequest(f"{param} is required", param=param, code="missing_required_parameter")


def wrong_type(param: str, must: str, value: object) -> InvalidRequest:
    """``must`` reads "must be a string"; the message adds what JSON type came instead."""
    return InvalidRequest(f"{param} {must}, not {_kind(value)}", param=param, code="invalid_type")


def wrong_value(param: str, must: str, value: object) -> InvalidRequest:
    """``must`` states the limit; the message adds the value where it is short enough to help."""
    return InvalidRequest(f"{param} {must}{_got(value)}", param=param, code="invalid_value")


def shown_name(name: str) -> str:
    """A client's own key, safe to repeat: printable and short."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


def _got(value: object) -> str:
    match value:
        case bool() | None:
            return f" (got {json.dumps(value)})"
        case int() if abs(value) >= 10**20:
            return ""
        case int() | float():
            return f" (got {value})"
        case str() if len(value) <= SHOWN_CHARACTERS:
            return f" (got {value!a})"[: SHOWN_CHARACTERS + 20]
        case _:
            return ""


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list() | tuple():
            return "an array"
        case _:
            return "an object"


# -- out -------------------------------------------------------------------------------------------------------------


def error_body(error: EdgedError) -> dict[str, Any]:
    """The OpenAI error object; ``param`` is null where no field is to blame."""
    detail = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": detail}


def encode_json(data: object) -> bytes:
    """Compact JSON in ASCII: no text can break a line, an event or the encoder; NaN becomes null."""
    try:
        raw = msgspec.json.encode(data)
    except UnicodeEncodeError:  # a lone surrogate, which only an escape can carry
        return json.dumps(data, separators=(",", ":")).encode("ascii")
    return raw if raw.isascii() else _NOT_ASCII.sub(_escaped, raw.decode("utf-8")).encode("ascii")


def _escaped(text: re.Match[str]) -> str:
    """Only strings hold such characters, and there an escape means the same."""
    return json.dumps(text[0])[1:-1]
