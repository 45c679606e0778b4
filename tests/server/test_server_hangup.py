"""Clients that leave, or stay and do not read: slots come back, records are exact, the log stays quiet."""

import asyncio
import logging
import socket
import struct

import pytest
from builders import a_route
from server_builders import a_chat, http, serving

from edged.core import Chunk
from edged.server.disconnect import DisconnectWatcher
from edged.testing.local import Script, ScriptedEngine
from edged.testing.upstream import Reply, ScriptedUpstream

LONG = Script(text="word " * 4000, token_delay_s=0.005)
SOON_S = 0.2
both_modes = pytest.mark.parametrize("handler_cancellation", [False, True])


def one_cancelled_record(port):
    assert [(r.status.value, r.error) for r in port.records] == [("cancelled", "client_gone")]


@pytest.fixture(autouse=True)
def quiet_log(caplog):
    """Whatever clients do, the log holds no traceback and no error."""
    caplog.set_level(logging.INFO)
    yield
    loud = [r for r in caplog.records if r.exc_info or r.levelno >= logging.ERROR]
    assert loud == []


def reset(writer):
    """End a connection by RST, as a client that was killed does."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def close(writer):
    writer.close()


@both_modes
@pytest.mark.parametrize("leave", [close, reset])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_headers_frees_its_slot_at_once(stream, leave, handler_cancellation):
    """Gone while nothing was sent yet: engine idle within 200 ms, one record, cancelled (A01, A05, A06)."""

    async def main():
        engine = ScriptedEngine(default=Script(first_token_delay_s=60))
        async with serving(
            engine=engine, routes=[a_route(cloud=[])], handler_cancellation=handler_cancellation
        ) as port:
            _, writer = await port.raw()
            writer.write(http(a_chat(stream=stream)))
            await until(lambda: engine.in_flight)
            leave(writer)
            assert await port.at_rest() < SOON_S
            one_cancelled_record(port)

    asyncio.run(main())


@both_modes
@pytest.mark.parametrize("leave", [close, reset])
def test_a_client_that_leaves_in_the_middle_frees_its_slot_at_once(leave, handler_cancellation):
    """Gone after some events: the same (A01, A05)."""

    async def main():
        engine = ScriptedEngine(default=LONG)
        async with serving(
            engine=engine, routes=[a_route(cloud=[])], handler_cancellation=handler_cancellation
        ) as port:
            reader, writer = await port.raw()
            writer.write(http(a_chat(stream=True)))
            await reader.readuntil(b"word")
            leave(writer)
            assert await port.at_rest() < SOON_S
            one_cancelled_record(port)
            done = len(engine.steps)
            await asyncio.sleep(0.05)
            assert len(engine.steps) == done, "the engine computes for nobody"

    asyncio.run(main())


@both_modes
def test_a_client_that_leaves_right_after_the_headers_is_one_cancelled_record(handler_cancellation):
    """Gone between the headers and the first event's end (A06)."""

    async def main():
        async with serving(
            engine=ScriptedEngine(default=LONG),
            routes=[a_route(cloud=[])],
            handler_cancellation=handler_cancellation,
        ) as port:
            reader, writer = await port.raw()
            writer.write(http(a_chat(stream=True)))
            await reader.readuntil(b"\r\n\r\n")
            reset(writer)
            assert await port.at_rest() < SOON_S
            one_cancelled_record(port)

    asyncio.run(main())


@both_modes
def test_a_client_that_leaves_during_the_last_event_leaves_one_record(handler_cancellation):
    """Whenever in the last moments it goes, there is one record and no noise (A06)."""

    async def main():
        engine = ScriptedEngine(default=Script(text="one two three", token_delay_s=0.001))
        async with serving(
            engine=engine, routes=[a_route(cloud=[])], handler_cancellation=handler_cancellation
        ) as port:
            for number in range(12):
                reader, writer = await port.raw()
                writer.write(http(a_chat(stream=True)))
                await reader.readuntil(b" three")
                await asyncio.sleep(number * 0.0003)
                reset(writer)
                await port.at_rest()
                await until(lambda n=number: len(port.records) == n + 1)
            assert {r.status.value for r in port.records} <= {"ok", "cancelled"}

    asyncio.run(main())


