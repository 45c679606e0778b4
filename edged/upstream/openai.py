"""OpenAI's API as spoken to a provider: a Request to a JSON body, its answer to Chunks. Pure.

Every call asks for a stream with usage, whatever the client asked of us: so the first token is measured and a stall
is noticed. What is sent is an allow-list built from the request's own values; nothing else a client wrote can pass.
Parameters OpenAI does not document (``top_k``, ``min_p``, ``repetition_penalty``) are sent only with a request pinned
to this very model: on an escalation they were meant for the local sampler, and strict providers refuse them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from edged.config import OpenRouterConfig, Secret, UpstreamConfig, UpstreamModelConfig
from edged.core import (
    Chat,
    Chunk,
    Completion,
    FinishReason,
    Image,
    Message,
    Request,
    Sampling,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from edged.errors import Unsupported, UpstreamUnavailable
from edged.upstream import faults, images, openai_tools, pricing
from edged.upstream.codec import Call
from edged.upstream.openai_parts import read_cost_uusd, read_logprobs, read_usage
from edged.upstream.wire import Malformed, SurrogateJoin, as_integer, as_list, as_object, as_text, parse_json

DONE = "[DONE]"
_FINISH = {
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    "safety": FinishReason.CONTENT_FILTER,
    "tool_calls": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one provider deviates: the name of the output limit, which OpenAI itself renamed, and ``extra`` fields.

    The extra fields are OpenRouter's: what it costs in every answer, and the operator's preferences among providers.
    """

    limit_field: str = "max_tokens"
    extra: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def of(cls, base_url: str, openrouter: OpenRouterConfig | None = None) -> "Dialect":
        if base_url.startswith("https://api.openai.com/"):
            return cls("max_completion_tokens")
        if openrouter is not None or base_url.startswith("https://openrouter.ai/"):
            return cls(extra=_openrouter_fields(openrouter or OpenRouterConfig()))
        return cls()


def _openrouter_fields(config: OpenRouterConfig) -> dict[str, object]:
    fields: dict[str, object] = {"usage": {"include": True}}
    if config.provider is not None:
        fields["provider"] = config.provider.model_dump(mode="json", exclude_none=True)
    if config.models:
        fields["models"] = list(config.models)
    return fields


class OpenAICodec:
    """``kind = "openai"``"""

    def __init__(self, config: UpstreamConfig) -> None:
        self._upstream = config.name
        self._dialect = Dialect.of(config.base_url, config.openrouter)

    def headers(self, secret: Secret | None) -> dict[str, str]:
        return {} if secret is None else {"Authorization": f"Bearer {secret.reveal()}"}

    def encode(self, request: Request, model: UpstreamModelConfig, *, pinned: bool) -> Call:
        return encode(request, model.name, pinned=pinned, dialect=self._dialect)

    def decoder(self, request: Request, call: Call) -> "Decoder":
        return Decoder(request, upstream=self._upstream, call=call)


# -- asking ----------------------------------------------------------------------------------------------------------


def encode(request: Request, model: str, *, pinned: bool, dialect: Dialect | None = None) -> Call:
    """The call that asks ``model`` for ``request``'s answer; ``pinned``: the client named this very model.

    Raises: Unsupported where the request's meaning would not survive, before anything is spent.
    """
    dialect = dialect or Dialect()
    limit_field = dialect.limit_field
    path, body = _input(request.input)
    body = {"model": model, **body, "stream": True, "stream_options": {"include_usage": True}, **dialect.extra}
    if request.max_tokens is not None:
        body[limit_field if isinstance(request.input, Chat) else "max_tokens"] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.n > 1:
        body["n"] = request.n
    body |= openai_tools.asked(request)
    body |= _logprobs_asked(request)
    body |= _sampling(request.sampling, pinned=pinned)
    return Call(path, body)


def _input(asked: Chat | Completion) -> tuple[str, dict[str, object]]:
    if isinstance(asked, Chat):
        return "/chat/completions", {"messages": [_message(message) for message in asked.messages]}
    if not isinstance(asked.prompt, str):
        raise Unsupported("a prompt of token ids fits only the local model it was made for", param="prompt")
    return "/completions", {"prompt": asked.prompt}


