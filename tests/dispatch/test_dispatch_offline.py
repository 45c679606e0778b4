"""Offline is a state: found quickly, nobody waits in it, and left within seconds. Real sockets, dead in every way."""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from builders import a_config, a_route
from dead_ends import an_address, black_hole, refused_port
from dispatch_builders import STREAMED, UNSURE, WORDS, Box, looked_after, run

from edged.config import UpstreamConfig
from edged.core import Outcome, Reason, Target
from edged.dispatch.cloud import Cloud
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.money import Money
from edged.dispatch.upstreams import UpstreamState
from edged.errors import UpstreamOffline
from edged.testing import Reply, ScriptedUpstream
from edged.testing.local import Script, ScriptedEngine
from edged.upstream.client import UpstreamClient

LOCAL, CLOUD = Target.LOCAL, Target.CLOUD
AT_ONCE_S = 0.25
BACK_S = 5.0


@asynccontextmanager
async def a_box_at(*base_urls, getaddrinfo=None, local=True, **route):
    """A box whose upstreams are at these addresses, whether anybody lives there or not."""
    async with AsyncExitStack() as stack:
        models = [{"name": "scripted-model", "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}]
        quick = {"connect_timeout_s": 0.4, "first_token_timeout_s": 2.0, "model": models}
        upstreams = [
            UpstreamConfig.model_validate({"name": f"cloud{place}", "base_url": url, **quick})
            for place, url in enumerate(base_urls)
        ]
        names = [f"{upstream.name}/scripted-model" for upstream in upstreams]
        route = {"cloud": names, "hold_tokens": 4, "local": "small" if local else "", **route}
        config = a_config(routes=[a_route(**route)], upstreams=upstreams)
        client = await stack.enter_async_context(UpstreamClient(upstreams, getaddrinfo=getaddrinfo))
        cloud = Cloud(client, Money(config))
        await stack.enter_async_context(looked_after(cloud))
        engine, records = ScriptedEngine(slots=64), []
        engine.default = Script(text=WORDS, logprob=UNSURE)
        dispatcher = Dispatcher(config, engines={"small": engine}, cloud=cloud, sinks=[records.append])
        yield Box(dispatcher, engine, [], client, cloud, records)


async def until(condition, *, within_s=BACK_S):
    """Wait for a state that only the clock and the network bring about; the seconds it took."""
    began_s = time.monotonic()
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.01)
    return time.monotonic() - began_s


async def at_once(box, **fields):
    """One request that must not wait for the network."""
    began_s = time.monotonic()
    seen = await box.ask(**fields)
    assert time.monotonic() - began_s < AT_ONCE_S
    return seen


@asynccontextmanager
async def dead_end(kind):
    """Base URL and getaddrinfo of an upstream that cannot be reached."""

    def fails(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    def sleeps(*_, **__):
        asleep.wait(20)
        return [an_address("127.0.0.1", 9)]

    asleep = threading.Event()
    with contextlib.ExitStack() as stack:
        stack.callback(asleep.set)
        if kind == "refused":
            yield f"http://127.0.0.1:{refused_port()}/v1", None
        elif kind == "black hole":
            yield f"http://127.0.0.1:{stack.enter_context(black_hole())}/v1", None
        elif kind == "no route":
            yield "http://255.255.255.255:9/v1", None
        else:
            yield "http://cloud.example/v1", fails if kind == "no name" else sleeps


@STREAMED
@pytest.mark.parametrize("kind", ["refused", "black hole", "no route", "no name", "resolver sleeps"])
def test_once_offline_nobody_waits(kind, stream, caplog):
    """The first request pays one connect time-out at most; after that every answer is local at once and says why."""

    async def main():
        async with dead_end(kind) as (url, getaddrinfo), a_box_at(url, getaddrinfo=getaddrinfo) as box:
            began_s = time.monotonic()
            assert (await box.ask(stream=stream)).head.reason is Reason.CLOUD_UNAVAILABLE
            assert time.monotonic() - began_s < 0.4 + AT_ONCE_S
            await until(lambda: box.cloud.upstreams.offline, within_s=3.0)
            calls = box.client.calls
            for _ in range(10):
                seen = await at_once(box, stream=stream)
                assert (seen.text, seen.head.served_by) == (WORDS, LOCAL)
                assert (seen.head.reason, seen.head.offline) == (Reason.CLOUD_UNAVAILABLE, True)
            assert box.client.calls == calls == len(box.cloud_attempts)
            record = box.records[-1]
            assert record.offline
            assert [a.outcome for a in record.attempts] == [Outcome.SERVED]
            assert box.cloud.upstreams.states() == {"cloud0/scripted-model": "offline"}

    with caplog.at_level(logging.INFO):
        run(main)
    assert len([r for r in caplog.records if r.message.startswith("offline:")]) == 1


@pytest.mark.parametrize("kind", ["refused", "black hole"])
def test_several_dead_upstreams_cost_one_time_out_not_the_sum(kind):
    """While the first is tried in vain the others are probed; offline is known before their turn comes."""

    async def main():
        async with AsyncExitStack() as stack:
            urls = [(await stack.enter_async_context(dead_end(kind)))[0] for _ in range(3)]
            async with a_box_at(*urls) as box:
                began_s = time.monotonic()
                await box.ask()
                assert time.monotonic() - began_s < 0.4 + AT_ONCE_S
                await until(lambda: box.cloud.upstreams.offline, within_s=3.0)
                await at_once(box)

    run(main)


def test_one_dead_upstream_is_skipped_and_the_box_stays_online():
    """Its neighbour answers at once; nothing is marked offline."""

    async def main():
        async with AsyncExitStack() as stack:
            up = await stack.enter_async_context(ScriptedUpstream(default=Reply(text="well")))
            url, _ = await stack.enter_async_context(dead_end("black hole"))
            async with a_box_at(url, up.base_url) as box:
                assert (await box.ask()).text == "well"
                await until(lambda: box.cloud.upstreams.state("cloud0/scripted-model") == "offline")
                seen = await at_once(box)
                assert (seen.text, seen.head.offline) == ("well", False)
                assert not box.cloud.upstreams.offline

    run(main)


@pytest.mark.parametrize("fault", [{"status": 500}, {"status": 503}, {"drop": "reset"}, {"hang": True}])
def test_a_provider_that_fails_is_not_offline(fault):
    """A connection was made: the way out is open, whatever came back."""

    async def main():
        async with ScriptedUpstream(default=Reply(**fault)) as up, a_box_at(up.base_url) as box:
            await asyncio.gather(*(box.ask(limits={"deadline_s": 1.0}) for _ in range(8)))
            assert not box.cloud.upstreams.offline
            assert box.cloud.upstreams.uplink.suspects == ()

    run(main)


@STREAMED
def test_coming_back_is_noticed_within_seconds_and_costs_no_call(stream, caplog):
    """A cheap connection finds out; the next request leaves again, and the log has one line for it."""

    async def main():
        port = refused_port()
        async with a_box_at(f"http://127.0.0.1:{port}/v1") as box:
            await box.ask()
            await until(lambda: box.cloud.upstreams.offline)
            async with ScriptedUpstream(port=port, default=Reply(text="back")) as up:
                took_s = await until(lambda: not box.cloud.upstreams.offline)
                assert took_s < BACK_S
                assert not up.seen
                seen = await box.ask(stream=stream)
                assert (seen.text, seen.head.offline) == ("back", False)

    with caplog.at_level(logging.INFO):
        run(main)
    assert len([r for r in caplog.records if r.message.startswith("online again")]) == 1


def test_a_resolver_that_is_back_is_noticed_although_old_questions_still_hang():
    """getaddrinfo of before the outage blocks for half a minute; nobody waits for it (F21)."""

    async def main():
        async with ScriptedUpstream(default=Reply(text="back")) as up:
            port = int(up.base_url.rpartition(":")[2].partition("/")[0])
            alive, end = threading.Event(), threading.Event()

            def getaddrinfo(*_, **__):
                if not alive.is_set():
                    end.wait(30)
                return [an_address("127.0.0.1", port)]

            try:
                async with a_box_at(f"http://cloud.example:{port}/v1", getaddrinfo=getaddrinfo) as box:
                    await box.ask()
                    await until(lambda: box.cloud.upstreams.offline)
                    alive.set()
                    assert await until(lambda: not box.cloud.upstreams.offline) < BACK_S
                    assert (await box.ask()).text == "back"
            finally:
                end.set()

    run(main)


def test_what_failed_during_an_outage_is_not_held_against_the_upstream():
    """An open breaker and the outage end together: the way there was the fault."""

    async def main():
        port = refused_port()
        async with a_box_at(f"http://127.0.0.1:{port}/v1") as box:
            upstreams, name = box.cloud.upstreams, "cloud0/scripted-model"
            await asyncio.sleep(0)  # the probes' task has begun
            for _ in range(5):
                upstreams._targets[name].breaker.bad(now_s=time.monotonic())
            assert upstreams.state(name) is UpstreamState.OPEN
            for _ in range(2):
                upstreams._missed("cloud0")
            assert upstreams.state(name) is UpstreamState.OFFLINE
            async with ScriptedUpstream(port=port, default=Reply(text="back")):
                await until(lambda: not upstreams.offline)
                assert upstreams.state(name) is UpstreamState.CLOSED
                assert (await box.ask()).text == "back"

    run(main)


def test_a_route_without_a_local_model_fails_fast_with_a_time_to_come_back():
    """503 at once, Retry-After within the time in which coming back is noticed."""

    async def main():
        async with dead_end("black hole") as (url, _), a_box_at(url, local=False) as box:
            await box.ask()
            await until(lambda: box.cloud.upstreams.offline)
            seen = await at_once(box)
            assert isinstance(seen.error, UpstreamOffline)
            assert (seen.error.status, 0 < seen.error.retry_after_s <= BACK_S) == (503, True)
            assert box.records[-1].offline

    run(main)


def test_local_answers_are_as_fast_offline_as_online():
    """A resolver that sleeps holds nothing up: 200 local answers in the middle of it, and their slowest (F21)."""

    async def main():
        async with AsyncExitStack() as stack:
            url, getaddrinfo = await stack.enter_async_context(dead_end("resolver sleeps"))
            async with a_box_at(url, getaddrinfo=getaddrinfo) as box:
                took_s = {}
                for when in ("online", "offline"):
                    box.engine.default = Script(text=WORDS)
                    times = []
                    for _ in range(200):
                        began_s = time.monotonic()
                        assert (await box.ask()).head.served_by is LOCAL
                        times.append(time.monotonic() - began_s)
                    took_s[when] = sorted(times)[-3]
                    box.engine.default = Script(text=WORDS, logprob=UNSURE)
                    waiting = [asyncio.create_task(box.ask()) for _ in range(20)]
                    await asyncio.sleep(0)
                assert took_s["offline"] < took_s["online"] + 0.05
                await asyncio.gather(*waiting)

    run(main)


def test_a_slow_answer_is_not_given_up_while_nobody_could_give_a_faster_one():
    """Beyond ttft_s and itl_s the local try goes on: every token is computed once, and the answer says "offline"."""

    async def main():
        hurry = {"ttft_s": 0.05, "itl_s": 0.05, "confidence": 0.0}
        async with AsyncExitStack() as stack:
            url, _ = await stack.enter_async_context(dead_end("refused"))
            async with a_box_at(url, thresholds=hurry) as box:
                await box.ask(model="cloud0/scripted-model")
                await until(lambda: box.cloud.upstreams.offline)
                box.engine.default = Script(text="one two", first_token_delay_s=0.15, token_delay_s=0.1)
                seen = await box.ask()
                assert (seen.text, seen.head.reason, seen.head.offline) == ("one two", Reason.WITHIN_BUDGET, True)
                assert len(box.engine.steps) == 2
                assert len(box.records[-1].attempts) == 1
                kept = await box.ask(limits={"locality": "local_only"})
                assert kept.head.offline is False

    run(main)


def test_nobody_probes_while_all_is_well():
    """Calls that succeed are proof enough: no connection beside them."""

    async def main():
        async with ScriptedUpstream(default=Reply(text="well")) as up, a_box_at(up.base_url) as box:
            probes = []
            reaches = box.client.reaches

            async def counted(upstream):
                probes.append(upstream)
                return await reaches(upstream)

            box.client.reaches = counted
            for _ in range(20):
                await box.ask()
            assert not probes
            assert len({seen.connection for seen in up.seen}) == 1

    run(main)


def test_a_kept_connection_that_the_upstream_half_closed_costs_nobody_an_answer():
    """Servers close idle connections when they like (vLLM after 5 s): the next call uses a new one and succeeds."""
    events = b'data: {"choices":[{"index":0,"delta":{"content":"well"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(events)
    connections, closed = [], asyncio.Event()

    async def serve(reader, writer):
        connections.append(writer)
        header = await reader.readuntil(b"\r\n\r\n")
        length = int(header.lower().partition(b"content-length:")[2].split()[0])
        await reader.readexactly(length)
        writer.write(head + events)
        await writer.drain()
        writer.write_eof()
        closed.set()
        await reader.read()
        writer.close()

    async def main():
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with a_box_at(f"http://127.0.0.1:{port}/v1") as box:
                for _ in range(3):
                    closed.clear()
                    assert (await box.ask()).head.served_by is CLOUD
                    await closed.wait()
                    await asyncio.sleep(0.02)
                assert len(connections) == 3
                assert [a.outcome for a in box.cloud_attempts] == [Outcome.SERVED] * 3

    run(main)
