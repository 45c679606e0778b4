"""Tools and response formats at the door, and calls in the bodies that go out."""

import json
from typing import Any

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from edged.core import (
    Chunk,
    FinishReason,
    OutputFormat,
    OutputKind,
    Request,
    Token,
    Tool,
    ToolCallDelta,
    ToolChoice,
    ToolMode,
    Usage,
)
from edged.errors import InvalidRequest, Unsupported
from edged.server.openai_answers import ChatAnswer, ChatStream
from edged.server.openai_requests import chat_request

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "Weather", "parameters": SCHEMA, "strict": True}
TOOL = {"type": "function", "function": FUNCTION}
PLAIN = {"type": "function", "function": {"name": "now"}}


def chat(**fields: Any) -> Request:
    document = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], **fields}
    return chat_request(document, id="r1", received_s=0.0).request


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    return caught.value


# -- in --------------------------------------------------------------------------------------------------------------


def test_tools_arrive_as_they_were_declared() -> None:
    """Name, description, schema, strictness; what was not said stays unsaid."""
    weather, now = chat(tools=[TOOL, PLAIN]).tools
    assert (weather.name, weather.description, weather.strict) == ("get_weather", "Weather", True)
    assert json.loads(weather.parameters_json or "") == SCHEMA
    assert now == Tool("now")


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (None, None),
        ("none", ToolChoice(ToolMode.NONE)),
        ("auto", ToolChoice(ToolMode.AUTO)),
        ("required", ToolChoice(ToolMode.REQUIRED)),
        ({"type": "function", "function": {"name": "now"}}, ToolChoice(ToolMode.NAMED, "now")),
    ],
)
def test_every_choice_is_understood(choice: Any, wanted: ToolChoice | None) -> None:
    """None given leaves it to the model."""
    request = chat(tools=[TOOL, PLAIN], tool_choice=choice)
    assert request.tool_choice == wanted
    assert request.tool_mode is (wanted.mode if wanted else ToolMode.AUTO)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (None, OutputFormat()),
        ({"type": "text"}, OutputFormat()),
        ({"type": "json_object"}, OutputFormat(OutputKind.JSON_OBJECT)),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {}, "strict": True}},
            OutputFormat(OutputKind.JSON_SCHEMA, "{}", "a", strict=True),
        ),
        ({"type": "regex", "regex": "a+"}, OutputFormat(OutputKind.REGEX, "a+")),
        ({"type": "grammar", "grammar": 'root ::= "a"'}, OutputFormat(OutputKind.GRAMMAR, 'root ::= "a"')),
    ],
)
def test_every_response_format_is_understood(body: Any, wanted: OutputFormat) -> None:
    """OpenAI's three and our two."""
    assert chat(response_format=body).output == wanted


def test_nothing_asked_is_nothing_asked() -> None:
    """Clients spell out defaults."""
    assert chat(tools=None, tool_choice=None, response_format=None, parallel_tool_calls=None) == chat()
    assert chat(tools=[]).tool_mode is chat(tool_choice="auto").tool_mode is ToolMode.NONE


