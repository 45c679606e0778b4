"""Grammars for constrained answers, in the Lark dialect of llguidance. Pure: text in, text out.

JSON is written on one line, ``", "`` and ``": "`` its only white space: a small model left to indent goes on for ever.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence

from edged.chat import schema as json_schema
from edged.chat import toolformats
from edged.chat.toolformats import ToolFormat
from edged.core import Tool

MAX_CALLS = 16
"""Function calls in one answer: a small model left to repeat itself does."""

MAX_DEFINITION_BYTES = 32_768
"""The longest regular expression or GBNF grammar."""

Mark = Callable[[str], int | None]
"""The special token that a piece of markup is in this vocabulary, or None where it is plain text."""

_ANY_OBJECT = {"type": "object"}


def json_rule(definition: str, *, strict: bool) -> str:
    """The right side of a rule for JSON by a schema; no definition: any object.

    Where not ``strict``, keywords no grammar can express are left to the model.
    """
    schema = json_schema.closed(json.loads(definition)) if definition else _ANY_OBJECT
    return _json_rule(schema, strict=strict)


def _json_rule(schema: Mapping[str, object], *, strict: bool) -> str:
    options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": not strict}
    return "%json " + json.dumps({**schema, "x-guidance": options})


def answer(definition: str, *, strict: bool) -> str:
    """A grammar for an answer that is JSON and nothing else."""
    return f"start: {json_rule(definition, strict=strict)}\n"


def calls(form: ToolFormat, tools: Sequence[Tool], *, most: int, mark: Mark, or_answer: str | None = None) -> str:
    """A grammar for an answer that is one to ``most`` calls of these functions, or JSON by ``or_answer``'s rule."""
    opening = _lark(form.opening + form.lead, form, mark)
    closing = _lark(form.tail, form, mark)
    repeated = f" ({_lark(form.between, form, mark)} call){{0,{most - 1}}}" if most > 1 else ""
    alternative = "" if or_answer is None else " | answer"
    lines = [
        f"start: calls{alternative}",
        f"calls: {opening} call{repeated} {closing}",
        *([] if or_answer is None else [f"answer: {or_answer}"]),
        *_call_rules(form, tools),
    ]
    return "\n".join(lines) + "\n"


def opened_calls(form: ToolFormat, tools: Sequence[Tool], *, most: int, mark: Mark) -> str:
    """A grammar for what follows once a model has opened a call by itself: to the end of that call, or of its list."""
    closing = _lark(form.closing, form, mark)
    if form.in_list:
        repeated = f' (", " call){{0,{most - 1}}}' if most > 1 else ""
        start = f'start: SPACE? "[" call{repeated} "]"'
    elif form.opening:
        start = f"start: SPACE? call SPACE? {closing}"
    else:
        repeated = f' ("\\n" call){{0,{most - 1}}}' if most > 1 else ""
        start = f"start: call{repeated}"
    return "\n".join([start, r"SPACE: /[ \n]{1,2}/", *_call_rules(form, tools)]) + "\n"


def _call_rules(form: ToolFormat, tools: Sequence[Tool]) -> list[str]:
    names = [f"call_{place}" for place in range(len(tools))]
    rules = [f"call: {' | '.join(names)}"]
    for name, tool in zip(names, tools, strict=True):
        head = json.dumps(f"{form.head}{tool.name}{form.middle}")
        schema = json_schema.closed(toolformats.parameters(tool))
        rules.append(f'{name}: {head} {name}_arguments "}}"')
        rules.append(f"{name}_arguments: {_json_rule(schema, strict=bool(tool.strict))}")
    return rules


def _lark(text: str, form: ToolFormat, mark: Mark) -> str:
    """Literal text as Lark writes it, the format's markup by token where the vocabulary has one for it."""
    marks = [re.escape(piece) for piece in (form.opening, form.closing) if piece]
    pieces = re.split(f"({'|'.join(marks)})", text) if marks else [text]
    return " ".join(_literal(piece, mark) for piece in pieces if piece)


def _literal(piece: str, mark: Mark) -> str:
    token = mark(piece)
    return json.dumps(piece) if token is None else f"<[{token}]>"


# -- GBNF ------------------------------------------------------------------------------------------------------------

_CODE_POINT = re.compile(r"\\(\\|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})")
_SPECIAL = frozenset("\\\"'[]^-/\n\r\t")


def plain_escapes(gbnf: str) -> str:
    """GBNF with its numeric escapes written as the characters they mean, which every reader understands alike."""
    return _CODE_POINT.sub(_character, gbnf)


def _character(match: re.Match[str]) -> str:
    escape = match[1]
    if escape == "\\":
        return match[0]
    try:
        character = chr(int(escape[1:], 16))
        character.encode("utf-8")  # half of a surrogate pair is no character
    except (ValueError, OverflowError):
        return match[0]
    return match[0] if character < " " or character in _SPECIAL else character
