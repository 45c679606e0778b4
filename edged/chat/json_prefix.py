"""Whether a text that is still growing can become JSON: linear, one character at a time. Pure."""

import re
from enum import Enum, auto

_SPACE = " \t\n\r"
_WORDS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_NUMBER_CHARS = frozenset("0123456789+-.eE")
_LONGEST_WORD = 9
_ESCAPES = '"\\/bfnrtu'
_HEX_DIGITS = 4


class _Next(Enum):
    VALUE = auto()
    VALUE_OR_END = auto()
    KEY = auto()
    KEY_OR_END = auto()
    COLON = auto()
    COMMA_OR_END = auto()


class JsonPrefix:
    """Fed the pieces of an answer; ``possible`` turns False at the first character that no JSON text has there.

    What ``json.loads`` takes is possible: so are NaN and Infinity.
    """

    def __init__(self) -> None:
        self.possible = True
        self._stack: list[str] = []
        self._next = _Next.VALUE
        self._scalar = ""
        self._in_string = self._is_key = self._escaped = False
        self._hex_left = 0

    def feed(self, text: str) -> bool:
        """Take the next piece; whether the whole can still become JSON."""
        for char in text:
            if not self.possible:
                break
            self.possible = self._take(char)
        return self.possible

    def _take(self, char: str) -> bool:
        if self._in_string:
            return self._take_in_string(char)
        if self._scalar:
            if char in _NUMBER_CHARS or char.isalpha():
                self._scalar += char
                return _may_be_scalar(self._scalar)
            if not _is_scalar(self._scalar):
                return False
            self._scalar, self._next = "", _Next.COMMA_OR_END
        return char in _SPACE or self._take_token(char)

    def _take_token(self, char: str) -> bool:
        match self._next:
            case _Next.VALUE | _Next.VALUE_OR_END:
                return self._close("[") if char == "]" and self._next is _Next.VALUE_OR_END else self._value(char)
            case _Next.KEY | _Next.KEY_OR_END:
                return self._close("{") if char == "}" and self._next is _Next.KEY_OR_END else self._key(char)
            case _Next.COLON:
                self._next = _Next.VALUE
                return char == ":"
            case _Next.COMMA_OR_END:
                return self._after_value(char)

    def _value(self, char: str) -> bool:
        if char in "{[":
            self._stack.append(char)
            self._next = _Next.KEY_OR_END if char == "{" else _Next.VALUE_OR_END
        elif char == '"':
            self._in_string, self._is_key = True, False
        else:
            self._scalar = char
            return _may_be_scalar(char)
        return True

    def _key(self, char: str) -> bool:
        self._in_string = self._is_key = True
        return char == '"'

    def _after_value(self, char: str) -> bool:
        if not self._stack:
            return False
        if char == ",":
            self._next = _Next.KEY if self._stack[-1] == "{" else _Next.VALUE
            return True
        return self._close({"}": "{", "]": "["}.get(char, ""))

    def _close(self, opened: str) -> bool:
        self._next = _Next.COMMA_OR_END
        return bool(self._stack) and self._stack.pop() == opened

    def _take_in_string(self, char: str) -> bool:
        if self._hex_left:
            self._hex_left -= 1
            return char in "0123456789abcdefABCDEF"
        if self._escaped:
            self._escaped = False
            self._hex_left = _HEX_DIGITS if char == "u" else 0
            return char in _ESCAPES
        if char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            self._next = _Next.COLON if self._is_key else _Next.COMMA_OR_END
        return char >= " "


def _may_be_scalar(text: str) -> bool:
    """A number's characters are not checked against each other before its end."""
    if len(text) <= _LONGEST_WORD and any(word.startswith(text) for word in _WORDS):
        return True
    return text[0] in "-0123456789" and text[-1] in _NUMBER_CHARS


def _is_scalar(text: str) -> bool:
    return text in _WORDS or _NUMBER.fullmatch(text) is not None
