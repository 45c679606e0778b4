"""The client over real sockets: answers, deadlines, cancellation, connections."""

import asyncio
import json
import socket
import threading
import time
from contextlib import aclosing

import pytest
from upstream_builders import MODEL, a_client, a_request, collect, run, text_of

from edged.core import Chunk, FinishReason, Sampling, Token, Usage
from edged.errors import ConfigError, ModelNotFound, Unsupported, UpstreamTimeout, UpstreamUnavailable
from edged.testing import ScriptedUpstream
from edged.upstream import reading
from edged.upstream.client import UpstreamClient

COMMENT = b": still here\n\n"


def event(text, finish=None):
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def test_an_answer_arrives_in_chunks_and_ends_with_its_usage():
    """The whole path: text as it comes, then finish reason, usage and the provider's model name."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(chunks=["hello", " world"], model="the-real-one")
            chunks = await collect(client, a_request(text="greet me"))
            assert text_of(chunks) == "hello world"
            assert chunks[-1].finish is FinishReason.STOP
            assert chunks[-1].usage == Usage(prompt_tokens=5, completion_tokens=2)
            assert chunks[-1].model == "the-real-one"
            assert up.seen[0].body["messages"] == [{"role": "user", "content": "greet me"}]
            assert up.seen[0].body["stream"] is True

    run(main)


def test_several_choices_plain_completions_and_ignored_streams_work_too():
    """n=2, /completions, and a server that answers with one JSON document."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(text="two of us")
            chunks = await collect(client, a_request(n=2, top_logprobs=1))
            assert text_of(chunks, 0) == text_of(chunks, 1) == "two of us"
            assert sum(c.finish is not None for c in chunks) == 2
            assert text_of(await collect(client, a_request(prompt="x"))) == "echo: x"
            assert up.seen[-1].path == "/v1/completions"
            up.reply(text="all at once", ignore_stream=True)
            chunks = await collect(client)
            assert text_of(chunks) == "all at once"
            assert not chunks[-1].usage.estimated

    run(main)


def test_logprobs_come_with_their_text():
    """Tokens of a chunk are those of its text."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            for request in (a_request(top_logprobs=2), a_request(prompt="x", top_logprobs=2)):
                up.reply(chunks=["a", "b"], logprob=-0.25)
                chunks = await collect(client, request)
                assert [t.piece for c in chunks for t in c.tokens] == [b"a", b"b"]
                assert {t.margin for c in chunks for t in c.tokens} == {1.0}

    run(main)


def test_dropped_usage_is_estimated_and_marked():
    """An upstream that ignores include_usage is not free (F16)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(text="some words", usage=None)
            usage = (await collect(client))[-1].usage
            assert usage.estimated
            assert usage.completion_tokens >= 2

    run(main)


def test_calls_are_counted_where_they_are_made():
    """One per attempt on the network; a request refused before that is none, and neither is a wrong name."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            await collect(client)
            up.reply(status=500)
            with pytest.raises(UpstreamUnavailable):
                await collect(client)
            with pytest.raises(Unsupported):
                await collect(client, a_request(prompt=(1, 2)))
            for upstream, model in (("cloud", "other"), ("other", MODEL)):
                with pytest.raises(ModelNotFound):
                    await collect(client, upstream=upstream, model=model)
            assert client.calls == len(up.seen) == 2
            assert "calls=2" in repr(client)

    run(main)


def test_a_pinned_request_carries_its_own_samplers():
    """A model asked for by its UPSTREAM/model name gets what an escalation would not."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            for model in ("auto", f"cloud/{MODEL}"):
                await collect(client, a_request(model=model, sampling=Sampling(top_k=5)))
            assert ["top_k" in seen.body for seen in up.seen] == [False, True]

    run(main)


