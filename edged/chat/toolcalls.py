"""From an answer's text to what it says and the functions it calls, as the text comes. Pure.

A call counts as one from the moment its head names a declared function and its arguments open; until then its text is
held back, and comes out as plain text where it turns out to be none. After that its arguments stream on as they are
written, never cut inside an escape. Markup and the white space around it are nobody's text.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum, auto

from edged.chat.toolformats import ToolFormat
from edged.core import ToolCallDelta

_HEAD = re.compile(
    r'[\s,;\[]*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([^"\\]{1,64})"\s*,\s*"(arguments|parameters)"\s*:\s*(?=\{)'
)
_MOST_HEAD_CHARACTERS = 256
_BARE_BEGINNINGS = ('{"name"', '{"type"')


@dataclass(frozen=True, slots=True)
class Parsed:
    """What one piece of an answer comes to."""

    text: str = ""
    calls: tuple[ToolCallDelta, ...] = ()


class _State(Enum):
    TEXT = auto()
    HEAD = auto()
    ARGUMENTS = auto()
    TAIL = auto()


class ToolCallParser:
    """One choice's answer. ``new_id`` names each call; ``functions`` are the declared names."""

    def __init__(self, form: ToolFormat, functions: Iterable[str], *, new_id: Callable[[], str]) -> None:
        self._form = form
        self._functions = frozenset(functions)
        self._new_id = new_id
        self._state = _State.TEXT
        self._held = ""
        self._spaces = ""
        self._said = False
        self._after_call = False
        self._count = 0
        self._arguments = ObjectScanner()
        self._text: list[str] = []
        self._calls: list[ToolCallDelta] = []

    def __repr__(self) -> str:
        return f"ToolCallParser({self._form.name}, {self._state.name}, calls={self._count}, held={len(self._held)})"

    @property
    def calls(self) -> int:
        """How many calls the answer has made so far."""
        return self._count

    @property
    def between(self) -> bool:
        """Whether no call is open."""
        return self._state is _State.TEXT

    def feed(self, text: str) -> Parsed:
        """Take the next piece of the answer."""
        self._held += text
        while self._advance():
            pass
        return self._taken()

    def finish(self) -> Parsed:
        """The answer is over: what was held as the beginning of a call is text after all, except right behind a call.

        There it is the next one, cut for length.
        """
        if self._state is _State.ARGUMENTS:
            self._delta(self._arguments.flush())
        elif self._state is not _State.TAIL and not self._after_call:
            self._say(self._form.opening + self._held if self._state is _State.HEAD else self._held)
        if not self._count and self._spaces:
            self._text.append(self._spaces)
        self._held, self._spaces, self._state = "", "", _State.TEXT
        return self._taken()

    def _taken(self) -> Parsed:
        parsed = Parsed("".join(self._text), tuple(self._calls))
        self._text, self._calls = [], []
        return parsed

    # -- the four states; each returns whether there may be more to do --

    def _advance(self) -> bool:
        match self._state:
            case _State.TEXT:
                return self._in_text()
            case _State.HEAD:
                return self._in_head()
            case _State.ARGUMENTS:
                return self._in_arguments()
            case _State.TAIL:
                return self._in_tail()

    def _in_text(self) -> bool:
        if not self._form.opening:
            return self._in_bare_text()
        opening = self._form.opening
        at = self._held.find(opening)
        if at >= 0:
            self._say(self._held[:at])
            self._held = self._held[at + len(opening) :]
            self._state = _State.HEAD
            return True
        keep = _overlap(self._held, opening)
        self._say(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return False

    def _in_bare_text(self) -> bool:
        """Without markup only an answer that begins as a call is one."""
        begun = self._held.lstrip()
        if not self._said and begun.startswith(_BARE_BEGINNINGS):
            self._state = _State.HEAD
            return True
        if not self._said and any(beginning.startswith(begun) for beginning in _BARE_BEGINNINGS):
            return False
        self._say(self._held)
        self._held = ""
        return False

    def _in_head(self) -> bool:
        match = _HEAD.match(self._held)
        if match and match[1] in self._functions:
            self._begin(match)
            return True
        closing = self._form.closing
        is_over = bool(closing) and closing in self._held
        if match or is_over or len(self._held) > _MOST_HEAD_CHARACTERS:
            self._say(self._form.opening)
            self._said, self._state = True, _State.TEXT
            return True
        return False

    def _begin(self, match: re.Match[str]) -> None:
        self._held = self._held[match.end() :]
        self._spaces = ""
        self._calls.append(ToolCallDelta(self._count, id=self._new_id(), name=match[1]))
        self._count += 1
        self._arguments = ObjectScanner()
        self._state, self._after_call = _State.ARGUMENTS, True

    def _in_arguments(self) -> bool:
        piece, self._held = self._arguments.feed(self._held)
        self._delta(piece)
        if not self._arguments.complete:
            return False
        self._state = _State.TAIL
        return True

    def _in_tail(self) -> bool:
        """Skip to the end of the call: its closing markup, the next element of its list, or the next bare call."""
        form = self._form
        if form.closing:
            return self._skipped_to(form.closing)
        match = re.match(r'\s*(?:,\s*"id"\s*:\s*"[^"]*"\s*)?\}\s*', self._held)
        if not match or match.end() == len(self._held):
            return False
        rest = self._held[match.end() :]
        if form.in_list:
            self._held, self._state = rest[1:], _State.HEAD if rest[0] == "," else _State.TEXT
            return True
        if rest.startswith(_BARE_BEGINNINGS) or any(start.startswith(rest) for start in _BARE_BEGINNINGS):
            self._held, self._state = rest, _State.HEAD
            return True
        self._held, self._state, self._said = rest, _State.TEXT, True
        return True

    def _skipped_to(self, closing: str) -> bool:
        at = self._held.find(closing)
        if at < 0:
            return False
        self._held, self._state = self._held[at + len(closing) :], _State.TEXT
        return True

    # -- out --

    def _say(self, text: str) -> None:
        """Text goes out but for its trailing white space, which may turn out to stand before a call."""
        text = self._spaces + text
        solid = text.rstrip()
        if solid:
            self._text.append(solid)
            self._said, self._after_call = True, False
        self._spaces = text[len(solid) :]

    def _delta(self, arguments: str) -> None:
        if arguments:
            self._calls.append(ToolCallDelta(self._count - 1, arguments=arguments))


class ObjectScanner:
    """Finds where a JSON object ends, and where its text may be cut."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escape = ""
        self.complete = False

    def feed(self, text: str) -> tuple[str, str]:
        """What belongs to the object and may be sent; what stands behind its end."""
        begun = len(self._escape)
        text = self._escape + text
        for at in range(begun, len(text)):
            if self._take(text[at]):
                self.complete = True
                return text[: at + 1], text[at + 1 :]
        return text[: len(text) - len(self._escape)], ""

    def flush(self) -> str:
        """The beginning of an escape that nothing followed."""
        escape, self._escape = self._escape, ""
        return escape

    def _take(self, character: str) -> bool:
        """Account for one character; whether it ends the object."""
        if self._escape and (character == "\\" or not _HIGH_SURROGATE.fullmatch(self._escape)):
            self._escape += character
            if _ESCAPE.fullmatch(self._escape):
                self._escape = ""
            return False
        self._escape = ""
        if self._in_string:
            self._in_string = character != '"'
            self._escape = character if character == "\\" else ""
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return not self._depth
        return False


_HIGH_SURROGATE = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}")
_ESCAPE = re.compile(
    r"(?:\\u[dD][89abAB][0-9a-fA-F]{2})?\\(?:[^u]|u(?![dD][89abAB])[0-9a-fA-F]{4})|"  # a pair counts as one
    r"(?:\\u[dD][89abAB][0-9a-fA-F]{2}){2}",
    re.DOTALL,
)
"""An escape after which the text may be cut: not after the first half of a surrogate pair."""


def _overlap(text: str, mark: str) -> int:
    """Length of the longest tail of ``text`` that begins ``mark``."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)
