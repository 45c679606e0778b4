"""From the body of an OpenAI request to the internal ``Request``: the rules that join fields, and their translation.

The fields themselves, with their types and limits, are in ``openai_bodies``.
"""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from edged.chat.schema import Allowance
from edged.core import (
    IMAGE_MARK,
    Chat,
    Completion,
    Image,
    Limits,
    Locality,
    Message,
    Request,
    Role,
    Sampling,
    ToolCall,
    strictest,
)
from edged.errors import InvalidRequest, Unsupported
from edged.server.openai_bodies import MAX_INT32, Body, ChatBody, ChatMessage, CompletionBody, EdgedOptions, Part
from edged.server.openai_images import MAX_IMAGES, image
from edged.server.openai_tools import output_format, tool_choice, tools
from edged.server.wire import missing, parse_json, shown_name, validate, wrong_type, wrong_value

MAX_BIAS = 100
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class ParsedRequest:
    """What the body asks of edged, and whether its stream ends with a usage chunk."""

    request: Request
    include_usage: bool


# -- the two requests ------------------------------------------------------------------------------------------------


def chat_request(
    document: dict[str, Any],
    *,
    id: str,  # noqa: A002 - the Request's own word
    received_s: float,
    tenant: str = "",
    header: str | None = None,
) -> ParsedRequest:
    """Turn a chat completion body and the text of an ``x-edged`` header into a ``Request``.

    Raises: InvalidRequest, Unsupported.
    """
    body = validate(ChatBody, document)
    common = _common(body, header)
    allowance = Allowance()
    declared = tools(body.tools or (), allowance)
    request = Request(
        id=id,
        received_s=received_s,
        tenant=tenant,
        input=_chat(body.messages),
        max_tokens=_max_tokens(body),
        top_logprobs=_top_logprobs(body),
        tools=declared,
        tool_choice=tool_choice(body.tool_choice, declared),
        parallel_tool_calls=body.parallel_tool_calls,
        output=output_format(body.response_format, allowance),
        **common,
    )
    return ParsedRequest(request, _include_usage(body))


def completion_request(
    document: dict[str, Any],
    *,
    id: str,  # noqa: A002 - the Request's own word
    received_s: float,
    tenant: str = "",
    header: str | None = None,
) -> ParsedRequest:
    """Turn a completion body and the text of an ``x-edged`` header into a ``Request``.

    Raises: InvalidRequest, Unsupported.
    """
    body = validate(CompletionBody, document)
    if body.best_of not in (None, body.n or 1):
        raise Unsupported("best_of other than n is not supported yet: leave it out", param="best_of")
    request = Request(
        id=id,
        received_s=received_s,
        tenant=tenant,
        input=Completion(_prompt(body.prompt)),
        max_tokens=body.max_tokens,
        top_logprobs=body.logprobs,
        **_common(body, header),
    )
    return ParsedRequest(request, _include_usage(body))


def _common(body: Body, header: str | None) -> dict[str, Any]:
    return {
        "model": body.model,
        "sampling": _sampling(body),
        "stop": tuple(body.stop or ()),
        "n": body.n or 1,
        "stream": bool(body.stream),
        "limits": limits(body.edged, header),
    }


def _sampling(body: Body) -> Sampling:
    return Sampling(
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repeat_penalty=body.repeat_penalty,
        logit_bias=tuple(_bias(key, value) for key, value in (body.logit_bias or {}).items()),
        seed=body.seed,
    )


def _bias(key: str, value: Any) -> tuple[int, float]:
    """One entry of ``logit_bias``; whether the model has such a token is known only where its vocabulary is."""
    if not _TOKEN_ID.fullmatch(key) or int(key) > MAX_INT32:
        raise wrong_value("logit_bias", "must have token ids as keys, whole numbers from 0", key)
    if type(value) not in (int, float):
        raise wrong_type("logit_bias", f"must have numbers as values (token {key})", value)
    if not -MAX_BIAS <= value <= MAX_BIAS:
        raise wrong_value("logit_bias", f"must have values from -{MAX_BIAS} to {MAX_BIAS} (token {key})", value)
    return int(key), float(value)


