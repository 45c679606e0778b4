"""Providers that fail, lie, stall and cut, over real sockets: every fault has one clear meaning and leaks nothing."""

import asyncio
import gzip
import json
import time
import traceback
import zlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from upstream_builders import MODEL, a_client, collect, outcome, run, text_of

from edged.config import UpstreamConfig
from edged.core import FinishReason
from edged.errors import (
    ConfigError,
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRejected,
    UpstreamUnavailable,
)
from edged.testing import Reply, ScriptedUpstream
from edged.upstream.client import UpstreamClient
from edged.upstream.reading import joined

CANARY = "sk-canary-7f3a9b"


def event(text, finish=None):
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


# -- streams that break ----------------------------------------------------------------------------------------------

SHORT = [event("日本"), event("🚀"), event("", "stop"), "[DONE]"]
SHORT_BYTES = b"".join(
    b"data: " + (e if isinstance(e, str) else json.dumps(e, ensure_ascii=False)).encode() + b"\r\n\r\n" for e in SHORT
)
FINISHED_AT = SHORT_BYTES.index(b"stop") + len(b'stop"}]}')


@pytest.mark.parametrize("cut", ["end", "close", "reset"])
def test_a_stream_cut_at_any_byte_is_whole_or_an_error(cut):
    """However it ends, a cut answer is never a success, and never has text that was not sent (F08)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            for offset in range(0, len(SHORT_BYTES) + 1, 3):  # every byte: test_dialect_faults.py
                up.reply(events=SHORT, line_end="\r\n", cut_at_byte=offset, cut=cut)
                text, error = await outcome(client)
                assert "日本🚀".startswith(text), offset
                if offset < FINISHED_AT:
                    assert isinstance(error, UpstreamUnavailable | UpstreamProtocolError), offset
                elif cut != "reset":  # a reset may destroy bytes already sent
                    assert error is None, offset
                    assert text == "日本🚀"

    run(main)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n"])
def test_the_answer_does_not_depend_on_how_it_is_sliced(size, line_end):
    """Pieces of any size and any line end give the same answer (F10)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(events=SHORT, line_end=line_end)
            up.reply(events=SHORT, line_end=line_end, slice_bytes=size)
            assert joined(await collect(client)) == joined(await collect(client))

    run(main)


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        ({"error": {"code": 429}}, UpstreamBusy),
        ({"error": {"code": 429}, "ignore_stream": True}, UpstreamBusy),
        ({"error": {"code": "invalid_api_key"}, "error_after": 1}, UpstreamDenied),
        ({"text": "a b c", "error": {"type": "server_error"}, "error_after": 4}, UpstreamUnavailable),
        ({"text": "a b c", "finish": "error"}, UpstreamUnavailable),
        ({"text": "", "finish": None, "done": False, "role_chunk": False, "usage": None}, UpstreamProtocolError),
        ({"text": "a b c", "finish": None, "done": False}, UpstreamProtocolError),
        ({"events": ["[DONE]"]}, UpstreamProtocolError),
        ({"events": ["{nonsense"]}, UpstreamProtocolError),
        ({"events": [event(5)]}, UpstreamProtocolError),
        ({"body": b"<html>login</html>", "content_type": "text/html"}, UpstreamProtocolError),
        ({"body": b"<html>login</html>", "content_type": "text/event-stream"}, UpstreamProtocolError),
        ({"body": b"<html>login</html>", "content_type": "application/json"}, UpstreamProtocolError),
        ({"body": b"{}\n{}\n", "content_type": "application/x-ndjson"}, UpstreamProtocolError),
        ({"body": b"", "content_type": "application/json"}, UpstreamProtocolError),
        ({"body": b"[1]", "content_type": "application/json"}, UpstreamProtocolError),
        ({"body": b'{"choices":[]}', "content_type": "application/json"}, UpstreamProtocolError),
        ({"status": 204, "body": b""}, UpstreamProtocolError),
        ({"body": b"data: " + b"x" * 6_000_000}, UpstreamProtocolError),
    ],
)
def test_every_broken_success_is_an_error_of_its_kind(reply, error):
    """Errors inside a 200, truncation, emptiness, wrong types and wrong media are never an answer (F07, F08)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(**reply)
            _, found = await outcome(client)
            assert type(found) is error
            assert found.upstream == "cloud"
            assert text_of(await collect(client)) == "echo: hello"

    run(main)


def test_what_came_before_an_error_is_delivered_first():
    """Three chunks and an error in one packet are three chunks, then the error."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            events = [event("a"), event("b"), event("c"), {"error": {"code": 500}}]
            body = b"".join(b"data: %b\n\n" % json.dumps(e).encode() for e in events)
            up.reply(body=body)
            text, error = await outcome(client)
            assert text == "abc"
            assert isinstance(error, UpstreamUnavailable)

    run(main)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: banana\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 500\r\n\r\ndata: {}\n\n",
    ],
)
def test_a_server_that_speaks_no_http_is_an_upstream_error(raw):
    """Silence, garbage, endless headers, broken chunks, a length that lies: one of our errors, no other."""

    async def main():
        closed = asyncio.Event()

        async def answer(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(raw)
            with suppress(ConnectionError):
                await writer.drain()
                writer.close()
                await writer.wait_closed()
            closed.set()

        async with ScriptedUpstream() as up:
            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            async with server, a_client(up, base_url=f"http://127.0.0.1:{port}/v1") as client:
                _, error = await outcome(client)
                assert isinstance(error, UpstreamProtocolError | UpstreamUnavailable)
                assert len(error.message) < 200
                await closed.wait()

    run(main)


@pytest.mark.parametrize("drop", ["close", "reset"])
@pytest.mark.parametrize("warm", [False, True])
def test_a_dropped_call_is_never_repeated_behind_our_back(drop, warm):
    """On a fresh connection or a kept one, one call is one request: the dispatcher owns retries (F04)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            if warm:
                await collect(client)
            up.reply(drop=drop)
            _, error = await outcome(client)
            assert type(error) is UpstreamUnavailable
            assert len(up.seen) == client.calls == 1 + warm

    run(main)


# -- sizes, encodings, redirects -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [
        {"text": "word " * 5000},
        {"text": "word " * 5000, "ignore_stream": True},
        {"body": b": ping\n\n" * 20_000},
        {"body": b"\n" * 50_000},
    ],
)
def test_an_answer_beyond_the_cap_is_cut_off(reply):
    """max_response_bytes bounds streams, documents, and keep-alives without end."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, max_response_bytes=20_000) as client:
            up.reply(**reply)
            _, error = await outcome(client)
            assert isinstance(error, UpstreamProtocolError)
            assert "20000 bytes" in error.message

    run(main)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "GZIP"])
