"""What Anthropic's Messages API sends, for the scripted upstream: the events of a stream, or one whole message."""

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
COUNTS = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "content_filter": "refusal", "tool_calls": "tool_use"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One message: its texts in pieces, then its calls (name, arguments). ``usage``: None leaves the counts out."""

    model: str
    texts: Sequence[str]
    calls: Sequence[tuple[str, str]] = ()
    thinking: str = ""
    finish: str | None = "stop"
    usage: Mapping[str, Any] | None = None
    error: Any = None
    error_after: int = 0


def pieces(script: Script, *, streams: bool) -> Iterator[bytes]:
    """The body in the pieces it is written in."""
    if not streams:
        yield json.dumps(_error(script.error) if script.error else _message(script)).encode()
        return
    written = (event_bytes(event) for event in events(script))
    if script.error is None:
        yield from written
        return
    yield from itertools.islice(written, script.error_after)
    yield event_bytes(_error(script.error))


def event_bytes(event: Mapping[str, Any], line_end: str = "\n") -> bytes:
    """One event with its name, as the API sends it."""
    data = json.dumps(event, ensure_ascii=False)
    return f"event: {event['type']}{line_end}data: {data}{line_end}{line_end}".encode()


def events(script: Script) -> Iterator[Json]:
    """Every event of one answer."""
    usage = dict(script.usage or {})
    opening = {**usage, "output_tokens": 1} if usage else {}
    yield {"type": "message_start", "message": {**_head(script), "content": [], "stop_reason": None, "usage": opening}}
    yield {"type": "ping"}
    for index, (block, deltas) in enumerate(_blocks(script)):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        yield from ({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas)
        yield {"type": "content_block_stop", "index": index}
    if script.finish is not None:
        delta = {"stop_reason": _reason(script), "stop_sequence": None}
        closing = {"output_tokens": usage["output_tokens"]} if usage else {}
        yield {"type": "message_delta", "delta": delta, "usage": closing}
        yield {"type": "message_stop"}


def _blocks(script: Script) -> Iterator[tuple[Json, list[Json]]]:
    """Each content block as it begins, and its deltas."""
    if script.thinking:
        thought = [
            {"type": "thinking_delta", "thinking": script.thinking},
            {"type": "signature_delta", "signature": "x"},
        ]
        yield {"type": "thinking", "thinking": "", "signature": ""}, thought
    if script.texts:
        yield {"type": "text", "text": ""}, [{"type": "text_delta", "text": text} for text in script.texts]
    for place, (name, arguments) in enumerate(script.calls):
        parts = ["", *re.findall(r"(?s).{1,5}", arguments)]
        call = {"type": "tool_use", "id": f"toolu_scripted{place}", "name": name, "input": {}}
        yield call, [{"type": "input_json_delta", "partial_json": part} for part in parts]


def _message(script: Script) -> Json:
    content: list[Json] = [{"type": "text", "text": "".join(script.texts)}] if script.texts else []
    for place, (name, arguments) in enumerate(script.calls):
        call_input = json.loads(arguments or "{}")
        content.append({"type": "tool_use", "id": f"toolu_scripted{place}", "name": name, "input": call_input})
    usage = dict(script.usage or {})
    return {**_head(script), "content": content, "stop_reason": _reason(script), "stop_sequence": None, "usage": usage}


def _head(script: Script) -> Json:
    return {"id": "msg_scripted", "type": "message", "role": "assistant", "model": script.model}


def _reason(script: Script) -> str | None:
    finish = "tool_calls" if script.calls and script.finish == "stop" else script.finish
    return _REASONS.get(finish or "", finish)


def _error(error: Any) -> Json:
    return {"type": "error", "error": error}