def test_connections_are_kept_and_reused():
    """Twenty answers in a row, refusals among them, use one connection."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            for turn in range(20):
                if turn % 5 == 4:
                    up.reply(status=429)
                    with pytest.raises(UpstreamUnavailable):
                        await collect(client)
                else:
                    await collect(client)
            assert len({seen.connection for seen in up.seen}) == 1

    run(main)


def test_a_late_end_of_the_body_still_saves_the_connection():
    """The end may come a moment after [DONE]; it is waited for, since a new connection costs more."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            for _ in range(2):
                up.reply(events=[event("x", "stop"), "[DONE]", COMMENT], chunk_delay_s=0.03)
                await collect(client)
            assert len({seen.connection for seen in up.seen}) == 1

    run(main)


def test_an_ipv6_literal_is_an_address_like_any_other():
    """base_url may be http://[::1]:PORT/v1."""

    async def main():
        async with ScriptedUpstream(host="::1") as up, a_client(up) as client:
            assert up.base_url.startswith("http://[::1]:")
            assert text_of(await collect(client)) == "echo: hello"

    run(main)


# -- deadlines -------------------------------------------------------------------------------------------------------

QUICK = {"first_token_timeout_s": 0.4, "idle_timeout_s": 0.3}


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ({"hang": True}, "first_token_timeout"),
        ({"first_token_delay_s": 30}, "first_token_timeout"),
        ({"first_token_delay_s": 30, "keep_alives": 600}, "first_token_timeout"),
        ({"events": [event(""), COMMENT, COMMENT], "chunk_delay_s": 1}, "first_token_timeout"),
        ({"status": 500, "body": b"x", "stall_at_byte": 1, "delay_s": 30}, "first_token_timeout"),
        ({"events": [event("one"), event("two")], "chunk_delay_s": 30}, "idle_timeout"),
        ({"events": [event("one"), event("two")], "stall_at_byte": 100}, "idle_timeout"),
        ({"body": b'{"choices":', "content_type": "application/json", "stall_at_byte": 11}, "idle_timeout"),
    ],
)
def test_the_error_names_the_deadline_that_fired(reply, code):
    """Silence before headers, before a token, or after one; comments and role chunks are no tokens (F11)."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, **QUICK) as client:
            up.reply(**reply)
            began = time.monotonic()
            with pytest.raises(UpstreamTimeout) as caught:
                await collect(client)
            assert caught.value.code == code
            assert caught.value.may_cost
            assert 0.25 < time.monotonic() - began < 8
            assert await up.seen[0].hung_up()

    run(main)


def test_a_server_that_never_shakes_hands_is_a_connect_timeout():
    """TLS is part of connecting: accepted and silent is not connected (F11)."""

    async def main():
        with socket.create_server(("127.0.0.1", 0)) as silent:
            address = {"base_url": f"https://127.0.0.1:{silent.getsockname()[1]}/v1", "connect_timeout_s": 0.3}
            client = a_client(ScriptedUpstream(), **address)
            async with client:
                with pytest.raises(UpstreamTimeout) as caught:
                    await collect(client)
            assert caught.value.code == "connect_timeout"

    run(main)


@pytest.mark.parametrize(
    "events",
    [
        [event(str(i)) for i in range(8)] + [event("", "stop")],
        [event("0"), *[COMMENT] * 7, event("", "stop")],
    ],
)
def test_a_slow_but_living_answer_is_never_cut(events):
    """Chunks, or keep-alives between them, go on past every single deadline (F11)."""

    async def main():
        limits = {"first_token_timeout_s": 0.8, "idle_timeout_s": 0.6}
        async with ScriptedUpstream() as up, a_client(up, **limits) as client:
            up.reply(events=events, chunk_delay_s=0.12)
            began = time.monotonic()
            chunks = await collect(client)
            assert time.monotonic() - began > 0.9
            assert chunks[-1].finish is FinishReason.STOP

    run(main)


def test_a_finished_answer_does_not_wait_for_a_silent_end(monkeypatch):
    """A provider that neither sends usage nor hangs up after the finish costs a moment, not the answer (F08)."""
    monkeypatch.setattr(reading, "_SETTLE_S", 0.2)

    async def main():
        async with ScriptedUpstream() as up, a_client(up, idle_timeout_s=20) as client:
            up.reply(events=[event("done", "stop"), COMMENT], chunk_delay_s=30)
            began = time.monotonic()
            assert text_of(await collect(client)) == "done"
            assert time.monotonic() - began < 8
            up.reply(events=[event("done", "stop"), "[DONE]", COMMENT], chunk_delay_s=0.0, stall_at_byte=110)
            assert text_of(await collect(client)) == "done"
            assert time.monotonic() - began < 10

    run(main)


# -- cancellation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply", [{"hang": True}, {"first_token_delay_s": 30}, {"chunk_delay_s": 30}, {"status": 500, "delay_s": 30}]
)
def test_cancelling_the_task_closes_the_connection_at_once(reply):
    """Before the headers, before the first token, between chunks: the provider sees the client leave."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(**reply)
            task = asyncio.create_task(collect(client))
            seen = await up.request()
            task.cancel()
            began = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await seen.hung_up()
            assert time.monotonic() - began < 5

    run(main)