def _max_tokens(body: ChatBody) -> int | None:
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        must = f"must equal max_tokens ({body.max_tokens}) where both are given"
        raise wrong_value("max_completion_tokens", must, body.max_completion_tokens)
    return body.max_completion_tokens or body.max_tokens


def _top_logprobs(body: ChatBody) -> int | None:
    """None where no log-probabilities were asked for, 0 where only those of the chosen tokens were."""
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs is not None:
        raise wrong_value("top_logprobs", "needs logprobs to be true", body.top_logprobs)
    return None


def _include_usage(body: Body) -> bool:
    if body.stream_options is None:
        return False
    if not body.stream:
        raise InvalidRequest("stream_options needs stream to be true", param="stream_options", code="invalid_value")
    return bool(body.stream_options.include_usage)


# -- messages --------------------------------------------------------------------------------------------------------

_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
}
# The one role that may have the field.
_BELONGS_TO = {
    "tool_call_id": "tool",
    "tool_calls": "assistant",
    "refusal": "assistant",
    "annotations": "assistant",
    "reasoning_content": "assistant",
}
_NOT_TEXT = {"input_audio": "audio", "file": "files", "video_url": "video"}


def _chat(messages: list[ChatMessage]) -> Chat:
    chat = Chat(tuple(_message(f"messages[{i}]", message) for i, message in enumerate(messages)))
    count = sum(len(message.images) for message in chat.messages)
    if count > MAX_IMAGES:
        raise wrong_value("messages", f"must hold at most {MAX_IMAGES} images", count)
    return chat


def _message(param: str, message: ChatMessage) -> Message:
    if message.role not in _ROLES:
        raise Unsupported(f'{param}.role "function" is not supported: use "tool"', param=f"{param}.role")
    for name, role in _BELONGS_TO.items():
        if getattr(message, name) and message.role != role:
            text = f"{param}.{name} is only known on messages of the role {role}"
            raise InvalidRequest(text, param=f"{param}.{name}", code="unknown_parameter")
    if message.role == "tool" and message.tool_call_id is None:
        raise missing(f"{param}.tool_call_id")
    calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in message.tool_calls or ())
    images = _images(f"{param}.content", message)
    content = _content(f"{param}.content", message, has_images=bool(images))
    return Message(_ROLES[message.role], content, message.name, calls, message.tool_call_id, images)


def _images(param: str, message: ChatMessage) -> tuple[Image, ...]:
    """The images of a message, in order: only a user shows any."""
    found = [(j, part) for j, part in enumerate(message.content or ()) if part.type == "image_url"]
    if found and message.role != "user":
        text = f"{param}[{found[0][0]}]: images are only known on messages of the role user"
        raise Unsupported(text, param=f"{param}[{found[0][0]}]")
    return tuple(
        image(f"{param}[{j}].image_url", _only(f"{param}[{j}]", part, "image_url").get("image_url"))
        for j, part in found
    )


def _content(param: str, message: ChatMessage, *, has_images: bool) -> str | None:
    """Join the parts with a line break, as llama.cpp and vLLM do; None only where tool calls stand for the text.

    Beside images, a mark in the client's own text would be taken for one of them: it is left out.
    """
    if message.content is not None:
        texts = [_part(f"{param}[{j}]", part) for j, part in enumerate(message.content)]
        if has_images:
            texts = [IMAGE_MARK if text is None else text.replace(IMAGE_MARK, "") for text in texts]
        return "\n".join(text or "" for text in texts)
    if message.refusal is not None or message.tool_calls:
        return message.refusal
    if "content" not in message.model_fields_set:
        raise missing(param)
    raise wrong_type(param, "must be a string or an array of text parts", None)


