"""Anthropic's events become the same chunks as anybody's; usage counts every token once."""

import json

import pytest
from upstream_builders import a_request, text_of

from edged.core import FinishReason, Tool, ToolCallDelta, Usage
from edged.errors import UpstreamBusy, UpstreamDenied, UpstreamProtocolError, UpstreamRejected, UpstreamUnavailable
from edged.testing.anthropic import Script, event_bytes, events
from edged.upstream import sse
from edged.upstream.anthropic import Decoder
from edged.upstream.codec import Call

TOOLS = (Tool("weather"), Tool("now"))
USAGE = {"input_tokens": 10, "output_tokens": 5}


def a_decoder(**fields):
    return Decoder(a_request(**fields), upstream="cloud", call=Call("/messages", {"model": "m"}))


def decode(*documents, **fields):
    decoder = a_decoder(**fields)
    chunks = [chunk for document in documents for chunk in decoder.event(json.dumps(document))]
    return chunks + decoder.close()


def a_script(**fields):
    return Script(model="claude-real", texts=("Hel", "lo"), usage=USAGE, **fields)


START = {"type": "message_start", "message": {"model": "m", "usage": USAGE}}
TEXT = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 5}}


def said(text, index=0):
    return {"type": "content_block_delta", "index": index, "delta": {"type": "text_delta", "text": text}}


# -- an ordinary answer ----------------------------------------------------------------------------------------------


def test_an_ordinary_stream_becomes_text_then_an_end_with_usage():
    """Start, ping, blocks, delta, stop: text at once, the rest on the last chunk."""
    chunks = decode(*events(a_script()))
    assert [chunk.text for chunk in chunks] == ["Hel", "lo", ""]
    last = chunks[-1]
    assert (last.finish, last.model) == (FinishReason.STOP, "claude-real")
    assert last.usage == Usage(prompt_tokens=10, completion_tokens=5)
    assert all(chunk.usage is None and chunk.finish is None for chunk in chunks[:-1])


@pytest.mark.parametrize("size", [1, 2, 5])
def test_slices_of_any_size_and_place_give_the_same_chunks(size):
    """Split at every byte, and into pieces of every small size: one answer (F10)."""
    script = a_script(thinking="hm 日本", calls=(("weather", '{"city": "Tromsø 🚀"}'), ("now", "")))
    for line_end in ("\n", "\r", "\r\n"):
        wire = b"".join(event_bytes(event, line_end) for event in events(script))
        whole = read(wire, len(wire))
        assert text_of(whole) == "Hello"
        assert read(wire, size) == whole
        if size == 1 and line_end == "\r\n":
            assert all(read(wire, cut) == whole for cut in range(1, len(wire)))


def test_a_cut_at_every_byte_is_whole_or_an_error():
    """No prefix of a stream passes for an answer before its stop reason is in (F08)."""
    wire = b"".join(event_bytes(event, "\r\n") for event in events(a_script()))
    end = b'"stop_sequence": null}, "usage": {"output_tokens": 5}}'
    finished_at = wire.index(end) + len(end)
    for cut in range(len(wire)):
        if cut < finished_at:
            with pytest.raises(UpstreamProtocolError):
                read(wire[:cut], max(1, cut))
        else:
            assert text_of(read(wire[:cut], cut)) == "Hello"


def read(wire, size):
    """The chunks of a body cut into pieces of ``size`` bytes."""
    decoder, parser, chunks = a_decoder(tools=TOOLS), sse.Parser(), []
    for start in range(0, len(wire), size):
        for item in parser.feed(wire[start : start + size]):
            if isinstance(item, sse.Event):
                chunks += decoder.event(item.data, name=item.name, whole=item.whole)
    for item in parser.close():
        if isinstance(item, sse.Event):
            chunks += decoder.event(item.data, name=item.name, whole=item.whole)
    return chunks + decoder.close()