def _message(message: Message) -> dict[str, object]:
    wire: dict[str, object] = {"role": message.role.value, "content": _content(message)}
    if message.name is not None:
        wire["name"] = message.name
    if message.tool_calls:
        wire["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _content(message: Message) -> object:
    """Text as it is; with images, the parts in their order."""
    if not message.images:
        return message.text
    return [_part(part) for part in images.parts(message)]


def _part(part: str | Image) -> dict[str, object]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    url: dict[str, object] = {"url": part.url or f"data:{part.mime};base64,{part.data}"}
    if part.detail is not None:
        url["detail"] = part.detail
    return {"type": "image_url", "image_url": url}


def _tool_call(call: ToolCall) -> dict[str, object]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs_asked(request: Request) -> dict[str, object]:
    if request.top_logprobs is None:
        return {}
    if isinstance(request.input, Completion):
        return {"logprobs": request.top_logprobs}
    return {"logprobs": True, "top_logprobs": request.top_logprobs}


def _sampling(sampling: Sampling, *, pinned: bool) -> dict[str, object]:
    """Only what was asked for. A logit bias names token ids of one vocabulary: it cannot follow an escalation."""
    asked: dict[str, object] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
    }
    if pinned:
        asked |= {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repeat_penalty,
        }
    if sampling.logit_bias:
        if not pinned:
            raise Unsupported(
                "logit_bias names token ids of one model; ask for that model by its UPSTREAM/model name",
                param="logit_bias",
            )
        asked["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    return {name: value for name, value in asked.items() if value is not None}


# -- the answer ------------------------------------------------------------------------------------------------------


class Decoder:
    """One answer: events or a whole body in, chunks out, then ``close`` for what ends it.

    Finish reasons are held back until ``close``, because usage comes after them on the wire and core puts it on the
    very last chunk. All errors are UpstreamErrors; none repeats what the provider wrote.
    """

    def __init__(self, request: Request, *, upstream: str, call: Call) -> None:
        self._request = request
        self._upstream = upstream
        self._sent = frozenset(call.body)
        self._plain = isinstance(request.input, Completion)
        self._finish: dict[int, FinishReason | None] = {}
        self._joins: dict[int, SurrogateJoin] = {}
        self._calls: dict[int, openai_tools.CallReader] = {}
        self._usage: Usage | None = None
        self._cost_uusd: int | None = None
        self._model: str | None = None
        self._counted_tokens = 0
        self.started = False
        self.done = False

    def __repr__(self) -> str:
        return f"Decoder(choices={len(self._finish)}, started={self.started}, done={self.done})"

    @property
    def finished(self) -> bool:
        """Every choice asked for has its finish reason; usage may still come."""
        reasons = self._finish.values()
        return len(self._finish) >= self._request.n and all(reason is not None for reason in reasons)

    def event(self, data: str, *, name: str = "message", whole: bool = True) -> list[Chunk]:
        """The chunks of one event's data. A part of an event (``whole=False``) that is no JSON counts as not sent."""
        if self.done or not data.strip():
            return []
        if data.strip() == DONE:
            self.done = True
            return []
        try:
            return self._chunks(parse_json(data), is_error=name == "error")
        except Malformed as exc:
            if not whole:
                return []
            raise faults.protocol_error(self._upstream, f"sent a malformed event: {exc}") from None

    def body(self, data: bytes) -> list[Chunk]:
        """The chunks of a plain JSON answer, from a server that ignores ``stream``."""
        try:
            chunks = self._chunks(parse_json(data.decode("utf-8", "replace")))
        except Malformed as exc:
            raise faults.protocol_error(self._upstream, f"sent a malformed answer: {exc}") from None
        self.done = True
        return chunks

    def close(self) -> list[Chunk]:
        """The last chunks: each choice's finish reason, with usage, cost and model on the very last.

        Raises: UpstreamProtocolError where the answer is truncated or there is none.
        """
        if len(self._finish) < self._request.n and (self.done or not self._finish):
            raise faults.protocol_error(self._upstream, f"sent {len(self._finish)} of {self._request.n} answers")
        if not self.finished and (not self.done or any(calls.is_open for calls in self._calls.values())):
            raise faults.truncated(self._upstream)
        last = len(self._finish) - 1
        return [
            Chunk(
                choice,
                self._joins[choice].flush(),
                tool_calls=self._calls_of(choice).flush(),
                finish=self._finish_of(choice, reason),
                usage=self._final_usage() if place == last else None,
                cost_uusd=self._cost_uusd if place == last else None,
                model=self._model if place == last else None,
            )
            for place, (choice, reason) in enumerate(sorted(self._finish.items()))
        ]

    def _final_usage(self) -> Usage:
        """The provider's count; a marked estimate where it gave none or counts nothing for the text it sent (F16)."""
        if self._usage is not None and (self._usage.completion_tokens or not self._counted_tokens):
            return self._usage
        prompt_tokens = self._usage.prompt_tokens if self._usage else 0
        return Usage(
            prompt_tokens=prompt_tokens or pricing.estimate_prompt_tokens(self._request),
            completion_tokens=self._counted_tokens,
            estimated=True,
        )

    def _chunks(self, value: object, *, is_error: bool = False) -> list[Chunk]:
        document = as_object(value, "the event")
        faults.raise_found(self._upstream, document, sent=self._sent, is_error=is_error)
        self._note_extras(document)
        choices = as_list(document.get("choices"), "choices")
        return [chunk for choice in choices if (chunk := self._choice(as_object(choice, "a choice"))) is not None]

    def _note_extras(self, document: Mapping[str, object]) -> None:
        if isinstance(model := document.get("model"), str) and model:
            self._model = model[:200]
        groq = document.get("x_groq")
        usage = document.get("usage") or (groq.get("usage") if isinstance(groq, Mapping) else None)
        if isinstance(usage, Mapping):
            self._usage = read_usage(usage) or self._usage
            cost_uusd = read_cost_uusd(usage)
            self._cost_uusd = self._cost_uusd if cost_uusd is None else cost_uusd

    def _choice(self, wire: Mapping[str, object]) -> Chunk | None:
        """One choice's news, or None where it holds no text: a role, a reasoning step, a finish reason."""
        index = as_integer(wire.get("index") or 0, "index")
        if not 0 <= index < self._request.n:
            raise Malformed(f"choice {index} of {self._request.n}")
        self._finish.setdefault(index, None)
        text, thinks, calls = self._text(wire, index)
        text = self._joins.setdefault(index, SurrogateJoin()).join(text)
        self._note_finish(index, as_text(wire.get("finish_reason"), "finish_reason"))
        asked = self._request.top_logprobs is not None
        tokens = read_logprobs(wire.get("logprobs")) if asked else ()
        self.started = self.started or bool(text or tokens or thinks or calls or self._finish[index])
        if said := thinks + text + "".join(f"{call.name or ''}{call.arguments}" for call in calls):
            self._counted_tokens += max(1, len(tokens), pricing.estimate_tokens(said))
        return Chunk(index, text, tokens, tool_calls=calls) if text or tokens or calls else None

    def _text(self, wire: Mapping[str, object], index: int) -> tuple[str, str, tuple[ToolCallDelta, ...]]:
        """The visible text, the reasoning and the calls of a choice, streamed (``delta``) or whole (``message``)."""
        if self._plain:
            return as_text(wire.get("text"), "text"), "", ()
        delta = as_object(wire.get("delta") or wire.get("message") or {}, "delta")
        if (delta.get("tool_calls") or delta.get("function_call")) and not self._request.tools:
            raise faults.unasked_call(self._upstream)
        visible = as_text(delta.get("content"), "content") + as_text(delta.get("refusal"), "refusal")
        thinks = delta.get("reasoning_content") or delta.get("reasoning")
        return visible, thinks if isinstance(thinks, str) else "", self._calls_of(index).read(delta)

    def _calls_of(self, choice: int) -> openai_tools.CallReader:
        prefix = f"call_{self._request.id}_{choice}_"
        return self._calls.setdefault(choice, openai_tools.CallReader(prefix))

    def _note_finish(self, index: int, reason: str) -> None:
        if not reason or self._finish[index] is not None:
            return
        if reason == "error":
            raise UpstreamUnavailable(f'upstream "{self._upstream}" failed while answering', upstream=self._upstream)
        finish = _FINISH.get(reason.lower(), FinishReason.STOP)
        if finish is FinishReason.TOOL_CALLS and not self._request.tools:
            raise faults.unasked_call(self._upstream)
        self._finish[index] = finish

    def _finish_of(self, choice: int, reason: FinishReason | None) -> FinishReason:
        """Some say "stop" behind a call, or "tool_calls" without one."""
        if reason in (None, FinishReason.STOP, FinishReason.TOOL_CALLS):
            return FinishReason.TOOL_CALLS if len(self._calls_of(choice)) else FinishReason.STOP
        return reason
