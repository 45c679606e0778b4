"""A provider's JSON read strictly: types checked, NaN and bombs refused, split characters joined. Pure."""

import json
from collections.abc import Mapping
from typing import NoReturn

_LARGEST = 1e300  # also keeps out infinity, NaN and integers beyond a float


class Malformed(ValueError):
    """The provider's JSON is not what its API promises; the message names the part, never its content."""


def parse_json(text: str) -> object:
    """Read JSON, refusing NaN and nesting that exhausts the stack (C12, C13). Raises: Malformed."""
    try:
        value: object = _JSON.decode(text)
    except (ValueError, RecursionError):
        raise Malformed("not JSON") from None
    return value


def _refuse_constant(_: str) -> NoReturn:
    raise Malformed("not JSON")


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)


def as_object(value: object, what: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise Malformed(f"{what} is not an object")
    return value


def as_list(value: object, what: str) -> list[object]:
    """A list; a missing or null one is empty."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise Malformed(f"{what} is not a list")
    return value


def as_text(value: object, what: str) -> str:
    """A string; a missing or null one is empty."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"{what} is not a string")
    return value


def as_integer(value: object, what: str) -> int:
    """An integer, which a boolean is not."""
    if type(value) is not int:
        raise Malformed(f"{what} is not an integer")
    return value


def as_number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise Malformed(f"{what} is not a number")
    return float(value)


class SurrogateJoin:
    """Joins UTF-16 pairs that a provider split over two deltas; a half without its other half becomes U+FFFD (C11)."""

    def __init__(self) -> None:
        self._half = ""

    def join(self, text: str) -> str:
        """The text with what was held before; holds back a trailing high half."""
        text, self._half = self._half + text, ""
        if text.isascii():
            return text
        if "\ud800" <= text[-1] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return _repaired(text)

    def flush(self) -> str:
        """What is still held, once no more text comes."""
        half, self._half = self._half, ""
        return _repaired(half)


def _repaired(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