def test_closing_the_iterator_closes_the_connection_at_once():
    """The first chunk is enough: aclose ends the call, and the next one works."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(text="one two three", chunk_delay_s=0.05, role_chunk=False)
            async with aclosing(client.stream(a_request(), "cloud", MODEL)) as stream:
                assert (await anext(stream)).text == "one"
            assert await up.seen[0].hung_up()
            assert text_of(await collect(client)) == "echo: hello"

    run(main)


def test_closing_the_client_ends_what_runs():
    """Nothing of a closed client is left open; it says so when used again."""

    async def main():
        async with ScriptedUpstream() as up:
            client = a_client(up)
            await client.start()
            up.reply(hang=True)
            task = asyncio.create_task(collect(client))
            seen = await up.request()
            await client.close()
            await client.close()
            assert await seen.hung_up()
            with pytest.raises(UpstreamUnavailable):
                await task
            with pytest.raises(RuntimeError, match="not started"):
                await collect(client)

    run(main)


# -- memory ----------------------------------------------------------------------------------------------------------


def test_a_slow_reader_slows_the_provider_down():
    """While nobody takes chunks, the provider can push no more than the socket buffers hold (A22)."""

    async def main():
        text = "x" * 60_000
        events = [event(text) for _ in range(500)] + [event("", "stop")]
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(events=events)
            async with aclosing(client.stream(a_request(), "cloud", MODEL)) as stream:
                await anext(stream)
                last = -1
                while up.seen[0].sent_bytes != last:
                    last = up.seen[0].sent_bytes
                    await asyncio.sleep(0.2)
                assert last < 15_000_000
            assert await up.seen[0].hung_up()

    run(main)


def test_what_came_before_the_connection_was_lost_is_still_read():
    """A complete answer whose connection dies while its reader is busy elsewhere stays complete."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            events = [event("one"), event(" two", "stop"), "[DONE]"]
            size = sum(len(json.dumps(e)) + 8 for e in events[:2]) + len("data: [DONE]\n\n")
            up.reply(events=events, chunk_delay_s=0.05, cut_at_byte=size)
            chunks = []
            async for chunk in client.stream(a_request(), "cloud", MODEL):
                chunks.append(chunk)
                if len(chunks) == 1:
                    await up.seen[0].hung_up()
                    await asyncio.sleep(0.2)
            assert text_of(chunks) == "one two"
            assert chunks[-1].finish is FinishReason.STOP

    run(main)


# -- names and addresses ---------------------------------------------------------------------------------------------


def named(up, getaddrinfo, **config):
    """A client that reaches ``up`` by a name that ``getaddrinfo`` resolves."""
    base_url = up.base_url.replace("127.0.0.1", "provider.example")
    quick = {"connect_timeout_s": 0.3, "first_token_timeout_s": 2.0}
    return UpstreamClient([up.config(base_url=base_url, **{**quick, **config})], getaddrinfo=getaddrinfo)