@both_modes
def test_a_client_that_leaves_while_the_cloud_answers_ends_the_call(handler_cancellation):
    """The upstream connection is closed too: nobody pays for words that nobody reads."""

    async def main():
        upstream = ScriptedUpstream(default=Reply(text="word " * 1000, chunk_delay_s=0.02))
        async with serving(upstream=upstream, handler_cancellation=handler_cancellation) as port:
            reader, writer = await port.raw()
            writer.write(http(a_chat(stream=True, model="cloud/scripted-model")))
            await reader.readuntil(b"word")
            reset(writer)
            assert await port.at_rest() < SOON_S
            assert await upstream.seen[0].hung_up()
            one_cancelled_record(port)
            assert port.records[0].cost_uusd > 0, "what was used is accounted for"

    asyncio.run(main())


def test_a_client_that_leaves_while_its_body_is_read_never_was_a_request():
    """Nothing is decided, so nothing is recorded; the log says nothing either."""

    async def main():
        async with serving() as port:
            _, writer = await port.raw()
            writer.write(http(a_chat())[:-5])
            await writer.drain()
            await asyncio.sleep(0.05)
            reset(writer)
            async with port.get("/health/live") as response:
                assert response.status == 200
            await port.at_rest()
            assert port.records == []

    asyncio.run(main())


class Flood(ScriptedEngine):
    """Says more than any socket buffers, or a little for a long time where one token was asked for."""

    async def generate(self, prompt, kept=()):
        modest = prompt.request.max_tokens == 1
        try:
            while True:
                await asyncio.sleep(0.005 if modest else 0)
                yield Chunk(text="word " if modest else "x" * 50_000)
        finally:
            self.release(prompt.request.id)


def test_a_client_that_does_not_read_is_cut_while_others_go_on():
    """Back-pressure, then the write deadline, then the slot is free; nobody else waits for it (A22)."""

    async def main():
        engine = Flood(slots=4)
        async with serving(engine=engine, routes=[a_route(cloud=[])], server={"write_timeout_s": 0.5}) as port:
            other, other_writer = await port.raw()
            other_writer.write(http(a_chat(stream=True, max_tokens=1)))
            await other.readuntil(b"word")
            reader, writer = await port.raw(receive_bytes=4096)
            writer.write(http(a_chat(stream=True)))
            for _ in range(3):
                await reader.readexactly(1)
                await asyncio.sleep(0.05)
            await until(lambda: port.records)
            assert [(r.status.value, r.error) for r in port.records] == [("cancelled", "client_too_slow")]
            assert engine.in_flight == 1, "only the other stream is left"
            await other.readuntil(b"word")
            reset(other_writer)
            await port.at_rest()
            writer.transport.abort()

    asyncio.run(main())


def test_a_task_is_cancelled_once_however_long_it_cleans_up():
    """A second cancellation would cut the cleaning short."""

    class Gone:
        transport = None

    async def main():
        watcher = DisconnectWatcher(poll_s=0.001)
        cleaned = asyncio.Event()

        async def serve():
            with watcher.watch(Gone()):
                try:
                    await asyncio.sleep(60)
                finally:
                    await asyncio.sleep(0.05)
                    cleaned.set()

        async with watcher.running():
            task = asyncio.create_task(serve())
            await asyncio.wait([task])
        assert task.cancelled()
        assert cleaned.is_set()
        assert len(watcher) == 0

    asyncio.run(main())


def test_an_idle_watcher_sleeps():
    """Nobody to watch: no timer wakes an idle box."""

    async def main():
        watcher = DisconnectWatcher(poll_s=0.001)
        async with watcher.running():
            await asyncio.sleep(0.02)
            loop = asyncio.get_running_loop()
            assert not [handle for handle in loop._scheduled if not handle.cancelled()]

    asyncio.run(main())


async def until(condition, *, within_s=10.0):
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.002)
