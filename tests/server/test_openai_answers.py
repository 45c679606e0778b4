"""Rules of the bodies and streams that go out: complete, in order, and the same text whichever way they are sent."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion as OpenAICompletion
from openai.types import CompletionChoice
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage
from openai.types.chat.chat_completion import Choice, ChoiceLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob, TopLogprob
from openai.types.completion_choice import Logprobs
from openai.types.completion_usage import CompletionTokensDetails, CompletionUsage, PromptTokensDetails
from pydantic import BaseModel

from edged.core import Chat, Chunk, FinishReason, Message, Request, Role, Token, Usage
from edged.errors import EngineError, WorkerLost
from edged.server.openai_answers import (
    SSE_DONE,
    ChatAnswer,
    ChatStream,
    CompletionAnswer,
    CompletionStream,
    sse,
    sse_comment,
    usage_body,
)
from edged.server.wire import error_body

STOP, LENGTH = FinishReason.STOP, FinishReason.LENGTH
USAGE = Usage(prompt_tokens=10, completion_tokens=4, cached_tokens=6, reasoning_tokens=1)
EDGED = {"request_id": "r1", "reason": "within_budget"}


def a_request(**fields: Any) -> Request:
    return Request(
        **{"id": "r1", "model": "auto", "input": Chat((Message(Role.USER, "hi"),)), "received_s": 0.0, **fields}
    )


def a_token(piece: str | bytes, logprob: float = -0.5, top: tuple[tuple[bytes, float], ...] = ()) -> Token:
    return Token(piece.encode() if isinstance(piece, str) else piece, logprob, top=top)


def whole(kind: type, chunks: Iterable[Chunk], *, edged: Any = None, **fields: Any) -> dict[str, Any]:
    answer = kind(a_request(**fields), model="smollm2", created=1_700_000_000)
    for chunk in chunks:
        answer.feed(chunk)
    return answer.body(edged=edged)


def streamed(
    kind: type, chunks: Iterable[Chunk], *, include_usage: bool = False, edged: Any = None, **fields: Any
) -> list[dict[str, Any]]:
    stream = kind(a_request(**fields), model="smollm2", created=1_700_000_000, include_usage=include_usage)
    events = [event for chunk in chunks for event in stream.feed(chunk)]
    return events + stream.end(edged=edged)


def has_all_fields(body: dict[str, Any], model: type[BaseModel]) -> None:
    assert set(model.model_fields) - set(body) == set()


HELLO = [
    Chunk(text="Hel", tokens=(a_token("Hel", top=((b"Hel", -0.5), (b"Hi", -1.0))),)),
    Chunk(text="lo", tokens=(a_token("lo", -0.25, top=((b"lo", -0.25), (b"p", -2.0))),)),
    Chunk(finish=STOP, usage=USAGE),
]


# -- whole bodies ----------------------------------------------------------------------------------------------------


def test_a_chat_body_has_every_field_of_openais() -> None:
    """The official client's types find all of their fields, down to the details; what says nothing is null."""
    body = whole(ChatAnswer, HELLO, top_logprobs=2)
    ChatCompletion.model_validate(body, strict=True)
    has_all_fields(body, ChatCompletion)
    has_all_fields(body["choices"][0], Choice)
    has_all_fields(body["choices"][0]["message"], ChatCompletionMessage)
    has_all_fields(body["choices"][0]["logprobs"], ChoiceLogprobs)
    has_all_fields(body["choices"][0]["logprobs"]["content"][0], ChatCompletionTokenLogprob)
    has_all_fields(body["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0], TopLogprob)
    has_all_fields(body["usage"], CompletionUsage)
    has_all_fields(body["usage"]["prompt_tokens_details"], PromptTokensDetails)
    has_all_fields(body["usage"]["completion_tokens_details"], CompletionTokensDetails)


def test_a_chat_body_says_what_was_answered() -> None:
    """Text, finish reason, served model, usage; no logprobs unless asked for."""
    body = whole(ChatAnswer, HELLO, edged=EDGED)
    assert (body["id"], body["object"], body["created"]) == ("chatcmpl-r1", "chat.completion", 1_700_000_000)
    assert body["model"] == "smollm2"
    assert body["edged"] == EDGED
    choice = body["choices"][0]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    assert choice["message"]["content"] == "Hello"
    assert choice["message"]["refusal"] is None
    assert body["usage"]["total_tokens"] == 14
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 6
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 1


def test_usage_tells_which_guessed_tokens_came() -> None:
    """What was guessed ahead and taken, what was computed for nothing; neither changes the other counts."""
    usage = usage_body(Usage(completion_tokens=9, accepted_prediction_tokens=5, rejected_prediction_tokens=2))
    assert usage is not None
    assert usage["completion_tokens"] == usage["total_tokens"] == 9
    details = usage["completion_tokens_details"]
    assert (details["accepted_prediction_tokens"], details["rejected_prediction_tokens"]) == (5, 2)


def test_a_completion_body_has_every_field_of_openais() -> None:
    """Likewise for plain completions."""
    body = whole(CompletionAnswer, HELLO, top_logprobs=1)
    OpenAICompletion.model_validate(body, strict=True)
    has_all_fields(body, OpenAICompletion)
    has_all_fields(body["choices"][0], CompletionChoice)
    has_all_fields(body["choices"][0]["logprobs"], Logprobs)
    assert (body["id"], body["object"], body["choices"][0]["text"]) == ("cmpl-r1", "text_completion", "Hello")
    assert "edged" not in body


def test_n_choices_are_told_apart() -> None:
    """C16: chunks of several choices may come in any order; each has its index, the usage is one."""
    chunks = [
        Chunk(choice=1, text="b"),
        Chunk(choice=0, text="a"),
        Chunk(choice=1, finish=LENGTH),
        Chunk(choice=0, text="A", finish=STOP, usage=USAGE),
    ]
    body = whole(ChatAnswer, chunks, n=2)
    found = [(c["index"], c["message"]["content"], c["finish_reason"]) for c in body["choices"]]
    assert found == [(0, "aA", "stop"), (1, "b", "length")]


@pytest.mark.parametrize("kind", [ChatAnswer, CompletionAnswer])
def test_an_unfinished_answer_is_never_dressed_up_as_a_whole_one(kind: type) -> None:
    """B08: no finish reason is invented."""
    with pytest.raises(EngineError):
        whole(kind, [Chunk(text="a")])


@pytest.mark.parametrize("kind", [ChatStream, CompletionStream])
def test_an_unfinished_stream_has_no_clean_end(kind: type) -> None:
    """B08: likewise streamed, for each choice."""
    with pytest.raises(EngineError, match="choice 1"):
        streamed(kind, [Chunk(text="a", finish=STOP)], n=2)


def test_usage_that_nobody_counted_is_null() -> None:
    """Null is not zero."""
    assert usage_body(None) is None
    assert whole(ChatAnswer, [Chunk(text="a", finish=STOP)])["usage"] is None


# -- streams ---------------------------------------------------------------------------------------------------------


def test_a_chat_stream_opens_with_the_role_and_ends_with_the_reason() -> None:
    """The first delta carries the role, the following ones text alone, the last one nothing but the finish reason."""
    events = streamed(ChatStream, HELLO)
    for event in events:
        ChatCompletionChunk.model_validate(event, strict=True)
        has_all_fields(event, ChatCompletionChunk)
        has_all_fields(event["choices"][0], ChunkChoice)
    assert [e["choices"][0]["delta"] for e in events] == [
        {"role": "assistant", "content": "", "refusal": None},
        {"content": "Hel"},
        {"content": "lo"},
        {},
    ]
    assert [e["choices"][0]["finish_reason"] for e in events] == [None, None, None, "stop"]
    assert {e["id"] for e in events} == {"chatcmpl-r1"}
    assert {e["usage"] for e in events} == {None}


@pytest.mark.parametrize("asked", [None, 2])
def test_the_official_client_puts_a_stream_together(asked: int | None) -> None:
    """Its own accumulator arrives at the text, the finish reason, the log-probabilities and the usage."""
    state = ChatCompletionStreamState()
    for event in streamed(ChatStream, HELLO, include_usage=True, top_logprobs=asked):
        state.handle_chunk(ChatCompletionChunk.model_validate(event))
    final = state.get_final_completion()
    assert final.choices[0].message.content == "Hello"
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].finish_reason == "stop"
    assert final.usage is not None
    assert final.usage.total_tokens == 14
    logprobs = final.choices[0].logprobs
    assert [t.token for t in (logprobs and logprobs.content) or []] == ([] if asked is None else ["Hel", "lo"])


def test_a_completion_stream_is_text_only() -> None:
    """No role, the same object name as the whole body, one last event with the finish reason."""
    events = streamed(CompletionStream, HELLO)
    for event in events:
        OpenAICompletion.model_validate(event | {"choices": []}, strict=True)
        has_all_fields(event, OpenAICompletion)
        has_all_fields(event["choices"][0], CompletionChoice)
    assert [(e["choices"][0]["text"], e["choices"][0]["finish_reason"]) for e in events] == [
        ("Hel", None),
        ("lo", None),
        ("", "stop"),
    ]
    assert {e["object"] for e in events} == {"text_completion"}


@pytest.mark.parametrize("kind", [ChatStream, CompletionStream])
def test_usage_is_streamed_only_where_asked_for(kind: type) -> None:
    """B09: one last event with empty choices; without the option every event has a choice."""
    asked = streamed(kind, HELLO, include_usage=True)
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"] == usage_body(USAGE)
    assert all(event["usage"] is None and event["choices"] for event in asked[:-1])
    assert asked[:-1] == streamed(kind, HELLO)


@pytest.mark.parametrize("include_usage", [True, False])
def test_the_edged_object_is_in_the_last_event_and_only_there(include_usage: bool) -> None:
    """Whatever the last event is, what happened is told in it."""
    events = streamed(ChatStream, HELLO, include_usage=include_usage, edged=EDGED)
    assert events[-1]["edged"] == EDGED
    assert all("edged" not in event for event in events[:-1])


def test_an_empty_answer_still_opens_and_ends() -> None:
    """A model that ends at once gives a role and a finish reason."""
    events = streamed(ChatStream, [Chunk(), Chunk(finish=STOP)])
    assert [e["choices"][0]["delta"].get("role") for e in events] == ["assistant", None]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_text_in_the_last_chunk_comes_before_the_finish() -> None:
    """Held-back text flushed together with the finish is an event of its own (B05)."""
    events = streamed(ChatStream, [Chunk(text="##", finish=LENGTH)])
    assert [e["choices"][0]["delta"].get("content") for e in events] == ["", "##", None]


def test_text_is_sent_as_soon_as_it_is_there() -> None:
    """Only the very last event is kept back."""
    stream = ChatStream(a_request(n=2), model="m", created=0)
    assert len(stream.feed(Chunk(text="a"))) == 2
    assert stream.feed(Chunk(choice=0, finish=STOP)) == []
    assert len(stream.feed(Chunk(choice=1, text="b"))) == 2
    assert [e["choices"][0]["index"] for e in stream.feed(Chunk(choice=1, finish=STOP))] == [0]
    assert [e["choices"][0]["index"] for e in stream.end()] == [1]


TEXTS = st.lists(st.tuples(st.integers(0, 2), st.text(max_size=6)), max_size=12)


@given(pieces=TEXTS, finishes=st.permutations([0, 1, 2]), late=st.booleans())
@settings(max_examples=100, deadline=None)
@pytest.mark.parametrize(
    ("stream", "answer", "text"),
    [
        (ChatStream, ChatAnswer, lambda choice: choice["delta"].get("content") or ""),
        (CompletionStream, CompletionAnswer, lambda choice: choice["text"]),
    ],
    ids=["chat", "completions"],
)
def test_a_stream_joins_up_to_the_whole_answer(
    stream: type, answer: type, text: Any, pieces: list[tuple[int, str]], finishes: list[int], late: bool
) -> None:
    """B01, B08: the same chunks give the same text, and exactly one finish reason per choice, after its text."""
    chunks = [Chunk(choice=choice, text=part) for choice, part in pieces]
    chunks += [Chunk(choice=choice, finish=STOP) for choice in finishes]
    if late:
        chunks += [Chunk(choice=0, text="too late", finish=LENGTH), Chunk(usage=USAGE)]
    joined, ended = ["", "", ""], [0, 0, 0]
    for event in streamed(stream, chunks, n=3):
        choice = event["choices"][0]
        assert not ended[choice["index"]]
        joined[choice["index"]] += text(choice)
        ended[choice["index"]] += choice["finish_reason"] is not None
    assert ended == [1, 1, 1]
    body = whole(answer, chunks, n=3)
    assert joined == [c["message"]["content"] if "message" in c else c["text"] for c in body["choices"]]
    assert (body["usage"] is not None) == late


# -- log-probabilities -----------------------------------------------------------------------------------------------


def test_a_token_is_shown_with_its_exact_bytes() -> None:
    """B01: parts of one character cannot be text, but their bytes are exact; -inf and NaN become OpenAI's -9999."""
    rocket = "\U0001f680".encode()
    chunks = [
        Chunk(tokens=(a_token(rocket[:2], float("-inf"), top=((b"\xff", float("nan")),)),)),
        Chunk(text="\U0001f680", tokens=(a_token(rocket[2:]),), finish=STOP, usage=USAGE),
    ]
    body = whole(ChatAnswer, chunks, top_logprobs=1)
    first, second = body["choices"][0]["logprobs"]["content"]
    assert bytes(first["bytes"] + second["bytes"]) == rocket
    assert first["token"] == "\ufffd"
    assert first["logprob"] == -9999.0
    assert first["top_logprobs"] == [{"token": "\ufffd", "bytes": [255], "logprob": -9999.0}]
    assert json.loads(sse(body)[6:])["choices"] == body["choices"]


def test_only_as_many_alternatives_are_shown_as_were_asked_for() -> None:
    """The engine may know more of them."""
    for asked in (0, 1, 2):
        content = whole(ChatAnswer, HELLO, top_logprobs=asked)["choices"][0]["logprobs"]["content"]
        assert [len(entry["top_logprobs"]) for entry in content] == [asked, asked]


def test_completion_logprobs_are_parallel_lists() -> None:
    """Offsets count characters of the answer; the chosen token is always among the likely ones."""
    euro = "\u20ac".encode()
    chunks = [
        Chunk(text="a", tokens=(a_token("a", -1.0, top=((b"b", -0.5),)),)),
        Chunk(tokens=(a_token(euro[:1], -2.0),)),
        Chunk(text="\u20ac", tokens=(a_token(euro[1:], -3.0),)),
        Chunk(text="z", tokens=(a_token("z", -4.0),), finish=STOP),
    ]
    logprobs = whole(CompletionAnswer, chunks, top_logprobs=1)["choices"][0]["logprobs"]
    assert logprobs == {
        "tokens": ["a", "bytes:\\xe2", "bytes:\\x82\\xac", "z"],
        "token_logprobs": [-1.0, -2.0, -3.0, -4.0],
        "top_logprobs": [{"b": -0.5, "a": -1.0}, {"bytes:\\xe2": -2.0}, {"bytes:\\x82\\xac": -3.0}, {"z": -4.0}],
        "text_offset": [0, 1, 1, 2],
    }


@pytest.mark.parametrize("kind", [ChatStream, CompletionStream])
def test_streamed_logprobs_join_up_to_the_whole_ones(kind: type) -> None:
    """Token by token, with the text they belong to."""
    lists: list[Any] = []
    for event in streamed(kind, HELLO, top_logprobs=2):
        logprobs = event["choices"][0]["logprobs"]
        if logprobs is not None:
            lists += logprobs.get("content") or logprobs["tokens"]
    answer = ChatAnswer if kind is ChatStream else CompletionAnswer
    expected = whole(answer, HELLO, top_logprobs=2)["choices"][0]["logprobs"]
    assert lists == (expected.get("content") or expected["tokens"])


def test_the_tokens_of_a_stop_string_are_never_shown() -> None:
    """B04: neither its text nor its tokens, nor the end marker's."""
    chunks = [
        Chunk(text="ok", tokens=(a_token("ok"), a_token("END"))),
        Chunk(tokens=(a_token("_OF"), a_token("")), finish=STOP),
    ]
    for body in (whole(ChatAnswer, chunks, top_logprobs=0), *streamed(ChatStream, chunks, top_logprobs=0)):
        tokens = [entry["token"] for entry in (body["choices"][0]["logprobs"] or {"content": []})["content"]]
        assert tokens in ([], ["ok"])


def test_the_tokens_of_text_that_was_held_back_come_with_it() -> None:
    """B05: text that only looked like a stop string, and what a cut answer ends in, keep their tokens."""
    chunks = [
        Chunk(text="ok", tokens=(a_token("ok"), a_token("EN"))),
        Chunk(text="ENt", tokens=(a_token("t"), a_token("#"))),
        Chunk(text="#", finish=LENGTH),
    ]
    shown = []
    for event in streamed(ChatStream, chunks, top_logprobs=0):
        logprobs = event["choices"][0]["logprobs"] or {"content": []}
        shown.append([entry["token"] for entry in logprobs["content"]])
    assert shown == [[], ["ok"], ["EN", "t"], ["#"], []]


def test_asked_for_logprobs_are_an_object_even_where_there_is_no_token() -> None:
    """A client that asked may index into it."""
    body = whole(ChatAnswer, [Chunk(finish=STOP)], top_logprobs=0)
    assert body["choices"][0]["logprobs"] == {"content": [], "refusal": None}


# -- events ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a\nb", "a\r\n\r\nb", "\u2028\x85\x0b", "\ud83d", "\U0001f680", ""])
def test_an_event_is_one_line_of_ascii(text: str) -> None:
    """C11: no text can end an event early or crash the encoder."""
    raw = sse({"a": text})
    assert raw.startswith(b"data: ")
    assert raw.endswith(b"\n\n")
    assert raw.isascii()
    assert len(raw.splitlines()) == 2
    assert json.loads(raw[6:]) == {"a": text}


def test_a_comment_is_one_line() -> None:
    """B11: a keep-alive can never be taken for data."""
    assert sse_comment("still\n\ndata: working \xe9") == b": still data: working ?\n\n"
    assert sse_comment("") == b": \n\n"


def test_the_end_and_an_error_are_openais() -> None:
    """B07: an in-band error is an event with the error object, then the end."""
    assert SSE_DONE == b"data: [DONE]\n\n"
    event = json.loads(sse(error_body(WorkerLost("the engine restarted")))[6:])
    assert event["error"]["code"] == "worker_lost"