SCHEMA_FORMAT = "response_format.json_schema"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": 0}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "more": 1}}]}, "tools[0].function.more"),
        ({"tools": [PLAIN, PLAIN]}, "tools[1].function.name"),
        ({"tools": [PLAIN] * 129}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools[0].function.parameters.type",
        ),
        (
            {"tools": [PLAIN, {"type": "function", "function": {"name": "f", "parameters": {"enum": []}}}]},
            "tools[1].function.parameters.enum",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [PLAIN], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [PLAIN], "tool_choice": 5}, "tool_choice"),
        ({"tools": [PLAIN], "tool_choice": {"type": "function"}}, "tool_choice.function"),
        (
            {"tools": [PLAIN], "tool_choice": {"type": "function", "function": {"name": "f"}}},
            "tool_choice.function.name",
        ),
        ({"tools": [PLAIN], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "text", "more": 1}}, "response_format.more"),
        ({"response_format": {"type": "json_schema"}}, SCHEMA_FORMAT),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, f"{SCHEMA_FORMAT}.name"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, f"{SCHEMA_FORMAT}.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}}},
            f"{SCHEMA_FORMAT}.schema",
        ),
        ({"response_format": {"type": "regex"}}, "response_format.regex"),
        ({"response_format": {"type": "regex", "regex": ""}}, "response_format.regex"),
        ({"response_format": {"type": "regex", "regex": "a" * 32_769}}, "response_format.regex"),
        ({"response_format": {"type": "grammar", "regex": "a"}}, "response_format.regex"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": {"name": "f"}}, "function_call"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    """The field, in OpenAI's notation (D05): an unknown type is never taken for free text."""
    error = refused(**fields)
    assert (error.status, error.param) == (400, param)
    assert error.message


def test_older_spellings_are_told_the_newer_one() -> None:
    """``functions`` became ``tools``, ``function_call`` became ``tool_choice``."""
    for fields, remedy in (
        ({"functions": [{"name": "f"}]}, "tools"),
        ({"function_call": {"name": "f"}}, "tool_choice"),
    ):
        error = refused(**fields)
        assert isinstance(error, Unsupported)
        assert remedy in error.message


# -- out -------------------------------------------------------------------------------------------------------------

CALLS = [
    {"id": "c0", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}},
    {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}},
]
CHUNKS = [
    Chunk(tokens=(Token(b"<tool_call>", -0.1),)),
    Chunk(tokens=(Token(b'{"', -0.1),), tool_calls=(ToolCallDelta(0, "c0", "get_weather"),)),
    Chunk(tool_calls=(ToolCallDelta(0, arguments='{"city": '),)),
    Chunk(tool_calls=(ToolCallDelta(0, arguments='"Rome"}'), ToolCallDelta(1, "c1", "now", "{"))),
    Chunk(tool_calls=(ToolCallDelta(1, arguments="}"),), finish=FinishReason.TOOL_CALLS, usage=Usage()),
]


def whole(chunks: list[Chunk], **fields: Any) -> dict[str, Any]:
    answer = ChatAnswer(chat(**fields), model="m", created=1)
    for chunk in chunks:
        answer.feed(chunk)
    return answer.body()


def streamed(chunks: list[Chunk], **fields: Any) -> list[dict[str, Any]]:
    stream = ChatStream(chat(**fields), model="m", created=1)
    events = [event for chunk in chunks for event in stream.feed(chunk)]
    return [*events, *stream.end()]


def test_a_whole_answer_holds_the_calls_and_no_content() -> None:
    """``content`` is null where there is none, and the official client takes it for what it is."""
    body = whole(CHUNKS)
    choice = body["choices"][0]
    assert choice["message"]["tool_calls"] == CALLS
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    ChatCompletion.model_validate(body, strict=False)


def test_text_beside_calls_is_kept() -> None:
    """Some models say what they are about to do."""
    message = whole([Chunk(text="Looking."), *CHUNKS])["choices"][0]["message"]
    assert (message["content"], len(message["tool_calls"])) == ("Looking.", 2)


def test_streamed_calls_are_what_the_official_client_expects() -> None:
    """Its own accumulator gives the same calls; id, type and name come once, each call under its index (B13)."""
    events = streamed(CHUNKS)
    state = ChatCompletionStreamState()
    for event in events:
        state.handle_chunk(ChatCompletionChunk.model_validate(event))
    choice = state.get_final_completion().choices[0]
    dumped = [call.model_dump(include={"id", "type", "function"}) for call in choice.message.tool_calls or []]
    assert [{**c, "function": {k: c["function"][k] for k in ("name", "arguments")}} for c in dumped] == CALLS
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    deltas = [d for event in events for c in event["choices"] for d in c["delta"].get("tool_calls", ())]
    assert [(d["index"], d["id"]) for d in deltas if "id" in d] == [(0, "c0"), (1, "c1")]
    assert all(("type" in d) == ("id" in d) == ("name" in d["function"]) for d in deltas)


def test_each_choice_counts_its_own_calls() -> None:
    """Index 0 of the second choice is another call."""
    second = [Chunk(choice=1, tool_calls=(ToolCallDelta(0, "x", "now", "{}"),), finish=FinishReason.TOOL_CALLS)]
    choices = whole([*CHUNKS, *second], n=2)["choices"]
    assert [len(choice["message"]["tool_calls"]) for choice in choices] == [2, 1]


def test_tokens_of_calls_are_no_content() -> None:
    """``logprobs.content`` speaks of the content alone."""
    said = Chunk(text="Hm", tokens=(Token(b"Hm", -0.5),))
    choice = whole([said, *CHUNKS], logprobs=True)["choices"][0]
    assert [entry["token"] for entry in choice["logprobs"]["content"]] == ["Hm"]
