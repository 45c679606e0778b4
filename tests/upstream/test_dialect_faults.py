"""Every fault of a provider means the same whichever API it speaks (cases F01 to F17)."""

import asyncio
import json
import time
import traceback

import pytest
from upstream_builders import MODEL, a_client, a_request, collect, outcome, run, text_of

from edged.config import UpstreamConfig
from edged.core import FinishReason, Message, Role, Usage
from edged.errors import (
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from edged.testing import Reply, ScriptedUpstream
from edged.testing.anthropic import Script, event_bytes, events
from edged.upstream import sse
from edged.upstream.anthropic import AnthropicCodec
from edged.upstream.client import UpstreamClient
from edged.upstream.openai import OpenAICodec
from edged.upstream.reading import joined

CANARY = "sk-canary-19c4e2"
DIALECTS = pytest.mark.parametrize("kind", ["openai", "anthropic"])
TEXT = "日本 🚀"
CODECS = {"openai": OpenAICodec, "anthropic": AnthropicCodec}
UPSTREAM = {
    "name": "cloud",
    "base_url": "http://127.0.0.1:9/v1",
    "model": [{"name": "m", "input_usd_per_mtok": 1, "output_usd_per_mtok": 1}],
}


def openai_wire():
    def chunk(**fields):
        return json.dumps({"choices": [{"index": 0, "delta": {}, "finish_reason": None, **fields}]}, ensure_ascii=False)

    parts = [chunk(delta={"content": "日本"}), chunk(delta={"content": " 🚀"}), chunk(finish_reason="stop")]
    usage = json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    return b"".join(f"data: {part}\r\n\r\n".encode() for part in [*parts, usage, "[DONE]"])


def anthropic_wire():
    script = Script(model="m", texts=("日本", " 🚀"), usage={"input_tokens": 3, "output_tokens": 2})
    return b"".join(event_bytes(event, "\r\n") for event in events(script))


WIRES = {"openai": openai_wire(), "anthropic": anthropic_wire()}
FINISHED_BY = {
    "openai": b'"stop"}]}',
    "anthropic": b'"end_turn", "stop_sequence": null}, "usage": {"output_tokens": 2}}',
}


# -- F01, F02: waiting, and whose fault it is ------------------------------------------------------------------------


@DIALECTS
@pytest.mark.parametrize(
    ("status", "error"),
    [(400, UpstreamRejected), (401, UpstreamDenied), (402, UpstreamDenied), (403, UpstreamDenied),
     (404, UpstreamRejected), (408, UpstreamUnavailable), (413, UpstreamRejected), (422, UpstreamRejected),
     (429, UpstreamBusy), (500, UpstreamUnavailable), (502, UpstreamUnavailable), (503, UpstreamBusy),
     (504, UpstreamUnavailable), (529, UpstreamBusy)],
)  # fmt: skip
def test_a_status_means_the_same_in_every_dialect(kind, status, error):
    """A 4xx that the request caused is not the provider's trouble; 529 is Anthropic's word for overload (F02)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind) as client:
            up.reply(status=status, body=b'{"type":"error","error":{"type":"x","message":"y"}}')
            _, found = await outcome(client)
            assert type(found) is error
            assert len(up.seen) == client.calls == 1

    run(main)


@DIALECTS
def test_retry_after_is_kept_per_model_in_every_dialect(kind):
    """The longest word holds, for the model it was said of (F01)."""

    async def main():
        async with ScriptedUpstream(models=("a", "b")) as up:
            client = UpstreamClient([up.config(kind=kind)], clock=lambda: 0.0)
            async with client:
                for wait in ("30", "1.5", "garbage"):
                    up.reply(status=429, headers={"Retry-After": wait})
                    with pytest.raises(UpstreamBusy):
                        await collect(client, model="a")
                assert client.cooldown_s("cloud", "a") == 30.0
                assert client.cooldown_s("cloud", "b") == 0.0

    run(main)


# -- F04, F05, F07, F08: retries, errors inside a success, truncation ------------------------------------------------


@DIALECTS
@pytest.mark.parametrize("drop", ["close", "reset"])
def test_one_call_is_one_request_in_every_dialect(kind, drop):
    """Nobody below the dispatcher asks again (F04)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind) as client:
            await collect(client)
            up.reply(drop=drop)
            _, error = await outcome(client)
            assert type(error) is UpstreamUnavailable
            assert len(up.seen) == client.calls == 2

    run(main)


@DIALECTS
@pytest.mark.parametrize("after", [0, 1, 4])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"type": "overloaded_error", "message": CANARY}, UpstreamBusy),
        ({"type": "authentication_error", "message": CANARY}, UpstreamDenied),
        ({"type": "api_error", "message": CANARY}, UpstreamUnavailable),
    ],
)
def test_an_error_inside_a_success_is_found_in_every_dialect(kind, after, error, expected):
    """At the first event, before the text or in the middle of it; what came before is delivered (F05, F07)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind) as client:
            up.reply(text="a b c", error=error, error_after=after)
            text, found = await outcome(client)
            assert type(found) is expected
            assert "a b c".startswith(text)
            assert CANARY not in found.message

    run(main)


@DIALECTS
def test_a_whole_error_document_is_found_in_every_dialect(kind):
    """From a server that ignores stream (F07)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind) as client:
            up.reply(error={"type": "overloaded_error"}, ignore_stream=True)
            _, found = await outcome(client)
            assert type(found) is UpstreamBusy

    run(main)


