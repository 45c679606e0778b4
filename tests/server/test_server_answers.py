"""What every answer says of itself, whole or streamed, local or not."""

import asyncio
import json

import pytest
from builders import a_route
from server_builders import CHAT, a_chat, events, serving

from edged.errors import EngineError
from edged.server.patience import Patience
from edged.testing.local import Script, ScriptedEngine
from edged.testing.upstream import Reply, ScriptedUpstream


@pytest.mark.parametrize("stream", [False, True])
def test_a_local_answer_says_who_why_and_how_sure(stream):
    """Each answer carries id, author, model, reason and confidence, in headers and in its ``edged`` object."""

    async def main():
        async with serving() as port:
            async with port.post(a_chat(stream=stream)) as response:
                text = await response.text()
            await port.at_rest()
            assert response.status == 200
            assert response.headers["x-edged-request-id"] == port.records[0].id
            assert response.headers["x-edged-served-by"] == "local"
            assert response.headers["x-edged-model"] == "small"
            assert response.headers["x-edged-reason"] == "within_budget"
            assert 0 < float(response.headers["x-edged-confidence"]) <= 1
            said = events(text)[-2]["edged"] if stream else json.loads(text)["edged"]
            assert said["request_id"] == port.records[0].id
            assert said["served_by"] == "local"
            assert said["cost_usd"] == 0
            assert [attempt["outcome"] for attempt in said["attempts"]] == ["served"]

    asyncio.run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_a_cloud_answer_states_the_cost_that_the_record_states(stream):
    """Body and ledger agree on every attempt: tokens and money, the discarded local ones too."""

    async def main():
        async with serving() as port:
            body = a_chat(stream=stream, edged={"min_confidence": 1.0})
            async with port.post(body) as response:
                text = await response.text()
            await port.at_rest()
            assert response.headers["x-edged-served-by"] == "cloud"
            assert response.headers["x-edged-model"] == "cloud/scripted-model"
            assert response.headers["x-edged-reason"] == "low_confidence"
            said = events(text)[-2]["edged"] if stream else json.loads(text)["edged"]
            record = port.records[0]
            assert record.cost_uusd > 0
            assert said["cost_usd"] == record.cost_uusd / 1e6
            for shown, kept in zip(said["attempts"], record.attempts, strict=True):
                assert (shown["outcome"], shown["target"]) == (kept.outcome.value, kept.target.value)
                assert shown["cost_usd"] == kept.cost_uusd / 1e6
                assert shown["completion_tokens"] == kept.usage.completion_tokens
            assert [a["outcome"] for a in said["attempts"]] == ["discarded", "served"]

    asyncio.run(main())


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_a_stream_ends_with_finish_then_usage_then_edged_then_done(path):
    """Exactly one finish reason; the usage chunk comes last, and only where it was asked for (B08, B09)."""

    async def main():
        async with serving() as port:
            body = {"model": "auto", "stream": True, "stream_options": {"include_usage": True}}
            body |= {"messages": a_chat()["messages"]} if path == CHAT else {"prompt": "hello"}
            async with port.post(body, path) as response:
                *chunks, done = events(await response.text())
            assert done == "[DONE]"
            finishes = [c["finish_reason"] for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
            assert finishes == ["stop"]
            assert chunks[-1]["choices"] == []
            assert chunks[-1]["usage"]["completion_tokens"] == 4
            assert "edged" in chunks[-1]
            assert all(chunk["usage"] is None for chunk in chunks[:-1])

    asyncio.run(main())


def test_an_engine_that_fails_in_a_stream_ends_it_with_an_error_and_the_end_mark():
    """After the first byte a failure is said in-band, then ``[DONE]``: no client hangs (B07)."""

    async def main():
        engine = ScriptedEngine(default=Script(text="one two three four", fail_after=2, error=EngineError("it broke")))
        async with serving(engine=engine, routes=[a_route(cloud=[])]) as port:
            async with port.post(a_chat(stream=True)) as response:
                *_, error, done = events(await response.text())
            assert response.status == 200
            assert error == {
                "error": {"message": "it broke", "type": "server_error", "param": None, "code": "engine_error"}
            }
            assert done == "[DONE]"
            await port.at_rest()
            assert [(r.status.value, r.error) for r in port.records] == [("failed", "engine_error")]

    asyncio.run(main())


def test_an_engine_that_fails_before_the_first_byte_is_an_http_error():
    """Before the first byte a failure is a status, never a 200 (B07)."""

    async def main():
        engine = ScriptedEngine(default=Script(fail_after=0, error=EngineError("it broke")))
        async with serving(engine=engine, routes=[a_route(cloud=[])]) as port:
            async with port.post(a_chat(stream=True)) as response:
                document = await response.json()
            assert response.status >= 500
            assert document["error"]["code"] in {"engine_error", "worker_lost"}
            assert response.headers["x-edged-request-id"] == port.records[0].id

    asyncio.run(main())


def test_our_own_fault_in_a_stream_still_ends_it_properly(monkeypatch, caplog):
    """An unforeseen exception says nothing of itself to the client, ends the stream, and is logged once."""

    async def main():
        async with serving() as port:
            monkeypatch.setattr("edged.server.openai.edged_object", lambda _: 1 / 0)
            async with port.post(a_chat(stream=True), headers={"Connection": "close"}) as response:
                text = await response.text()
            *_, error, done = events(text)
            assert done == "[DONE]"
            assert error["error"]["code"] == "internal_error"
            assert "division" not in text
            await port.at_rest()
            assert [(r.status.value, r.error) for r in port.records] == [("failed", "internal_error")]
            async with port.post(a_chat()) as response:
                assert response.status == 500
                assert "division" not in await response.text()
            await port.at_rest()

    asyncio.run(main())
    assert ["unexpected failure" in r.message for r in caplog.records if r.exc_info] == [True, True]


def test_a_silent_stream_is_kept_alive_with_comments():
    """A proxy sees bytes while the source is silent after the commit (B11)."""

    async def main():
        upstream = ScriptedUpstream(default=Reply(chunks=["one", "two"], chunk_delay_s=0.3, role_chunk=False))
        async with serving(upstream=upstream, patience=Patience(comment_s=0.05)) as port:
            async with port.post(a_chat(stream=True, model="cloud/scripted-model")) as response:
                text = await response.text()
            assert text.count(": keep-alive\n\n") >= 2
            assert text.index("one") < text.index(": keep-alive") < text.index("two")
            assert events(text)[-1] == "[DONE]"

    asyncio.run(main())


def test_a_thousand_requests_share_one_connection():
    """Keep-alive connections stay: whole answers, streams, refusals and health, one after the other."""

    async def main():
        async with serving() as port:
            reader, writer = await port.raw()
            kinds = [
                (a_chat(), CHAT, "200"),
                (a_chat(stream=True), CHAT, "200"),
                (b"{", CHAT, "400"),
                (a_chat(model="nobody"), CHAT, "404"),
                (b"", "/nowhere", "404"),
            ]
            for number in range(1000):
                body, path, status = kinds[number % len(kinds)]
                await _send(writer, body, path)
                assert await _status(reader) == status, number
            writer.close()
            assert len(port.records) == 600

    asyncio.run(main())


async def _send(writer, body, path):
    from server_builders import http

    writer.write(http(body, path))
    await writer.drain()


async def _status(reader):
    """Read one answer off a bare connection; its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if "transfer-encoding: chunked" in head:
        while (size := int((await reader.readline()).strip(), 16)) > 0:
            await reader.readexactly(size + 2)
        await reader.readline()
    else:
        await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
    assert "connection: close" not in head
    return head.split()[1]


def test_fifty_streams_at_once_are_fifty_whole_answers():
    """Streams do not mix: each holds its own words, and nothing is left behind."""

    async def main():
        engine = ScriptedEngine(slots=64, default=Script(text="word " * 20, token_delay_s=0.002))
        async with serving(engine=engine, routes=[a_route(thresholds={"queue": 64})]) as port:

            async def one():
                async with port.post(a_chat(stream=True)) as response:
                    chunks = events(await response.text())
                said = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks[:-1] if c["choices"])
                ids = {c["id"] for c in chunks[:-1]}
                assert chunks[-1] == "[DONE]"
                assert len(ids) == 1
                return said, ids.pop()

            answers = await asyncio.gather(*(one() for _ in range(50)))
            assert {said for said, _ in answers} == {"word " * 20}
            assert len({name for _, name in answers}) == 50
            await port.at_rest()
            assert {r.status.value for r in port.records} == {"ok"}

    asyncio.run(main())
