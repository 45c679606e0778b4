"""The answer with what was replaced put back, whatever the slicing of the stream.

Taken for a placeholder: ``<EMAIL_1>`` in any case, its brackets as ``&lt;``, ``\\<`` or ``\\u003c`` and its underscore
escaped as Markdown does; and the bare ``EMAIL_1`` in capitals, by itself. A number that was never given stays as it is.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace

from edged.core import Chunk, Request, ToolCallDelta
from edged.privacy.vault import Vault, loose

_OPEN = ("<", "&lt;", r"\<", r"\u003c", r"\u003C")
_CLOSE = (">", "&gt;", r"\>", r"\u003e", r"\u003E")
_SEPARATOR = r"\\?_"
_DIGITS = r"\d{1,6}"


def _any(texts: Iterable[str]) -> str:
    return "(?:" + "|".join(map(re.escape, texts)) + ")"


def _begun(texts: Iterable[str]) -> str:
    """Every proper beginning of one of ``texts``, not the empty one."""
    return _any(sorted({text[:size] for text in texts for size in range(1, len(text))}, key=len, reverse=True))


class Form:
    """What placeholders of some kinds look like, and what may still become one."""

    def __init__(self, kinds: Iterable[str]) -> None:
        kinds = sorted(kinds, key=len, reverse=True)
        token = rf"(?:{'|'.join(map(loose, kinds))}){_SEPARATOR}{_DIGITS}"
        opening, closing = _any(_OPEN), _any(_CLOSE)
        self.whole = re.compile(rf"{opening}(?P<quoted>(?i:{token})){closing}|(?<![\w\\])(?P<bare>{token})(?!\w)")
        begun = "|".join(filter(None, (_spelt_so_far(kind) for kind in kinds)))
        almost = rf"(?:{begun}|{token})"
        self._growing = re.compile(
            rf"{_begun(_OPEN)}|{opening}(?:(?i:{almost}){_begun(_CLOSE)}?|(?i:{almost}))?|{almost}"
        )
        escaped = max((len(kind) + kind.count("_") for kind in kinds), default=0)
        self.longest = escaped + 2 + 6 + len(_OPEN[-1]) + len(_CLOSE[-1])

    def held_from(self, text: str) -> int:
        """Where the tail begins that could still become a placeholder; the end of the text where there is none."""
        for at in range(max(0, len(text) - self.longest), len(text)):
            may_begin = text[at] in "<&\\" or (text[at].isupper() and not _continues_word(text, at))
            if may_begin and self._growing.fullmatch(text, at):
                return at
        return len(text)


def _continues_word(text: str, at: int) -> bool:
    before = text[at - 1 : at] if at else ""
    return before.isalnum() or before in ("_", "\\")


def _spelt_so_far(kind: str) -> str:
    """Every beginning of a kind and of its separator."""
    pieces = [r"\\?_" if sign == "_" else sign for sign in f"{kind.upper()}_"]
    pattern = ""
    for piece in reversed(pieces):
        escape = r"|\\" if piece.startswith("\\") else ""
        pattern = rf"(?:{piece}{pattern}{escape})?"
    return pattern.removesuffix("?")


class TextRestorer:
    """Puts values back into one text that comes in pieces; ``escape`` makes a value fit what surrounds it."""

    def __init__(self, vault: Vault, form: Form, escape: Callable[[str], str] = str) -> None:
        self._vault = vault
        self._form = form
        self._escape = escape
        self._held = ""
        self._before = ""

    def feed(self, piece: str) -> str:
        text = self._held + piece
        at = self._form.held_from(text)
        self._held = text[at:]
        return self._restored(text[:at])

    def flush(self) -> str:
        """The held tail, once it is known that nothing follows."""
        text, self._held = self._held, ""
        return self._restored(text)

    def _restored(self, text: str) -> str:
        """``text`` with its placeholders replaced; the sign before it is out, and tells whether a word goes on."""
        context, self._before = self._before, text[-1:] or self._before
        known, at, done = context + text, len(context), []
        for match in self._form.whole.finditer(known, at):
            done += [known[at : match.start()], self._value(match)]
            at = match.end()
        return "".join([*done, known[at:]])

    def _value(self, match: re.Match[str]) -> str:
        token = (match["quoted"] or match["bare"]).replace("\\", "")
        value = self._vault.value(token)
        return match.group() if value is None else self._escape(value)


def in_json(value: str) -> str:
    """A value as it stands between the quotes of a JSON string."""
    return json.dumps(value, ensure_ascii=False)[1:-1]


class AnswerRestorer:
    """Restores an answer's chunks: the text and the calls of every choice, each by itself."""

    def __init__(self, vault: Vault, request: Request) -> None:
        self._vault = vault
        self._form = Form(vault.kinds)
        self._in_text = in_json if request.output.is_json else str
        self._texts: dict[int, TextRestorer] = {}
        self._calls: dict[tuple[int, int], TextRestorer] = {}

    def feed(self, chunk: Chunk) -> Chunk:
        """The same chunk with values in place of placeholders; what may still become one waits for the next."""
        if not self._vault.kinds:
            return chunk
        text = self._text_of(chunk.choice).feed(chunk.text)
        calls = [self._call(chunk.choice, delta) for delta in chunk.tool_calls]
        if chunk.finish is not None:
            text += self._text_of(chunk.choice).flush()
            calls += self._last_of_calls(chunk.choice)
        return replace(chunk, text=text, tool_calls=tuple(calls))

    def flush(self) -> list[Chunk]:
        """What is still held where an answer ended without saying so."""
        said = [Chunk(choice, restorer.flush()) for choice, restorer in self._texts.items()]
        said += [Chunk(choice, tool_calls=tuple(self._last_of_calls(choice))) for choice in self._texts]
        return [chunk for chunk in said if chunk.text or chunk.tool_calls]

    def _text_of(self, choice: int) -> TextRestorer:
        if choice not in self._texts:
            self._texts[choice] = TextRestorer(self._vault, self._form, self._in_text)
        return self._texts[choice]

    def _call(self, choice: int, delta: ToolCallDelta) -> ToolCallDelta:
        key = (choice, delta.index)
        if key not in self._calls:
            self._calls[key] = TextRestorer(self._vault, self._form, in_json)
        name = delta.name and self._whole(delta.name)
        return replace(delta, name=name, arguments=self._calls[key].feed(delta.arguments))

    def _whole(self, text: str) -> str:
        restorer = TextRestorer(self._vault, self._form)
        return restorer.feed(text) + restorer.flush()

    def _last_of_calls(self, choice: int) -> list[ToolCallDelta]:
        held = [(index, restorer.flush()) for (of, index), restorer in self._calls.items() if of == choice]
        return [ToolCallDelta(index, arguments=text) for index, text in held if text]
