"""A request with its personal data replaced by placeholders: every text of it that an upstream would see."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from edged.core import Chat, Completion, Message, OutputFormat, OutputKind, Request, Tool, ToolCall, ToolChoice
from edged.errors import Unsupported
from edged.privacy import people
from edged.privacy.detect import Detector, Found
from edged.privacy.vault import Vault, placeholder, token_pattern
from edged.privacy.words import merged, without

# What of a request is text for an upstream, and what is none. A field that is in neither list is refused when it holds
# something: a new field must not carry anything out before somebody has thought about it.
_REWRITTEN: Mapping[type, frozenset[str]] = {
    Request: frozenset({"input", "stop", "tools", "tool_choice", "output"}),
    Message: frozenset({"text", "name", "tool_calls", "tool_call_id"}),
    ToolCall: frozenset({"id", "name", "arguments"}),
    Tool: frozenset({"name", "description", "parameters_json"}),
    ToolChoice: frozenset({"name"}),
    OutputFormat: frozenset({"definition", "name", "description"}),
}
_NO_TEXT: Mapping[type, frozenset[str]] = {
    Request: frozenset(
        {"id", "model", "received_s", "sampling", "max_tokens", "n", "top_logprobs", "stream", "parallel_tool_calls"}
        | {"limits", "tenant", "api", "background", "clearance"}
    ),
    Message: frozenset({"role"}),
    ToolCall: frozenset(),
    Tool: frozenset({"strict"}),
    ToolChoice: frozenset({"mode"}),
    OutputFormat: frozenset({"kind", "strict"}),
}
_MIN_NUMBER_DIGITS = 7


@dataclass(frozen=True, slots=True)
class Redacted:
    """What may be sent, and the way back; ``counts`` is how many different values of each kind were replaced."""

    request: Request
    vault: Vault

    @property
    def counts(self) -> Mapping[str, int]:
        return self.vault.counts


def redact(request: Request, detector: Detector, *, max_chars: int) -> Redacted:
    """Replace what ``detector`` finds. The same value becomes the same placeholder throughout.

    Raises: Unsupported where something cannot be looked through: a picture, token ids, too long a text.
    """
    texts: list[str] = []
    _map(request, _Texts(_noting(texts), _noting(texts), _noting(texts)))
    if (size := sum(map(len, texts))) > max_chars:
        raise Unsupported(f"a request of {size} characters is too long to redact (redact.max_chars is {max_chars})")
    kinds = token_pattern(detector.kinds)
    vault = Vault(match.group().replace("\\", "") for text in texts for match in kinds.finditer(text))
    pen = _Pen(detector, vault, texts)
    sent = _map(request, _Texts(pen.text, pen.json, pen.name))
    return Redacted(replace(sent, clearance=replace(request.clearance, redacted=True)), vault)


def _noting(texts: list[str]) -> "Rewrite":
    def note(text: str) -> str:
        texts.append(text)
        return text

    return note


Rewrite = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class _Texts:
    """What to do with running text, with JSON, and with a name that allows letters, digits and underscores only."""

    text: Rewrite
    json: Rewrite
    name: Rewrite


class _Pen:
    """Writes placeholders over personal data."""

    def __init__(self, detector: Detector, vault: Vault, texts: list[str]) -> None:
        self._detector = detector
        self._vault = vault
        self._seen: dict[str, list[Found]] = {}
        # A name given away in one place is hidden in all of them.
        names = [part for text in texts for name in self._names(text) for part in people.parts(name)]
        self._again = detector.words(names)

    def text(self, text: str) -> str:
        if text.lstrip()[:1] in ("{", "["):  # escapes hide data from detection, and must survive it
            text = self._detector.literals(text, self._string)
        return self._over(text, placeholder)

    def name(self, text: str) -> str:
        return self._over(text, str)

    def json(self, text: str) -> str:
        """JSON, or what looks like it, rewritten inside its strings and long numbers; all else stays as it was."""
        return self._over(self._detector.literals(text, self._literal), placeholder)

    def _literal(self, literal: str) -> str:
        """A number becomes a string: no number can say that it stands for another."""
        if literal.startswith('"') or len(literal) < _MIN_NUMBER_DIGITS:
            return self._string(literal)
        written = self._over(literal, placeholder)
        return literal if written == literal else json.dumps(written)

    def _string(self, literal: str) -> str:
        if not literal.startswith('"'):
            return literal
        try:
            said = json.loads(literal, strict=False)
        except ValueError:
            return literal  # no JSON after all: the pass over the whole text comes to it
        written = self.text(said)
        return literal if written == said else json.dumps(written, ensure_ascii=literal.isascii())

    def _over(self, text: str, form: Rewrite) -> str:
        pieces, at = [], 0
        for found in self._found(text):
            token = self._vault.token(found.kind, text[found.start : found.end])
            pieces += [text[at : found.start], form(token)]
            at = found.end
        return "".join([*pieces, text[at:]]) if pieces else text

    def _found(self, text: str) -> list[Found]:
        found = [_unescaped(text, f) for f in self._look(text)]
        again = without(merged(self._again(text)), [(f.start, f.end) for f in found])
        return sorted([*found, *(Found(*place, "name") for place in again)], key=lambda f: f.start)

    def _names(self, text: str) -> list[str]:
        return [text[f.start : f.end] for f in self._look(text) if f.kind == "name"]

    def _look(self, text: str) -> list[Found]:
        """Each text is searched once."""
        if text not in self._seen:
            self._seen[text] = self._detector.find(text)
        return self._seen[text]


def _unescaped(text: str, found: Found) -> Found:
    """JSON inside a text: the letter of a line break's escape (``\\n``) belongs to the escape."""
    is_escape = text[found.start - 1 : found.start] == "\\" and text[found.start] in "nrtbf"
    return replace(found, start=found.start + 1) if is_escape and found.end - found.start > 1 else found


