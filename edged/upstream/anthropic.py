"""Anthropic's Messages API as spoken to a provider: its answer to Chunks. Pure.

An answer is a list of content blocks; text blocks are the text, ``tool_use`` blocks are function calls in the order
they come, thinking is counted and not shown. Events of unknown types are skipped, as the API's versioning asks.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from edged.config import Secret, UpstreamConfig, UpstreamModelConfig
from edged.core import Chunk, FinishReason, Request, ToolCallDelta, Usage
from edged.upstream import anthropic_asking, faults, pricing
from edged.upstream.codec import Call
from edged.upstream.wire import Malformed, SurrogateJoin, as_integer, as_list, as_object, as_text, parse_json

VERSION = "2023-06-01"
_FINISH = {
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    "refusal": FinishReason.CONTENT_FILTER,
    "tool_use": FinishReason.TOOL_CALLS,
}
_MOST_BLOCKS = 1_000
_MOST_TOKENS = 1_000_000_000


class AnthropicCodec:
    """``kind = "anthropic"``"""

    def __init__(self, config: UpstreamConfig) -> None:
        self._upstream = config.name

    def headers(self, secret: Secret | None) -> dict[str, str]:
        key = {} if secret is None else {"x-api-key": secret.reveal()}
        return {"anthropic-version": VERSION, **key}

    def encode(self, request: Request, model: UpstreamModelConfig, *, pinned: bool) -> Call:
        return anthropic_asking.encode(request, model, pinned=pinned)

    def decoder(self, request: Request, call: Call) -> "Decoder":
        return Decoder(request, upstream=self._upstream, call=call)


@dataclass(slots=True)
class _Block:
    """A content block as far as it has come; ``call`` counts the answer's function calls from 0."""

    kind: str
    call: int = 0
    arguments: bool = False


