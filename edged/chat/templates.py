"""Chat templates: the Jinja program a GGUF carries, rendered as the untrusted code it is.

Sandboxed and immutable, no attribute reaches Python's internals, multiplication and output are bounded. Time is
bounded by the caller (a template can loop without a call we could intercept).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edged.chat import toolformats
from edged.chat.shield import ControlTexts, Shield
from edged.core import Message, Role, Tool, ToolCall
from edged.errors import TemplateRejected

MAX_PROMPT_CHARS = 8_000_000
MAX_TEMPLATE_CHARS = 1_000_000
_MAX_PRODUCT = 100_000

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Used for models whose file carries no template, as llama.cpp does."""


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(value) if isinstance(value, str | list | tuple) else abs(value) for value in (left, right)]
        if operator == "**" or sizes[0] * sizes[1] > _MAX_PRODUCT:
            raise TemplateRejected("the model's chat template builds too large a value")
        return super().call_binop(context, operator, left, right)


class _Generation(Extension):
    """``{% generation %}`` marks what an assistant wrote, for training; here its content is all there is to it."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration of it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: object) -> None:
    """The function templates call to refuse a conversation."""
    raise TemplateRejected(f"the model's chat template refuses this conversation: {str(message)[:200]}")


class ChatTemplate:
    """A compiled chat template. ``control_texts`` are the vocabulary's control tokens as text."""

    def __init__(self, source: str, *, bos: str = "", eos: str = "", control_texts: tuple[str, ...] = ()) -> None:
        if len(source) > MAX_TEMPLATE_CHARS:
            raise TemplateRejected(f"the model's chat template is longer than {MAX_TEMPLATE_CHARS} characters")
        self._control = ControlTexts(control_texts)
        self.tool_format = toolformats.detect(source)
        environment = _Sandbox(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: datetime.now(tz=UTC).strftime(form),
            "bos_token": bos,
            "eos_token": eos,
        }
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as exc:
            raise TemplateRejected(f"the model's chat template does not compile: {exc.message}") from exc

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[str, ...]:
        """The prompt as pieces to tokenize one by one, special tokens on (see ``shield``).

        Tools a template knows nothing of are shown as text. A conversation the template refuses is tried once more
        with the system text folded into the first user turn and neighbouring turns of one role joined.

        Raises: TemplateRejected.
        """
        messages = toolformats.shown(self.tool_format, messages, tools)
        try:
            return self._render(messages, tools)
        except TemplateRejected:
            folded = fold(messages)
            if folded == tuple(messages):
                raise
            return self._render(folded, tools)

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[str, ...]:
        shown_tools = [toolformats.as_json(tool) for tool in tools] if self.tool_format.is_native else []
        shield = Shield(self._control, [*_texts(messages), json.dumps(shown_tools, ensure_ascii=False)])
        context = {
            "messages": [_template_message(message, shield.protect) for message in messages],
            "add_generation_prompt": True,
            "tools": _protected(shown_tools, shield.protect) or None,
            "documents": None,
        }
        return shield.pieces(self._bounded(context))

    def _bounded(self, context: dict[str, Any]) -> str:
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(**context):
                parts.append(part)
                size += len(part)
                if size > MAX_PROMPT_CHARS:
                    raise TemplateRejected(f"the prompt is longer than {MAX_PROMPT_CHARS} characters")
        except TemplateRejected:
            raise
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, OverflowError) as exc:
            raise TemplateRejected(
                f"the model's chat template fails on this conversation: {type(exc).__name__}"
            ) from exc
        return "".join(parts)


def _texts(messages: Sequence[Message]) -> list[str]:
    texts = [text for message in messages for text in (message.text, message.name, message.tool_call_id) if text]
    return texts + [text for message in messages for call in message.tool_calls for text in (call.name, call.arguments)]


def _template_message(message: Message, protect: Callable[[str], str]) -> dict[str, Any]:
    """One message as templates expect it, every text that people or tools wrote protected."""
    entry: dict[str, Any] = {"role": message.role.value, "content": protect(message.text or "")}
    if message.name:
        entry["name"] = protect(message.name)
    if message.tool_call_id:
        entry["tool_call_id"] = protect(message.tool_call_id)
    if message.tool_calls:
        entry["tool_calls"] = [
            {
                "id": protect(call.id),
                "type": "function",
                "function": {"name": protect(call.name), "arguments": _arguments(call, protect)},
            }
            for call in message.tool_calls
        ]
    return entry


def _arguments(call: ToolCall, protect: Callable[[str], str]) -> Any:
    """The arguments as the object most templates expect; as they are where they are none."""
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError):
        return protect(call.arguments)
    return _protected(arguments, protect) if isinstance(arguments, dict) else protect(call.arguments)


def _protected(value: Any, protect: Callable[[str], str]) -> Any:
    """A JSON value with every text in it protected; its depth was bounded at the door."""
    match value:
        case str():
            return protect(value)
        case list():
            return [_protected(item, protect) for item in value]
        case dict():
            return {protect(key): _protected(item, protect) for key, item in value.items()}
        case _:
            return value


def _to_json(value: Any, indent: int | None = None, **_: object) -> str:
    """The filter templates are written for: plain JSON, where Jinja's own escapes it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def fold(messages: Sequence[Message]) -> tuple[Message, ...]:
    """System text moved into the first user turn, neighbouring plain turns of one role joined by a blank line."""
    system = "\n\n".join(m.text for m in messages if m.role is Role.SYSTEM and m.text)
    folded: list[Message] = []
    for message in (m for m in messages if m.role is not Role.SYSTEM):
        previous = folded[-1] if folded else None
        if previous and _joinable(previous, message):
            folded[-1] = replace(previous, text=f"{previous.text}\n\n{message.text}")
        else:
            folded.append(message)
    if system:
        first = next((i for i, m in enumerate(folded) if m.role is Role.USER), None)
        if first is None:
            return (Message(Role.USER, system), *folded)
        folded[first] = replace(folded[first], text=f"{system}\n\n{folded[first].text or ''}")
    return tuple(folded)


def _joinable(first: Message, second: Message) -> bool:
    return first.role is second.role and first.role is not Role.TOOL and not first.tool_calls and not second.tool_calls