def _part(param: str, part: Part) -> str | None:
    """The text of a part, None for an image."""
    if part.type == "image_url":
        return None
    if part.type in _NOT_TEXT:
        what = _NOT_TEXT[part.type]
        raise Unsupported(f"{param}: {what} are not supported yet: send text parts only", param=param)
    if part.type not in ("text", "refusal"):
        raise wrong_value(f"{param}.type", "must be 'text' or 'image_url'", part.type)
    _only(param, part)
    text = part.text if part.type == "text" else part.refusal
    if text is None:
        raise missing(f"{param}.{part.type}")
    return text


def _only(param: str, part: Part, *known: str) -> dict[str, Any]:
    """What else a part holds, if that is ``known`` or a caching hint."""
    extra = part.model_extra or {}
    for name in extra.keys() - {"prompt_cache_breakpoint", *known}:
        full = f"{param}.{shown_name(name)}"
        raise InvalidRequest(f"unknown parameter: {full}", param=full, code="unknown_parameter")
    return extra


# -- the prompt of a plain completion --------------------------------------------------------------------------------


def _prompt(prompt: Any) -> str | tuple[int, ...]:
    """A string, an array of one string, token ids, or an array of one array of token ids."""
    if not isinstance(prompt, list) or not prompt or not isinstance(prompt[0], str | list):
        return one_prompt("prompt", prompt)
    if len(prompt) > 1:
        raise Unsupported("prompt: only one prompt per request is supported", param="prompt")
    return one_prompt("prompt[0]", prompt[0])


def one_prompt(param: str, prompt: Any) -> str | tuple[int, ...]:
    """Nothing follows from nothing: an empty prompt is refused, it does not mean "begin with any text"."""
    if not isinstance(prompt, str | list):
        raise wrong_type(param, "must be a string or an array of token ids", prompt)
    if not prompt:
        raise wrong_value(param, "must not be empty", prompt)
    if isinstance(prompt, str):
        return prompt
    return tuple(_token_id(f"{param}[{i}]", token) for i, token in enumerate(prompt))


def _token_id(param: str, token: Any) -> int:
    if type(token) is not int:
        raise wrong_type(param, "must be a token id", token)
    if not 0 <= token <= MAX_INT32:
        raise wrong_value(param, f"must be a token id, from 0 to {MAX_INT32}", token)
    return token


# -- the request's own limits ----------------------------------------------------------------------------------------


def limits(body: EdgedOptions | None, header: str | None) -> Limits:
    """Where the body and the header both say something, the tighter of the two holds."""
    given = [options for options in (body, _header_options(header)) if options is not None]
    deadline_ms = min((o.deadline_ms for o in given if o.deadline_ms is not None), default=None)
    cost_usd = min((o.max_cost_usd for o in given if o.max_cost_usd is not None), default=None)
    return Limits(
        locality=_locality([Locality(o.locality) for o in given if o.locality is not None]),
        task=_agreed("task", [o.task for o in given]),
        deadline_s=None if deadline_ms is None else deadline_ms / 1000,
        min_confidence=max((o.min_confidence for o in given if o.min_confidence is not None), default=None),
        max_cost_uusd=None if cost_usd is None else int(Decimal(repr(cost_usd)) * 1_000_000),
    )


def _locality(labels: list[Locality]) -> Locality:
    """The strictest of two labels; where one of them names the cloud, neither is."""
    if Locality.CLOUD_ONLY not in labels:
        return strictest(*labels)
    return Locality(_agreed("locality", [label for label in labels if label is not Locality.ANY]) or "any")


def _header_options(header: str | None) -> EdgedOptions | None:
    if header is None:
        return None
    try:
        document = parse_json(header.encode("utf-8", "surrogatepass"), what="the x-edged header")
    except InvalidRequest as exc:
        exc.param = "x-edged"
        raise
    return validate(EdgedOptions, document, inside="x-edged")


def _agreed(name: str, values: list[str | None]) -> str | None:
    """The one value that was given: of two different ones neither is tighter."""
    different = {value for value in values if value is not None}
    if len(different) > 1:
        both = " and ".join(sorted(different))
        text = f"edged.{name}: the body and the x-edged header ask for different things: {both}"
        raise InvalidRequest(text, param=f"edged.{name}", code="invalid_value")
    return different.pop() if different else None
