"""A Request as Anthropic's Messages API asks for it: translated faithfully, or refused before anything is spent. Pure.

What the API lacks and what becomes of it is in docs/upstreams.md. System messages are joined and go first, as
Anthropic's own layer for OpenAI clients does it; tool results of one round share one user turn, as the API wants it.
"""

import json
import re
from collections.abc import Iterator, Mapping

from edged.config import UpstreamModelConfig
from edged.core import Chat, Image, Message, OutputKind, Request, Role, Sampling, Tool, ToolCall, ToolMode
from edged.errors import Unsupported
from edged.upstream.anthropic_schema import closed_schema
from edged.upstream.codec import Call
from edged.upstream.images import parts
from edged.upstream.refusals import may_drop

Block = dict[str, object]
_ID = re.compile(r"[A-Za-z0-9_-]+")
_HOTTEST = 1.0
_LACKS = {"n": "one answer per call", "logprobs": "no log-probabilities", "logit_bias": "no logit bias"}


def encode(request: Request, model: UpstreamModelConfig, *, pinned: bool) -> Call:
    """The call that asks ``model``; ``pinned``: the client named this very model.

    Raises: Unsupported.
    """
    _refuse_what_it_lacks(request)
    assert isinstance(request.input, Chat)
    dropped: list[str] = []
    body: dict[str, object] = {
        "model": model.name,
        "max_tokens": request.max_tokens or model.max_output_tokens,
        "stream": True,
        **_conversation(request.input.messages, dropped),
    }
    if request.stop:
        body["stop_sequences"] = list(request.stop)
    body |= _tools(request)
    if request.output.kind is not OutputKind.TEXT:
        body["output_config"] = {"format": {"type": "json_schema", "schema": _schema(request)}}
    body |= _sampling(request.sampling, dropped, pinned=pinned)
    return Call("/messages", body, tuple(dict.fromkeys(dropped)))


def _refuse_what_it_lacks(request: Request) -> None:
    if not isinstance(request.input, Chat):
        raise Unsupported("prompt: Anthropic answers chats only, no plain completions", param="prompt")
    asked = {"n": request.n > 1, "logprobs": request.top_logprobs is not None}
    asked["logit_bias"] = bool(request.sampling.logit_bias)
    for name, is_asked in asked.items():
        if is_asked:
            raise Unsupported(f"{name}: Anthropic's API has {_LACKS[name]}", param=name)
    if any(not stop.strip() for stop in request.stop):
        raise Unsupported("stop: Anthropic takes no stop string of white space alone", param="stop")


# -- the conversation ------------------------------------------------------------------------------------------------


def _conversation(messages: tuple[Message, ...], dropped: list[str]) -> dict[str, object]:
    if messages[-1].role is Role.ASSISTANT:
        text = f"messages[{len(messages) - 1}]: Anthropic would continue an assistant's last message, not answer it"
        raise Unsupported(text, param=f"messages[{len(messages) - 1}]")
    if any(message.name is not None for message in messages):
        dropped.append("messages.name")
    if any(image.detail in {"low", "high"} for message in messages for image in message.images):
        dropped.append("image_url.detail")
    system = [message.text or "" for message in messages if message.role is Role.SYSTEM]
    fields: dict[str, object] = {"system": "\n\n".join(system)} if any(system) else {}
    return {**fields, "messages": _turns(messages)}


def _turns(messages: tuple[Message, ...]) -> list[Block]:
    """Messages of one speaker in a row are one turn."""
    ids = _Ids()
    turns: list[tuple[str, list[Block]]] = []
    for place, message in enumerate(messages):
        if message.role is Role.SYSTEM:
            continue
        blocks = list(_blocks(message, f"messages[{place}]", ids))
        if not blocks:
            raise Unsupported(f"messages[{place}]: Anthropic takes no empty message", param=f"messages[{place}]")
        speaker = "assistant" if message.role is Role.ASSISTANT else "user"
        if turns and turns[-1][0] == speaker:
            turns[-1][1].extend(blocks)
        else:
            turns.append((speaker, blocks))
    if not turns:
        raise Unsupported("messages: Anthropic needs a message that is not the system's", param="messages")
    return [{"role": speaker, "content": blocks} for speaker, blocks in turns]