# -- every text of a request -----------------------------------------------------------------------------------------


def _map(request: Request, rewrite: _Texts) -> Request:
    _refuse_unknown(request)
    return replace(
        request,
        tools=tuple(_tool(tool, rewrite) for tool in request.tools),
        input=_input(request.input, rewrite),
        stop=tuple(map(rewrite.text, request.stop)),
        tool_choice=_choice(request.tool_choice, rewrite),
        output=_output(request.output, rewrite),
    )


def _input(asked: Chat | Completion, rewrite: _Texts) -> Chat | Completion:
    if isinstance(asked, Chat):
        return Chat(tuple(_message(message, rewrite) for message in asked.messages))
    if not isinstance(asked.prompt, str):
        raise Unsupported("a prompt of token ids cannot be redacted", param="prompt")
    return Completion(rewrite.text(asked.prompt))


def _message(message: Message, rewrite: _Texts) -> Message:
    _refuse_unknown(message)
    return replace(
        message,
        text=_optional(message.text, rewrite.text),
        name=_optional(message.name, rewrite.name),
        tool_calls=tuple(_call(call, rewrite) for call in message.tool_calls),
        tool_call_id=_optional(message.tool_call_id, rewrite.name),
    )


def _call(call: ToolCall, rewrite: _Texts) -> ToolCall:
    _refuse_unknown(call)
    return ToolCall(rewrite.name(call.id), rewrite.name(call.name), rewrite.json(call.arguments))


def _tool(tool: Tool, rewrite: _Texts) -> Tool:
    _refuse_unknown(tool)
    return replace(
        tool,
        name=rewrite.name(tool.name),
        description=_optional(tool.description, rewrite.text),
        parameters_json=_optional(tool.parameters_json, rewrite.json),
    )


def _choice(choice: ToolChoice | None, rewrite: _Texts) -> ToolChoice | None:
    if choice is None:
        return None
    _refuse_unknown(choice)
    return replace(choice, name=_optional(choice.name, rewrite.name))


def _output(output: OutputFormat, rewrite: _Texts) -> OutputFormat:
    _refuse_unknown(output)
    definition = rewrite.json if output.kind is OutputKind.JSON_SCHEMA else rewrite.text
    return replace(
        output,
        definition=definition(output.definition),
        name=rewrite.name(output.name),
        description=_optional(output.description, rewrite.text),
    )


def _optional(text: str | None, rewrite: Rewrite) -> str | None:
    return None if text is None else rewrite(text)


def _refuse_unknown(noun: Any) -> None:
    known = _REWRITTEN.get(type(noun), frozenset()) | _NO_TEXT.get(type(noun), frozenset())
    for field in fields(noun):
        if field.name not in known and getattr(noun, field.name):
            what = (
                f"{field.name} cannot be looked through for personal data, so a request labelled redact cannot send it"
            )
            raise Unsupported(what, param=field.name)