class Decoder:
    """One answer; see ``codec.Decoder``."""

    def __init__(self, request: Request, *, upstream: str, call: Call) -> None:
        self._request = request
        self._upstream = upstream
        self._sent = frozenset(call.body)
        self._blocks: dict[int, _Block] = {}
        self._open: set[int] = set()
        self._calls = 0
        self._join = SurrogateJoin()
        self._reason: str | None = None
        self._counts: dict[str, int] = {}
        self._model: str | None = None
        self._counted_tokens = 0
        self.started = False
        self.done = False

    def __repr__(self) -> str:
        return f"Decoder(blocks={len(self._blocks)}, started={self.started}, done={self.done})"

    @property
    def finished(self) -> bool:
        """The answer has its stop reason, which comes with the usage."""
        return self._reason is not None

    def event(self, data: str, *, name: str = "message", whole: bool = True) -> list[Chunk]:
        """The chunks of one event's data."""
        if self.done or not data.strip():
            return []
        try:
            return self._event(as_object(parse_json(data), "the event"), name)
        except Malformed as exc:
            if not whole:
                return []
            raise faults.protocol_error(self._upstream, f"sent a malformed event: {exc}") from None

    def body(self, data: bytes) -> list[Chunk]:
        """The chunks of a whole message, from a server that ignores ``stream``."""
        try:
            document = as_object(parse_json(data.decode("utf-8", "replace")), "the answer")
            faults.raise_found(self._upstream, document, sent=self._sent)
            self._begin(document)
            chunks = [c for i, block in enumerate(as_list(document.get("content"), "content"))
                      for c in self._whole_block(i, as_object(block, "a block"))]  # fmt: skip
            self._note_reason(document)
        except Malformed as exc:
            raise faults.protocol_error(self._upstream, f"sent a malformed answer: {exc}") from None
        self.done = True
        return chunks

    def close(self) -> list[Chunk]:
        """The last chunk. Raises: UpstreamProtocolError where the answer is truncated or there is none."""
        if not self.finished and not (self.done and self._blocks and not self._has_open_call):
            raise faults.truncated(self._upstream)
        return [Chunk(0, self._join.flush(), finish=self._finish(), usage=self._usage(), model=self._model)]

    # -- events ------------------------------------------------------------------------------------------------------

    def _event(self, document: Mapping[str, object], name: str) -> list[Chunk]:
        faults.raise_found(self._upstream, document, sent=self._sent, is_error=name == "error")
        match as_text(document.get("type"), "type") or name:
            case "message_start":
                self._begin(as_object(document.get("message"), "message"))
            case "content_block_start":
                return self._start_block(*self._part(document, "content_block"))
            case "content_block_delta":
                return self._delta(*self._part(document, "delta"))
            case "content_block_stop":
                return self._stop_block(self._index(document))
            case "message_delta":
                self._note_usage(document.get("usage"))
                self._note_reason(as_object(document.get("delta"), "delta"))
            case "message_stop":
                self.done = True
        return []

    def _begin(self, message: Mapping[str, object]) -> None:
        if isinstance(model := message.get("model"), str) and model:
            self._model = model[:200]
        self._note_usage(message.get("usage"))

    def _index(self, document: Mapping[str, object]) -> int:
        index = as_integer(document.get("index"), "index")
        if not 0 <= index < _MOST_BLOCKS:
            raise Malformed(f"block {index} of at most {_MOST_BLOCKS}")
        return index

    def _part(self, document: Mapping[str, object], what: str) -> tuple[int, Mapping[str, object]]:
        return self._index(document), as_object(document.get(what), what)

    def _note_reason(self, wire: Mapping[str, object]) -> None:
        self._reason = as_text(wire.get("stop_reason"), "stop_reason") or self._reason

    # -- blocks ------------------------------------------------------------------------------------------------------

    def _start_block(self, index: int, wire: Mapping[str, object]) -> list[Chunk]:
        block = self._blocks[index] = _Block(as_text(wire.get("type"), "type"))
        self._open.add(index)
        if block.kind == "tool_use":
            return self._start_call(block, wire)
        return self._said(as_text(wire.get("text"), "text")) if block.kind == "text" else []

    def _start_call(self, block: _Block, wire: Mapping[str, object]) -> list[Chunk]:
        if not self._request.tools:
            raise faults.unasked_call(self._upstream)
        name = as_text(wire.get("name"), "name")
        if not name:
            raise Malformed("a tool_use block without a name")
        block.call, self._calls = self._calls, self._calls + 1
        call_id = as_text(wire.get("id"), "id") or f"call_{self._request.id}_{block.call}"
        given = wire.get("input")
        arguments = json.dumps(given, ensure_ascii=False) if given else ""
        return self._called(block, ToolCallDelta(block.call, call_id, name, arguments))

    def _delta(self, index: int, wire: Mapping[str, object]) -> list[Chunk]:
        block = self._blocks.get(index)
        if block is None:
            raise Malformed("a delta of a block that has not begun")
        match as_text(wire.get("type"), "type"):
            case "text_delta":
                return self._said(as_text(wire.get("text"), "text"))
            case "input_json_delta" if block.kind == "tool_use":
                arguments = as_text(wire.get("partial_json"), "partial_json")
                return self._called(block, ToolCallDelta(block.call, arguments=arguments)) if arguments else []
            case "thinking_delta":
                self._count(as_text(wire.get("thinking"), "thinking"))
        return []

    def _stop_block(self, index: int) -> list[Chunk]:
        """A call without arguments is one with an empty object, so that what the client joins is JSON."""
        self._open.discard(index)
        block = self._blocks.get(index)
        if block is None or block.kind != "tool_use" or block.arguments:
            return []
        return self._called(block, ToolCallDelta(block.call, arguments="{}"))

    def _whole_block(self, index: int, wire: Mapping[str, object]) -> list[Chunk]:
        return self._start_block(index, wire) + self._stop_block(index)

    def _said(self, text: str) -> list[Chunk]:
        self._count(text)
        text = self._join.join(text) if text else ""
        return [Chunk(0, text)] if text else []

    def _called(self, block: _Block, news: ToolCallDelta) -> list[Chunk]:
        block.arguments = block.arguments or bool(news.arguments)
        self._count(f"{news.name or ''}{news.arguments}")
        return [Chunk(0, tool_calls=(news,))]

    def _count(self, said: str) -> None:
        if said:
            self.started = True
            self._counted_tokens += max(1, pricing.estimate_tokens(said))

    # -- the end -----------------------------------------------------------------------------------------------------

    @property
    def _has_open_call(self) -> bool:
        return any(self._blocks[index].kind == "tool_use" for index in self._open)

    def _finish(self) -> FinishReason:
        finish = _FINISH.get(self._reason or "", FinishReason.STOP)
        if finish in (FinishReason.STOP, FinishReason.TOOL_CALLS):
            return FinishReason.TOOL_CALLS if self._calls else FinishReason.STOP
        return finish

    def _note_usage(self, wire: object) -> None:
        """Counts are cumulative, and the first event may count what a later one leaves out."""
        if not isinstance(wire, Mapping):
            return
        names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
        for name in names:
            if type(count := wire.get(name)) is int and 0 <= count <= _MOST_TOKENS:
                self._counts[name] = count
        details = wire.get("output_tokens_details")
        if isinstance(details, Mapping) and type(count := details.get("thinking_tokens")) is int:
            self._counts["thinking_tokens"] = max(0, count)

    def _usage(self) -> Usage:
        """Input is counted beside what the cache held and took; here all three are the prompt, each once (F17)."""
        counts = self._counts
        cached, written = counts.get("cache_read_input_tokens", 0), counts.get("cache_creation_input_tokens", 0)
        prompt_tokens = counts.get("input_tokens", 0) + cached + written
        completion_tokens = counts.get("output_tokens", 0)
        is_counted = "input_tokens" in counts and (completion_tokens or not self._counted_tokens)
        if not is_counted:
            prompt_tokens = prompt_tokens or pricing.estimate_prompt_tokens(self._request)
            completion_tokens = max(completion_tokens, self._counted_tokens)
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=cached,
            cache_write_tokens=written,
            reasoning_tokens=min(counts.get("thinking_tokens", 0), completion_tokens),
            estimated=not is_counted,
        )