def test_a_compressed_answer_is_read_although_identity_was_asked_for(encoding):
    """Proxies compress all the same; sliced anywhere it is the same answer, and cut anywhere it is none."""
    compress = gzip.compress if encoding.lower() == "gzip" else zlib.compress
    packed = compress(SHORT_BYTES)

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            for size in (1, 7, None):
                up.reply(body=packed, headers={"Content-Encoding": encoding}, slice_bytes=size)
                assert await outcome(client) == ("日本🚀", None)
            assert up.seen[0].headers["Accept-Encoding"] == "identity"
            up.reply(body=packed, headers={"Content-Encoding": encoding}, cut_at_byte=len(packed) // 2)
            _, error = await outcome(client)
            assert isinstance(error, UpstreamUnavailable | UpstreamProtocolError)

    run(main)


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("line", [b"\n", b"\0"])
def test_a_bomb_is_not_inflated_beyond_the_cap(status, line):
    """Ten megabytes in a few kilobytes (E10)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, max_response_bytes=100_000) as client:
            up.reply(status=status, body=gzip.compress(line * 10_000_000), headers={"Content-Encoding": "gzip"})
            _, error = await outcome(client)
            assert isinstance(error, UpstreamError)
            assert status == 500 or "100000 bytes" in error.message

    run(main)


@pytest.mark.parametrize(("encoding", "body"), [("br", b"x"), ("zstd", b"x"), ("gzip, gzip", b"x"), ("gzip", b"plain")])
def test_what_cannot_be_inflated_is_a_protocol_error(encoding, body):
    """Other compressions, several of them, or none in spite of what the header says."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(body=body, headers={"Content-Encoding": encoding})
            _, error = await outcome(client)
            assert type(error) is UpstreamProtocolError

    run(main)

    run(main)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(status):
    """Neither the prompt nor the key goes where an answer points (E08)."""

    async def main():
        async with ScriptedUpstream() as elsewhere, ScriptedUpstream() as up, a_client(up) as client:
            location = f"{elsewhere.base_url}/chat/completions"
            up.reply(status=status, headers={"Location": location}, body=b"")
            _, error = await outcome(client)
            assert isinstance(error, UpstreamProtocolError)
            assert "redirect" in error.message
            assert not elsewhere.seen

    run(main)


# -- refusals and waiting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, UpstreamRejected), (401, UpstreamDenied), (404, UpstreamRejected), (408, UpstreamUnavailable),
     (413, UpstreamRejected), (422, UpstreamRejected), (429, UpstreamBusy), (500, UpstreamUnavailable),
     (502, UpstreamUnavailable), (503, UpstreamBusy)],
)  # fmt: skip
@pytest.mark.parametrize("body", [None, b"", b"<html>", b"[" * 70_000, b"\xff\xfe", b'{"error":"x"}'])
def test_a_refusal_has_its_meaning_whatever_its_body(status, error, body):
    """The status decides; a broken error body changes nothing (F02)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(status=status, body=body)
            _, found = await outcome(client)
            assert type(found) is error

    run(main)


def test_an_error_body_that_never_ends_does_not_hold_the_caller():
    """The status is known; the body is read briefly and in part."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(status=500, body=b"x" * 100, stall_at_byte=50)
            began = time.monotonic()
            _, found = await outcome(client)
            assert type(found) is UpstreamUnavailable
            assert time.monotonic() - began < 10

    run(main)