def test_calls_are_numbered_in_order_and_their_arguments_are_json():
    """Id and name first, arguments in pieces; a call without any has an empty object (B13)."""
    chunks = decode(*events(a_script(calls=(("weather", '{"city":"Oslo"}'), ("now", "")))), tools=TOOLS)
    deltas = [delta for chunk in chunks for delta in chunk.tool_calls]
    assert [d for d in deltas if d.id] == [
        ToolCallDelta(0, "toolu_scripted0", "weather"),
        ToolCallDelta(1, "toolu_scripted1", "now"),
    ]
    joined = ["".join(d.arguments for d in deltas if d.index == place) for place in (0, 1)]
    assert [json.loads(text) for text in joined] == [{"city": "Oslo"}, {}]
    assert chunks[-1].finish is FinishReason.TOOL_CALLS


def test_thinking_is_a_sign_of_life_and_never_shown():
    """Thinking, signatures and redacted blocks are counted by the provider, and no text."""
    decoder = a_decoder()
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}}
    assert decoder.event(json.dumps(block)) == []
    assert not decoder.started
    thought = {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}
    assert decoder.event(json.dumps(thought)) == []
    assert decoder.started
    redacted = {"type": "content_block_start", "index": 1, "content_block": {"type": "redacted_thinking", "data": "x"}}
    assert decoder.event(json.dumps(redacted)) == []


@pytest.mark.parametrize("document", [START, {"type": "ping"}, TEXT, {"type": "something_new", "x": 1}])
def test_what_is_no_text_is_no_first_token(document):
    """The start, pings and unknown events say nothing yet."""
    decoder = a_decoder()
    assert decoder.event(json.dumps(document)) == []
    assert not decoder.started


def test_a_whole_message_is_read_too():
    """From a server that ignores stream: text and calls in one document."""
    decoder = a_decoder(tools=TOOLS)
    content = [{"type": "text", "text": "hi"}, {"type": "tool_use", "id": "t", "name": "now", "input": {"a": 1}}]
    body = {"type": "message", "model": "m", "content": content, "stop_reason": "tool_use", "usage": USAGE}
    chunks = decoder.body(json.dumps(body).encode()) + decoder.close()
    assert text_of(chunks) == "hi"
    assert chunks[1].tool_calls == (ToolCallDelta(0, "t", "now", '{"a": 1}'),)
    assert chunks[-1].usage == Usage(prompt_tokens=10, completion_tokens=5)


# -- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", FinishReason.STOP),
        ("stop_sequence", FinishReason.STOP),
        ("pause_turn", FinishReason.STOP),
        ("max_tokens", FinishReason.LENGTH),
        ("model_context_window_exceeded", FinishReason.LENGTH),
        ("refusal", FinishReason.CONTENT_FILTER),
        ("something_new", FinishReason.STOP),
    ],
)
def test_stop_reasons_are_mapped(reason, finish):
    """Anthropic's words in OpenAI's; an unknown one is a stop."""
    assert decode(START, TEXT, said("x"), {**END, "delta": {"stop_reason": reason}})[-1].finish is finish


def test_either_ending_alone_completes_an_answer_unless_a_call_is_open():
    """A stop reason without message_stop, or message_stop without a stop reason (F08)."""
    assert decode(START, TEXT, said("x"), END)[-1].finish is FinishReason.STOP
    assert decode(START, TEXT, said("x"), {"type": "message_stop"})[-1].finish is FinishReason.STOP
    call = {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "now"}}
    with pytest.raises(UpstreamProtocolError):
        decode(START, call, {"type": "message_stop"}, tools=TOOLS)