def _blocks(message: Message, param: str, ids: "_Ids") -> Iterator[Block]:
    if message.role is Role.TOOL:
        yield {"type": "tool_result", "tool_use_id": ids.of(message.tool_call_id or ""), "content": message.text or ""}
        return
    yield from (_content(part) for part in parts(message))
    for call in message.tool_calls:
        arguments = _arguments(call, param)
        yield {"type": "tool_use", "id": ids.of(call.id), "name": call.name, "input": arguments}


def _content(part: str | Image) -> Block:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if part.url is not None:
        return {"type": "image", "source": {"type": "url", "url": part.url}}
    return {"type": "image", "source": {"type": "base64", "media_type": part.mime, "data": part.data}}


def _arguments(call: ToolCall, param: str) -> object:
    """The arguments as the object that Anthropic wants; nothing at all means none."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise Unsupported(f"{param}.tool_calls: Anthropic takes a JSON object as arguments only", param=param)
    return arguments


class _Ids:
    """Call ids in the alphabet that Anthropic allows: those of others are replaced, one for one."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, call_id: str) -> str:
        if call_id not in self._known:
            is_valid = bool(_ID.fullmatch(call_id))
            self._known[call_id] = call_id if is_valid else f"edged_call_{len(self._known)}"
        return self._known[call_id]


# -- form ------------------------------------------------------------------------------------------------------------


def _tools(request: Request) -> dict[str, object]:
    if not request.tools:
        return {}
    fields: dict[str, object] = {"tools": [_tool(tool) for tool in request.tools]}
    choice = _choice(request)
    if choice is not None:
        fields["tool_choice"] = choice
    return fields


def _tool(tool: Tool) -> Block:
    schema = json.loads(tool.parameters_json) if tool.parameters_json is not None else {}
    given: Block = {"name": tool.name, "description": tool.description, "input_schema": {"type": "object", **schema}}
    if tool.strict:
        given |= {"strict": True, "input_schema": closed_schema({"type": "object", **schema}, param="tools")}
    return {name: value for name, value in given.items() if value is not None}


def _choice(request: Request) -> Block | None:
    """The choice, with the ban on parallel calls that Anthropic keeps inside it."""
    if request.tool_choice is None and request.parallel_tool_calls is not False:
        return None
    names = {ToolMode.NONE: "none", ToolMode.AUTO: "auto", ToolMode.REQUIRED: "any", ToolMode.NAMED: "tool"}
    choice: Block = {"type": names[request.tool_mode]}
    if request.tool_choice is not None and request.tool_mode is ToolMode.NAMED:
        choice["name"] = request.tool_choice.name
    if request.parallel_tool_calls is False and request.tool_mode is not ToolMode.NONE:
        choice["disable_parallel_tool_use"] = True
    return choice


def _schema(request: Request) -> Mapping[str, object]:
    if request.output.kind is not OutputKind.JSON_SCHEMA:
        text = f"response_format: Anthropic keeps to JSON schemas only, not to the type {request.output.kind}"
        raise Unsupported(text, param="response_format")
    return closed_schema(json.loads(request.output.definition), param="response_format")


# -- sampling --------------------------------------------------------------------------------------------------------


def _sampling(sampling: Sampling, dropped: list[str], *, pinned: bool) -> dict[str, object]:
    """Temperature and top_p; top_k follows a pin. The rest has no equivalent: a wish left out, or an order refused."""
    asked = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    if pinned:
        asked["top_k"] = sampling.top_k
    if sampling.temperature is not None and sampling.temperature > _HOTTEST:
        _leave_out("temperature", f"goes up to {_HOTTEST:g}", dropped, pinned=pinned)
        asked["temperature"] = _HOTTEST
    lacking = {
        "seed": sampling.seed,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
    }
    if pinned:
        lacking |= {"min_p": sampling.min_p or None, "repeat_penalty": _unless_one(sampling.repeat_penalty)}
    for name, value in lacking.items():
        if value is not None:
            _leave_out(name, "does not exist", dropped, pinned=pinned)
    return {name: value for name, value in asked.items() if value is not None}


def _unless_one(penalty: float | None) -> float | None:
    return None if penalty == 1 else penalty


def _leave_out(name: str, why: str, dropped: list[str], *, pinned: bool) -> None:
    if not may_drop(name, None, pinned=pinned):
        raise Unsupported(f"{name}: {why} in Anthropic's API", param=name)
    dropped.append(name)