def test_a_name_is_looked_up_once_and_then_remembered():
    """Two new connections, one lookup."""

    async def main():
        lookups = []

        def getaddrinfo(host, port, **_):
            lookups.append(host)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        async with ScriptedUpstream() as up, named(up, getaddrinfo) as client:
            await asyncio.gather(collect(client), collect(client))
            assert lookups == ["provider.example"]

    run(main)


def test_cookies_are_not_kept():
    """One call's Set-Cookie does not follow the next, which may be another client's."""

    async def main():
        def getaddrinfo(_, port, **__):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

        async with ScriptedUpstream() as up, named(up, getaddrinfo) as client:
            up.reply(text="x", headers={"Set-Cookie": "session=1; Path=/"})
            await collect(client)
            await collect(client)
            assert "Cookie" not in up.seen[1].headers

    run(main)


def test_a_hanging_lookup_is_a_connect_timeout_then_fails_at_once():
    """One call waits for its connect deadline, later ones not at all; other upstreams are unaffected (F21)."""

    async def main():
        go = threading.Event()

        def getaddrinfo(*_, **__):
            go.wait(10)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        async with ScriptedUpstream() as up:
            base_url = "http://provider.example:9/v1"
            config = [up.config(base_url=base_url, connect_timeout_s=0.3), up.config("other", connect_timeout_s=0.3)]
            async with UpstreamClient(config, getaddrinfo=getaddrinfo) as client:
                with pytest.raises(UpstreamTimeout) as caught:
                    await collect(client)
                assert caught.value.code == "connect_timeout"
                assert not caught.value.may_cost
                began = time.monotonic()
                for _ in range(5):
                    with pytest.raises(UpstreamUnavailable, match="stuck"):
                        await collect(client)
                assert text_of(await collect(client, upstream="other")) == "echo: hello"
                assert time.monotonic() - began < 5
                go.set()

    run(main)


def test_an_unknown_name_and_a_closed_port_are_unavailable():
    """NXDOMAIN and a refused connection say what happened in words of their own, and cannot have cost anything."""

    async def main():
        def getaddrinfo(*_, **__):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async with ScriptedUpstream() as up:
            async with named(up, getaddrinfo) as client:
                with pytest.raises(UpstreamUnavailable, match="cannot be resolved") as caught:
                    await collect(client)
                assert not caught.value.may_cost
                assert client.calls == 1
            gone = up.config()
        async with UpstreamClient([gone]) as client:
            with pytest.raises(UpstreamUnavailable, match="refused") as caught:
                await collect(client)
            assert not caught.value.may_cost

    run(main)


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "host:99999", "host:0"])
def test_an_address_that_may_not_be_called_stops_the_start(host):
    """base_url may not point at link-local or metadata addresses, nor at ports that do not exist (E08)."""

    async def main():
        async with ScriptedUpstream() as up:
            with pytest.raises(ConfigError, match='"cloud": base_url'):
                await a_client(up, base_url=f"http://{host}/v1").start()

    run(main)


def test_what_came_together_goes_on_together():
    """Neighbouring pieces of one choice are one chunk; an ending, a usage and another choice stay apart."""
    a, b = Chunk(text="a", tokens=(Token(b"a", -1.0),)), Chunk(text="b", model="m")
    other = Chunk(choice=1, text="x")
    end, usage = Chunk(finish=FinishReason.STOP), Chunk(usage=Usage(prompt_tokens=1))
    chunks = reading.joined([a, b, other, a, end, usage])
    assert [(c.choice, c.text, c.finish) for c in chunks] == [
        (0, "ab", None),
        (1, "x", None),
        (0, "a", FinishReason.STOP),
        (0, "", None),
    ]
    assert (chunks[0].tokens, chunks[0].model) == (a.tokens, "m")
    assert chunks[-1].usage == usage.usage
