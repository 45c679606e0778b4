"""How model families write function calls, and how tools and earlier calls are shown to them. Pure.

A chat template that renders tools tells by its text which family it belongs to. Any other gets the tools as a block in
the system turn and the Hermes form for calls, which small models meet most often in training.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from edged.core import Message, Role, Tool, ToolCall

_MISTRAL_ID_CHARACTERS = 9


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A family's form of a call: ``{"name": ..., ARGUMENTS_KEY: {...}}`` between ``opening`` and ``closing``.

    ``in_list``: the calls of an answer are the elements of one JSON array. Without an ``opening`` the answer itself is
    the call. ``is_native``: the template renders tools and calls; else ``shown`` rewrites them as text.
    ``is_parallel``: it takes a turn of several calls.
    """

    name: str
    opening: str = ""
    closing: str = ""
    arguments_key: str = "arguments"
    in_list: bool = False
    is_native: bool = True
    is_parallel: bool = True
    id_characters: int | None = None

    @property
    def lead(self) -> str:
        """What stands between the opening and the first call's brace."""
        return "[" if self.in_list else "\n" if self.opening else ""

    @property
    def head(self) -> str:
        """How a call begins, up to the function's name."""
        return '{"name": "'

    @property
    def middle(self) -> str:
        """What stands between a call's function name and its arguments."""
        return f'", "{self.arguments_key}": '

    @property
    def between(self) -> str:
        """What stands between a call's closing brace and the next call's opening one."""
        if self.in_list:
            return ", "
        return f"\n{self.closing}\n{self.opening}\n" if self.closing else "\n"

    @property
    def tail(self) -> str:
        """What follows the last call's closing brace."""
        return "]" if self.in_list else f"\n{self.closing}" if self.closing else ""


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>")
LLAMA = ToolFormat("llama", arguments_key="parameters", is_parallel=False)
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", in_list=True, id_characters=_MISTRAL_ID_CHARACTERS)
GENERIC = replace(HERMES, name="generic", is_native=False)

# (marks that must all be in a template, marks that must not): XML or Python arguments are forms we do not read.
_FAMILIES = (
    (HERMES, ("<tool_call>", '"arguments"'), ("<function=", "<arg_key>")),
    (HERMES, ("<tool_call>", "'arguments'"), ("<function=", "<arg_key>")),
    (MISTRAL, ("[TOOL_CALLS]", "[AVAILABLE_TOOLS]"), ("[ARGS]", "[CALL_ID]")),
    (LLAMA, ("ipython", '"parameters": '), ()),
)


def detect(template: str) -> ToolFormat:
    """The family's form by the text of its chat template."""
    if "tools" not in template:
        return GENERIC
    for form, marks, others in _FAMILIES:
        if all(mark in template for mark in marks) and not any(mark in template for mark in others):
            return form
    return GENERIC


# -- what the model is shown -----------------------------------------------------------------------------------------


def as_json(tool: Tool) -> dict[str, object]:
    """A tool as templates and OpenAI's API write it."""
    function: dict[str, object] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = parameters(tool)
    return {"type": "function", "function": function}


def parameters(tool: Tool) -> dict[str, object]:
    """The schema of a tool's arguments; a function without parameters takes the empty object."""
    if tool.parameters_json is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema: dict[str, object] = json.loads(tool.parameters_json)
    if not schema.keys() & {"type", "$ref", "anyOf", "oneOf", "allOf"}:
        return {"type": "object", **schema}
    return schema


_INTRODUCTION = """# Tools

You may call functions to help with the user's request. Their signatures are inside <tools></tools>:
<tools>
{tools}
</tools>

To call a function, answer with its name and arguments as JSON inside <tool_call></tool_call>:
<tool_call>
{{"name": "function-name", "arguments": {{"argument-name": "value"}}}}
</tool_call>"""


def shown(form: ToolFormat, messages: Sequence[Message], tools: Sequence[Tool]) -> tuple[Message, ...]:
    """The conversation as the template takes it: with tools, calls and results as text where it knows no others."""
    if form.is_native:
        return tuple(_with_short_ids(message, form) for message in messages)
    plain = [_plain(message) for message in messages]
    if not tools:
        return tuple(plain)
    block = _INTRODUCTION.format(tools="\n".join(json.dumps(as_json(tool), ensure_ascii=False) for tool in tools))
    if plain and plain[0].role is Role.SYSTEM:
        return (replace(plain[0], text=f"{plain[0].text or ''}\n\n{block}".strip()), *plain[1:])
    return (Message(Role.SYSTEM, block), *plain)


def _plain(message: Message) -> Message:
    """Calls and results as the text a model of the Hermes family would have seen."""
    if message.role is Role.TOOL:
        return Message(Role.USER, f"<tool_response>\n{message.text or ''}\n</tool_response>")
    if not message.tool_calls:
        return message
    calls = "\n".join(written(GENERIC, call) for call in message.tool_calls)
    return Message(Role.ASSISTANT, f"{message.text}\n{calls}" if message.text else calls, message.name)


def written(form: ToolFormat, call: ToolCall) -> str:
    """One earlier call in the family's form."""
    body = f"{form.head}{call.name}{form.middle}{call.arguments}}}"
    return f"{form.opening}{form.lead}{body}{form.tail}"


def _with_short_ids(message: Message, form: ToolFormat) -> Message:
    """Templates of the Mistral family refuse ids of any other length, such as those a cloud gave."""
    if form.id_characters is None or not (message.tool_calls or message.tool_call_id):
        return message
    size = form.id_characters
    calls = tuple(replace(call, id=_short(call.id, size)) for call in message.tool_calls)
    call_id = message.tool_call_id and _short(message.tool_call_id, size)
    return replace(message, tool_calls=calls, tool_call_id=call_id)


def _short(call_id: str, size: int) -> str:
    if len(call_id) == size and call_id.isalnum():
        return call_id
    return hashlib.blake2b(call_id.encode("utf-8", "replace")).hexdigest()[:size]