@DIALECTS
@pytest.mark.parametrize("cut", ["end", "close", "reset"])
def test_a_cut_at_any_byte_is_whole_or_an_error_in_every_dialect(kind, cut):
    """Truncation is no success, and no text appears that was not sent (F08); every byte is cut beside the codecs."""
    wire = WIRES[kind]
    finished_at = wire.index(FINISHED_BY[kind]) + len(FINISHED_BY[kind])

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind) as client:
            for offset in range(0, len(wire) + 1, 5 if cut == "close" else 11):
                up.reply(body=wire, cut_at_byte=offset, cut=cut)
                text, error = await outcome(client)
                assert TEXT.startswith(text), offset
                if offset < finished_at:
                    assert isinstance(error, UpstreamUnavailable | UpstreamProtocolError), offset
                elif cut != "reset":  # a reset may destroy bytes already sent
                    assert (text, error) == (TEXT, None), offset

    run(main)


# -- F10, F11: slices and deadlines ----------------------------------------------------------------------------------


@DIALECTS
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_slicing_changes_nothing_in_any_dialect(kind, size):
    """Over a real socket; every offset of the parser and decoder alone is tried beside their own tests (F10)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind) as client:
            up.reply(body=WIRES[kind])
            up.reply(body=b"\xef\xbb\xbf" + WIRES[kind], slice_bytes=size)
            whole = joined(await collect(client))
            assert joined(await collect(client)) == whole
            assert (text_of(whole), whole[-1].finish) == (TEXT, FinishReason.STOP)

    run(main)


def pieces_read(kind, *pieces):
    """What parser and codec make of a body that comes in these pieces."""
    request, config = a_request(), UpstreamConfig.model_validate({**UPSTREAM, "kind": kind})
    codec = CODECS[kind](config)
    decoder, parser = codec.decoder(request, codec.encode(request, config.models[0], pinned=False)), sse.Parser()
    found = [item for piece in pieces for item in parser.feed(piece)] + list(parser.close())
    chunks = [c for e in found if isinstance(e, sse.Event) for c in decoder.event(e.data, name=e.name, whole=e.whole)]
    return chunks + decoder.close()


@DIALECTS
@pytest.mark.parametrize("line_end", [b"\n", b"\r", b"\r\n"])
@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf", b": comment\r\n\r\n"])
def test_two_pieces_cut_at_any_byte_are_one_answer_in_every_dialect(kind, line_end, prefix):
    """Inside a character, a line end, a byte order mark or a name (F10)."""
    wire = prefix + WIRES[kind].replace(b"\r\n", line_end)
    whole = pieces_read(kind, wire)
    assert text_of(whole) == TEXT
    assert whole[-1].usage == Usage(prompt_tokens=3, completion_tokens=2)
    for offset in range(1, len(wire)):
        assert pieces_read(kind, wire[:offset], wire[offset:]) == whole, offset
    assert pieces_read(kind, wire.rstrip(b"\r\n")) == whole


@DIALECTS
def test_no_prefix_of_an_answer_is_an_answer_in_any_dialect(kind):
    """Cut at every byte: an error before the finish reason is in, the whole text after it (F08)."""
    wire = WIRES[kind]
    finished_at = wire.index(FINISHED_BY[kind]) + len(FINISHED_BY[kind])
    for offset in range(len(wire)):
        if offset < finished_at:
            with pytest.raises(UpstreamProtocolError):
                pieces_read(kind, wire[:offset])
        else:
            assert text_of(pieces_read(kind, wire[:offset])) == TEXT, offset


@DIALECTS
@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ({"hang": True}, "first_token_timeout"),
        ({"first_token_delay_s": 30, "keep_alives": 600}, "first_token_timeout"),
        ({"stall_at_byte": 0}, "first_token_timeout"),
        ({"text": "a b c d", "stall_at_byte": None, "chunk_delay_s": 30}, None),
    ],
)
def test_a_stall_is_named_by_its_deadline_in_every_dialect(kind, reply, code):
    """Comments, pings and the start of a message are no first token (F11)."""

    async def main():
        quick = {"first_token_timeout_s": 0.25, "idle_timeout_s": 0.25}
        async with ScriptedUpstream() as up, a_client(up, kind=kind, **quick) as client:
            up.reply(**reply)
            began = time.monotonic()
            _, found = await outcome(client)
            assert isinstance(found, UpstreamTimeout)
            assert found.code == (code or found.code)
            assert time.monotonic() - began < 3

    run(main)


@DIALECTS
def test_silence_after_text_is_the_idle_deadline_in_every_dialect(kind):
    """The answer had begun (F11)."""
    offset = WIRES[kind].index("日本".encode()) + 46

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind, idle_timeout_s=0.2) as client:
            up.reply(body=WIRES[kind], stall_at_byte=offset)
            text, found = await outcome(client)
            assert text == "日本"
            assert found.code == "idle_timeout"

    run(main)


# -- F16, F17: usage -------------------------------------------------------------------------------------------------


@DIALECTS
def test_a_stream_without_counts_is_estimated_in_every_dialect(kind):
    """Never free (F16)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind) as client:
            up.reply(text="some words", usage=None)
            usage = (await collect(client))[-1].usage
            assert usage.estimated
            assert min(usage.prompt_tokens, usage.completion_tokens) > 0

    run(main)


