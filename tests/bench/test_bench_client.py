"""The load client reports what a scripted server with known timings did."""

import asyncio

import pytest

from edged.bench.client import Ask, BenchError, Target, ask, first_model, open_session
from edged.bench.stats import Answer


def run(serving, script, request: Ask | None = None) -> Answer:
    """One answer of a scripted server."""

    async def main() -> Answer:
        async with serving(script), open_session(5) as session:
            return await ask(session, Target("t", script.url, "m"), request or Ask("hello", 9))

    return asyncio.run(main())


@pytest.mark.parametrize("chat", [True, False])
def test_times_and_tokens_are_the_servers(scripted, serving, chat: bool) -> None:
    """TTFT and gaps follow the script; tokens come from the server's usage."""
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    script = scripted(pieces=((0.15, "one"), (0.05, "two"), (0.10, "three")), usage=usage)
    answer = run(serving, script, Ask("hello", 9, chat))
    assert answer.error is None
    assert 0.14 <= answer.ttft_s < 0.6
    assert [gap >= pause - 0.01 for gap, pause in zip(answer.gaps_s, (0.05, 0.10), strict=True)] == [True, True]
    assert (answer.prompt_tokens, answer.completion_tokens, answer.counted) == (7, 5, False)
    assert answer.total_s >= 0.29


def test_a_request_is_greedy_and_asks_for_usage(scripted, serving) -> None:
    """Every target gets the same deterministic work."""
    script = scripted()
    run(serving, script, Ask("hello", 9))
    run(serving, script, Ask("hello", 9, chat=False))
    chat, plain = script.bodies
    assert chat["messages"] == [{"role": "user", "content": "hello"}]
    assert plain["prompt"] == "hello"
    for body in (chat, plain):
        assert (body["model"], body["max_tokens"], body["temperature"], body["stream"]) == ("m", 9, 0, True)
        assert body["stream_options"] == {"include_usage": True}


def test_without_usage_the_pieces_are_counted_and_it_is_said(scripted, serving) -> None:
    """A server that ignores include_usage is still measured."""
    answer = run(serving, scripted(pieces=((0, "a"), (0, ""), (0, "b"))))
    assert (answer.completion_tokens, answer.counted, answer.prompt_tokens) == (2, True, None)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"status": 404}, "HTTP 404: no such model"),
        ({"finish": None}, "the stream was cut"),
        ({"extra": (b'data: {"error": {"message": "engine failed"}}\n\n',)}, "engine failed"),
        ({"extra": (b"data: {oops\n\n",)}, "JSONDecodeError"),
    ],
)
def test_a_failed_answer_is_an_error_not_a_figure(scripted, serving, options, error: str) -> None:
    """HTTP errors, cut streams, error events and garbage never count as fast answers."""
    answer = run(serving, scripted(**options))
    assert error in answer.error


def test_comments_and_other_fields_are_no_text(scripted, serving) -> None:
    """Keep-alive comments do not count as a first token."""
    answer = run(serving, scripted(extra=(b": ping\n\n", b"event: x\nid: 3\n", b"data: [DONE]\n\n")))
    assert (answer.error, len(answer.pieces)) == (None, 2)


def test_a_server_that_is_not_there_is_an_error() -> None:
    """Nothing is raised in the middle of a round."""

    async def main() -> Answer:
        async with open_session(5) as session:
            return await ask(session, Target("t", "http://127.0.0.1:1", "m"), Ask("hello", 9))

    assert "ClientConnectorError" in asyncio.run(main()).error


def test_the_first_listed_model_is_taken_where_none_is_named(scripted, serving) -> None:
    """/v1/models names it; a server without one is a BenchError."""

    async def main() -> None:
        async with serving(scripted()) as script, open_session(5) as session:
            assert await first_model(session, Target("t", script.url)) == "first"
            with pytest.raises(BenchError, match=r"t: .*/wrong/v1/models"):
                await first_model(session, Target("t", script.url + "/wrong"))

    asyncio.run(main())