def test_a_wait_asked_for_is_kept_per_target_and_never_shortened():
    """429 on one model does not cool another; a later, shorter word does not end the longer one (F01)."""

    async def main():
        now = [0.0]
        async with ScriptedUpstream(models=("a", "b")) as up:
            client = UpstreamClient([up.config()], clock=lambda: now[0])
            async with client:
                for wait in ("30", "1.5", "0", "-1", "garbage"):
                    up.reply(status=429, headers={"Retry-After": wait})
                    with pytest.raises(UpstreamBusy) as caught:
                        await collect(client, model="a")
                    assert caught.value.retry_after_s == {"30": 30.0, "1.5": 1.5, "0": 0.0}.get(wait)
                assert client.cooldown_s("cloud", "a") == 30.0
                assert client.cooldown_s("cloud", "b") == 0.0
                now[0] = 29.0
                assert client.cooldown_s("cloud", "a") == 1.0
                now[0] = 31.0
                assert client.cooldown_s("cloud", "a") == 0.0

    run(main)


@pytest.mark.parametrize(
    ("status", "headers", "least", "most"),
    [
        (503, {"Retry-After": "99999999"}, 3600, 3600),
        (500, {"retry-after-ms": "1500"}, 1.5, 1.5),
        (429, {"Retry-After": "later"}, 0, 0),
        (429, {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m30s"}, 90, 90),
        (400, {"Retry-After": "30"}, 0, 0),
        (401, {"Retry-After": "30"}, 0, 0),
    ],
)
def test_only_a_providers_own_trouble_cools_it_down(status, headers, least, most):
    """Clamped, in every form; a refusal that is the request's or the account's fault asks for no wait (F02)."""

    async def main():
        async with ScriptedUpstream() as up:
            client = UpstreamClient([up.config()], clock=lambda: 0.0)
            async with client:
                up.reply(status=status, headers=headers)
                await outcome(client)
                assert least <= client.cooldown_s("cloud", MODEL) <= most

    run(main)


def test_a_date_to_wait_for_is_understood():
    """The HTTP-date form, measured against the answer's own date."""

    async def main():
        async with ScriptedUpstream() as up:
            client = UpstreamClient([up.config()], clock=lambda: 0.0)
            async with client:
                until = datetime.now(UTC) + timedelta(seconds=60)
                up.reply(status=503, headers={"Retry-After": format_datetime(until, usegmt=True)})
                await outcome(client)
                assert 57 <= client.cooldown_s("cloud", MODEL) <= 61

    run(main)


# -- secrets ---------------------------------------------------------------------------------------------------------

LEAKS = [
    Reply(status=401, body=json.dumps({"error": {"message": f"bad key {CANARY}", "code": CANARY}}).encode()),
    Reply(status=400, body=CANARY.encode(), headers={"X-Echo": CANARY, "Retry-After": CANARY}),
    Reply(status=302, headers={"Location": f"http://127.0.0.1:1/{CANARY}"}, body=b""),
    Reply(error={"message": CANARY, "code": CANARY, "type": CANARY, "param": CANARY}),
    Reply(body=f"data: {CANARY}\n\n".encode()),
    Reply(body=CANARY.encode(), content_type=f"text/html; x={CANARY}"),
    Reply(body=CANARY.encode(), content_type="application/json"),
    Reply(body=CANARY.encode(), headers={"Content-Encoding": CANARY}),
    Reply(text="x", finish=CANARY, cut_at_byte=200),
    Reply(text="x", cut_at_byte=0, cut="reset"),
    Reply(hang=True),
]


@pytest.mark.parametrize("reply", LEAKS, ids=range(len(LEAKS)))
def test_a_key_reaches_its_provider_and_nothing_else(reply, monkeypatch, caplog):
    """However the provider echoes it, the key is in no message, repr, traceback or log line (E07)."""
    monkeypatch.setenv("CANARY_KEY", CANARY)
    caplog.set_level("DEBUG")

    async def main():
        quick = {"api_key": "env:CANARY_KEY", "first_token_timeout_s": 0.3}
        async with ScriptedUpstream() as up, a_client(up, **quick) as client:
            up.reply(reply)
            with pytest.raises(UpstreamError) as caught:
                await collect(client)
            told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(client)
            told += str(vars(caught.value)) + repr(client._providers)
            assert CANARY not in told
            assert caught.value.__cause__ is None
            assert up.seen[0].headers["Authorization"] == f"Bearer {CANARY}"

    run(main)
    assert CANARY not in caplog.text


def test_a_key_that_cannot_be_used_stops_the_start(monkeypatch):
    """A missing key, or one that would break the header, is a config error that does not show it."""
    model = {"name": "m", "input_usd_per_mtok": 1, "output_usd_per_mtok": 1}
    document = {"name": "cloud", "base_url": "http://127.0.0.1:9/v1", "api_key": "env:CANARY_KEY", "model": [model]}
    config = UpstreamConfig.model_validate(document)
    for value in ("", f"{CANARY}\r\nX-Evil: 1", f"{CANARY}é"):
        monkeypatch.setenv("CANARY_KEY", value)
        with pytest.raises(ConfigError) as caught:
            asyncio.run(UpstreamClient([config]).start())
        assert CANARY not in str(caught.value)


def test_only_our_own_headers_are_sent():
    """No proxy, cookie, or client header: a short fixed list (E08)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            await collect(client)
            assert set(up.seen[0].headers) == {
                "Host", "User-Agent", "Accept", "Accept-Encoding", "Content-Type", "Content-Length",
            }  # fmt: skip

    run(main)


def test_a_finish_reason_is_enough():
    """Neither [DONE] nor a proper end of the body is needed once the answer is finished (F08)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(text="done", done=False)
            assert (await collect(client))[-1].finish is FinishReason.STOP

    run(main)