@pytest.mark.parametrize("documents", [[], [START], [START, TEXT, said("x")], [START, {"type": "message_stop"}]])
def test_an_end_without_either_is_truncation(documents):
    """A stream that just ends, or ends without a single block, is no success (F07, F08)."""
    with pytest.raises(UpstreamProtocolError):
        decode(*documents)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"type": "overloaded_error", "message": "x"}, UpstreamBusy),
        ({"type": "rate_limit_error", "message": "x"}, UpstreamBusy),
        ({"type": "api_error", "message": "x"}, UpstreamUnavailable),
        ({"type": "timeout_error", "message": "x"}, UpstreamUnavailable),
        ({"type": "authentication_error", "message": "x"}, UpstreamDenied),
        ({"type": "invalid_request_error", "message": "x"}, UpstreamRejected),
        ({"type": "never heard of"}, UpstreamUnavailable),
    ],
)
@pytest.mark.parametrize("after", [0, 2, 4])
def test_an_error_event_is_an_error_of_its_kind(error, expected, after):
    """overloaded_error and its like come as an event inside a 200, at any time (F07)."""
    decoder = a_decoder()
    for document in [START, TEXT, said("x"), said("y")][:after]:
        decoder.event(json.dumps(document))
    with pytest.raises(expected) as caught:
        decoder.event(json.dumps({"type": "error", "error": error}), name="error")
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    "data",
    [
        "{", "[]", "5", "null", "<html>", "[" * 100_000,
        '{"type":5}', '{"type":"message_start"}', '{"type":"content_block_start","index":0}',
        '{"type":"content_block_start","index":true,"content_block":{}}',
        '{"type":"content_block_start","index":-1,"content_block":{}}',
        '{"type":"content_block_start","index":99999,"content_block":{}}',
        '{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}}',
        '{"type":"message_delta","delta":{"stop_reason":5}}',
        '{"type":"content_block_start","index":0,"content_block":{"type":"text","text":5}}',
    ],
)  # fmt: skip
def test_a_malformed_event_is_the_providers_fault_and_is_not_repeated(data):
    """Wrong types and broken JSON are a protocol error without the provider's text; a torn last one is forgiven."""
    with pytest.raises(UpstreamProtocolError) as caught:
        a_decoder().event(data)
    assert len(data) < 4 or data not in caught.value.message
    assert a_decoder().event(data, whole=False) == []


def test_a_call_that_nobody_asked_for_is_a_protocol_error():
    """Without tools there is nothing to call."""
    with pytest.raises(UpstreamProtocolError, match="nobody asked"):
        decode(*events(a_script(calls=(("now", ""),))))


# -- usage -----------------------------------------------------------------------------------------------------------

CACHED = {"input_tokens": 100, "cache_read_input_tokens": 900, "cache_creation_input_tokens": 50}


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (
            {**CACHED, "output_tokens": 1},
            {"output_tokens": 20},
            Usage(prompt_tokens=1050, completion_tokens=20, cached_tokens=900, cache_write_tokens=50),
        ),
        (
            {"input_tokens": 1, "output_tokens": 1},
            {**CACHED, "output_tokens": 20, "output_tokens_details": {"thinking_tokens": 15}},
            Usage(
                prompt_tokens=1050,
                completion_tokens=20,
                cached_tokens=900,
                cache_write_tokens=50,
                reasoning_tokens=15,
            ),
        ),
        (
            {"input_tokens": 7, "cache_read_input_tokens": None, "output_tokens": 1},
            {"output_tokens": 3},
            Usage(prompt_tokens=7, completion_tokens=3),
        ),
    ],
)
def test_cached_tokens_are_counted_once(start, end, expected):
    """Anthropic counts input beside the cache; the last, cumulative figures hold (F17)."""
    documents = [{**START, "message": {"usage": start}}, TEXT, said("x"), {**END, "usage": end}]
    assert decode(*documents)[-1].usage == expected


@pytest.mark.parametrize(
    "usage", [None, {}, {"output_tokens": "x"}, {"input_tokens": -1, "output_tokens": 0}, {"output_tokens": 0}, [5]]
)
def test_usage_that_is_missing_or_impossible_is_estimated_and_marked(usage):
    """A count of nothing for a text is no count; what was streamed is never free (F16)."""
    documents = [{**START, "message": {"usage": usage}}, TEXT, said("some words here"), {**END, "usage": usage}]
    counted = decode(*documents)[-1].usage
    assert counted.estimated
    assert counted.prompt_tokens > 0
    assert counted.completion_tokens > 0
