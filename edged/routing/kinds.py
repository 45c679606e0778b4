"""What kind of query a request is: its task, as asked or as it looks.

Two sorts of evidence, in this order. The form is a fact: functions to call, a JSON schema, a set of labels, a long
conversation. The content is a guess, from the newest user message alone, of which at most ``READ_CHARS`` are read at
each end; each pattern is a set of words or a fixed string, so the time is linear and bounded. A guess never beats a
fact, a task that is asked for beats both.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from edged.chat.asked import asked_schema
from edged.core import Chat, OutputFormat, OutputKind, Request, Role, ToolMode


class Task(StrEnum):
    """The tasks that are detected; a request may name any other."""

    TOOLS = "tools"
    LABELS = "labels"
    JSON = "json"
    LONG_CONTEXT = "long_context"
    CODE = "code"
    TRANSLATION = "translation"
    MATHEMATICS = "mathematics"
    CHAT = "chat"


FORMS = (Task.TOOLS, Task.LABELS, Task.JSON, Task.LONG_CONTEXT)
"""Tasks that are facts of the request."""

LONG_CHARS = 24_000
"""About 6,000 tokens of English: beyond most small models' comfort."""

READ_CHARS = 1_000


class TaskSource(StrEnum):
    """Whose word a task is."""

    ASKED = "asked"
    DETECTED = "detected"


@dataclass(frozen=True, slots=True)
class Kind:
    """The task of one request."""

    task: str
    source: TaskSource

    @property
    def is_guess(self) -> bool:
        """Read off the text, not asked for and no fact of the form."""
        return self.source is TaskSource.DETECTED and self.task not in FORMS


def kind(request: Request) -> Kind:
    """The task asked for, else the one detected."""
    if request.limits.task is not None:
        return Kind(request.limits.task, TaskSource.ASKED)
    return Kind(detect(request), TaskSource.DETECTED)


def detect(request: Request) -> Task:
    """The first that fits.

    1. Functions may be called.
    2. The answer is one of a set of labels: an enum, alone or as every property of an object.
    3. The answer is JSON, or follows a grammar.
    4. The conversation has more than ``LONG_CHARS`` characters.
    5. Code.
    6. Translation.
    7. Mathematics.
    8. Chat.
    """
    if request.tool_mode is not ToolMode.NONE:  # 1
        return Task.TOOLS
    if _is_label_set(request.output):  # 2
        return Task.LABELS
    if request.output.kind is not OutputKind.TEXT:  # 3
        return Task.JSON
    if _chars(request) > LONG_CHARS:  # 4
        return Task.LONG_CONTEXT
    text = _newest(request)
    words = _WORD.findall(text.lower())
    if _is_code(text, words):  # 5
        return Task.CODE
    if _is_translation(words):  # 6
        return Task.TRANSLATION
    return Task.MATHEMATICS if _is_mathematics(text, words) else Task.CHAT  # 7, 8


def _is_label_set(output: OutputFormat) -> bool:
    schema = asked_schema(output)
    if schema is None:
        return False
    properties = schema.get("properties")
    if isinstance(properties, dict) and properties:
        return all(map(_is_closed, properties.values()))
    return _is_closed(schema)


def _is_closed(schema: Any) -> bool:
    """A few values are all there are."""
    if not isinstance(schema, dict):
        return False
    items = schema.get("items")
    return "enum" in schema or "const" in schema or schema.get("type") == "boolean" or _is_closed_list(items)


def _is_closed_list(items: Any) -> bool:
    return isinstance(items, dict) and "enum" in items


def _chars(request: Request) -> int:
    if isinstance(request.input, Chat):
        return sum(len(message.text or "") for message in request.input.messages)
    return len(request.input.prompt)


def _newest(request: Request) -> str:
    """Both ends of the newest user message: instructions stand at one of them."""
    if isinstance(request.input, Chat):
        turns = (m.text or "" for m in reversed(request.input.messages) if m.role is Role.USER)
        text = next(turns, "")
    else:
        text = request.input.prompt if isinstance(request.input.prompt, str) else ""
    return text if len(text) <= 2 * READ_CHARS else f"{text[:READ_CHARS]}\n{text[-READ_CHARS:]}"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[^\W\d_]+")

_CODE_MARKS = (
    "```",
    "#include",
    "def ",
    "class ",
    "import ",
    "function(",
    "=>",
    "();",
    "</",
    "SELECT ",
    "public static",
)
_CODE_NAMES = _words("python javascript typescript java rust golang sql bash regex html css kotlin php c++ dockerfile")
_CODE_WORDS = _words(
    "function code program script class method algorithm compile compiler debug bug refactor exception traceback "
    "unittest api query implement funktion programm skript fonction programme función"
)
_TRANSLATE = _words(
    "translate translates translation übersetze übersetzen übersetzt übersetzung traduis traduire traduisez traduction "
    "traduce traducir traduzca traducción traduci tradurre traduzione traduza traduzir tradução"
)
_MATHS_WORDS = _words(
    "calculate compute solve equation integral derivative sum product percent percentage probability prove theorem "
    "polynomial matrix fraction multiply divided minus plus sqrt berechne gleichung wahrscheinlichkeit prozent calcule "
    "équation calcula ecuación"
)
_ARITHMETIC = re.compile(r"\d\s?[-+*/^\u00d7\u00f7=]\s?\d")
_MATHS_MARKS = ("\\frac", "\\int", "\\sum", "$$", "∫", "∑", "√")
_ENOUGH_MARKS = 2
_NUMBERS = re.compile(r"\d+")
_MANY_NUMBERS = 3
_ASKS_HOW_MUCH = ("how many", "how much", "wie viele", "wie viel", "combien", "cuántos", "cuánto")


def _is_code(text: str, words: Iterable[str]) -> bool:
    """A fence; two marks of a language; or a language and what programs consist of, both by name."""
    if "```" in text or sum(mark in text for mark in _CODE_MARKS) >= _ENOUGH_MARKS:
        return True
    found = set(words)
    return bool(found & _CODE_NAMES and found & _CODE_WORDS)


def _is_translation(words: list[str]) -> bool:
    """Said in the first or last words, where instructions stand."""
    return not _TRANSLATE.isdisjoint(words[:12]) or not _TRANSLATE.isdisjoint(words[-12:])


def _is_mathematics(text: str, words: Iterable[str]) -> bool:
    """A formula; arithmetic between digits; a word of the trade with a number; or a sum told as a story."""
    if any(mark in text for mark in _MATHS_MARKS) or _ARITHMETIC.search(text):
        return True
    numbers = sum(1 for _ in _NUMBERS.finditer(text))
    if numbers and not _MATHS_WORDS.isdisjoint(words):
        return True
    asks = any(phrase in text.lower() for phrase in _ASKS_HOW_MUCH)
    return asks and numbers >= _MANY_NUMBERS