@DIALECTS
def test_cached_tokens_are_part_of_the_prompt_in_every_dialect(kind):
    """OpenAI counts them inside the prompt, Anthropic beside it: here both say the same (F17)."""
    counted = {
        "openai": {
            "prompt_tokens": 1000, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 900},
        },
        "anthropic": {"input_tokens": 100, "cache_read_input_tokens": 900, "output_tokens": 20},
    }[kind]  # fmt: skip

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind) as client:
            up.reply(text="x", usage=counted)
            usage = (await collect(client))[-1].usage
            assert usage == Usage(prompt_tokens=1000, completion_tokens=20, cached_tokens=900)

    run(main)


# -- HTML, redirects, sizes, keys ------------------------------------------------------------------------------------


@DIALECTS
@pytest.mark.parametrize(
    "reply",
    [
        {"body": b"<html>login</html>", "content_type": "text/html"},
        {"body": b"<html>login</html>"},
        {"body": b"[1]", "content_type": "application/json"},
        {"body": b"", "content_type": "application/json"},
        {"status": 204, "body": b""},
        {"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}, "body": b""},
        {"text": "word " * 5000},
        {"text": "word " * 5000, "ignore_stream": True},
        {"body": b": ping\n\n" * 20_000},
        {"body": b"data: " + b"x" * 30_000},
    ],
    ids=range(10),
)
def test_what_is_no_answer_is_a_protocol_error_in_every_dialect(kind, reply):
    """HTML, a redirect, an empty body, too large a body."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind, max_response_bytes=20_000) as client:
            up.reply(**reply)
            _, found = await outcome(client)
            assert type(found) is UpstreamProtocolError

    run(main)


LEAKS = [
    Reply(status=401, body=json.dumps({"error": {"message": f"bad key {CANARY}", "type": CANARY}}).encode()),
    Reply(status=400, body=json.dumps({"error": {"message": f"'temperature' unsupported {CANARY}"}}).encode()),
    Reply(status=302, headers={"Location": f"http://127.0.0.1:1/{CANARY}"}, body=b""),
    Reply(error={"message": CANARY, "code": CANARY, "type": CANARY, "param": CANARY}),
    Reply(body=f"event: {CANARY}\ndata: {CANARY}\n\n".encode()),
    Reply(body=CANARY.encode(), content_type=f"text/html; x={CANARY}"),
    Reply(text="x", finish=CANARY, cut_at_byte=200),
    Reply(hang=True),
]


@DIALECTS
@pytest.mark.parametrize("reply", LEAKS, ids=range(len(LEAKS)))
def test_a_key_reaches_its_provider_and_nothing_else_in_any_dialect(kind, reply, monkeypatch, caplog):
    """In its own header, and in no message, repr, traceback or log line (E07)."""
    monkeypatch.setenv("CANARY_KEY", CANARY)
    caplog.set_level("DEBUG")
    header, value = {"openai": ("Authorization", f"Bearer {CANARY}"), "anthropic": ("x-api-key", CANARY)}[kind]

    async def main():
        quick = {"api_key": "env:CANARY_KEY", "first_token_timeout_s": 0.3, "kind": kind}
        async with ScriptedUpstream() as up, a_client(up, **quick) as client:
            up.reply(reply)
            with pytest.raises(UpstreamError) as caught:
                await collect(client)
            told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(client)
            told += str(vars(caught.value)) + repr(client._providers) + repr(client.refusals)
            assert CANARY not in told
            assert up.seen[0].headers[header] == value
            assert str(up.seen[0].headers).count(CANARY) == 1

    run(main)
    assert CANARY not in caplog.text


def test_anthropic_gets_its_own_headers_and_no_others():
    """A key in x-api-key, the version, and nothing a client sent (E08)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind="anthropic") as client:
            await collect(client)
            seen = up.seen[0]
            assert seen.path == "/v1/messages"
            assert seen.headers["anthropic-version"] == "2023-06-01"
            assert set(seen.headers) == {
                "Host", "User-Agent", "Accept", "Accept-Encoding", "Content-Type", "Content-Length",
                "anthropic-version",
            }  # fmt: skip

    run(main)


@DIALECTS
def test_a_client_that_closes_early_hangs_up_in_every_dialect(kind):
    """Nothing more is paid for than what was read (guarantee 3)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind) as client:
            up.reply(text="a b c d e f g", chunk_delay_s=0.05)
            stream = client.stream(a_request(messages=[Message(Role.USER, "x")]), "cloud", MODEL)
            await anext(stream)
            await stream.aclose()
            assert await (await up.request()).hung_up()
            await asyncio.sleep(0)

    run(main)
