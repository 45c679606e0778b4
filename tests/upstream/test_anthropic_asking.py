"""What Anthropic is asked is what the request says, or it is refused before anything is spent."""

import json

import pytest
from upstream_builders import a_request

from edged.config import UpstreamModelConfig
from edged.core import (
    IMAGE_MARK,
    Image,
    Message,
    OutputFormat,
    OutputKind,
    Role,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
)
from edged.errors import Unsupported
from edged.upstream.anthropic_asking import encode

MODEL = UpstreamModelConfig(name="claude", input_usd_per_mtok=3, output_usd_per_mtok=15, max_output_tokens=1000)
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("weather", "the weather of a city", json.dumps(SCHEMA))
ALWAYS = {"model": "claude", "max_tokens": 1000, "stream": True}
USER = {"role": "user", "content": [{"type": "text", "text": "hello"}]}


def asked(request=None, *, pinned=False, **fields):
    return encode(request or a_request(**fields), MODEL, pinned=pinned)


def turns(*messages):
    return asked(messages=list(messages)).body["messages"]


# -- the conversation ------------------------------------------------------------------------------------------------


def test_a_bare_request_carries_the_model_a_limit_and_the_turns():
    """The limit is required: the client's own, else the model's max_output_tokens."""
    call = asked()
    assert call.path == "/messages"
    assert call.body == {**ALWAYS, "messages": [USER]}
    assert call.dropped == ()
    assert asked(max_tokens=7).body["max_tokens"] == 7


def test_system_messages_are_joined_and_go_first():
    """Anthropic has no system turn: its own layer for OpenAI clients hoists them, and so do we."""
    body = asked(
        messages=[
            Message(Role.SYSTEM, "be brief"),
            Message(Role.USER, "hi"),
            Message(Role.ASSISTANT, "hello"),
            Message(Role.SYSTEM, "be kind"),
            Message(Role.USER, "bye"),
        ]
    ).body
    assert body["system"] == "be brief\n\nbe kind"
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]


def test_a_tool_conversation_keeps_its_calls_and_their_results():
    """Calls become tool_use, all results of a round share the user turn that follows, text after them."""
    calls = (ToolCall("c1", "weather", '{"city":"Oslo"}'), ToolCall("c 2", "weather", ""))
    assert turns(
        Message(Role.USER, "weather?"),
        Message(Role.ASSISTANT, "let me see", tool_calls=calls),
        Message(Role.TOOL, "rain", tool_call_id="c1"),
        Message(Role.TOOL, "sun", tool_call_id="c 2"),
        Message(Role.USER, "so?"),
    ) == [
        {"role": "user", "content": [{"type": "text", "text": "weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "let me see"},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
                {"type": "tool_use", "id": "edged_call_1", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "rain"},
                {"type": "tool_result", "tool_use_id": "edged_call_1", "content": "sun"},
                {"type": "text", "text": "so?"},
            ],
        },
    ]


def test_images_stand_where_the_client_put_them():
    """Data and URL sources, between the texts they came between; the wish for detail is reported as left out."""
    images = (Image(mime="image/png", data="aGk=", detail="high"), Image(url="https://x.example/a.jpg"))
    text = f"first\n{IMAGE_MARK}\nsecond\n{IMAGE_MARK}"
    call = asked(messages=[Message(Role.USER, text, images=images)])
    assert call.body["messages"][0]["content"] == [
        {"type": "text", "text": "first"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aGk="}},
        {"type": "text", "text": "second"},
        {"type": "image", "source": {"type": "url", "url": "https://x.example/a.jpg"}},
    ]
    assert call.dropped == ("image_url.detail",)


def test_images_whose_marks_were_lost_follow_the_text():
    """Something between the client and here rewrote the text: no image is lost, none is invented."""
    image = Image(url="https://x.example/a.jpg")
    content = turns(Message(Role.USER, "no mark", images=(image,)))[0]["content"]
    assert [block["type"] for block in content] == ["text", "image"]


def test_names_of_speakers_are_left_out_and_said_so():
    """Anthropic's messages have no name."""
    assert asked(messages=[Message(Role.USER, "hi", name="ann")]).dropped == ("messages.name",)


# -- form ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "parallel", "expected"),
    [
        (None, None, None),
        (None, True, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        (ToolMode.AUTO, None, {"type": "auto"}),
        (ToolMode.NONE, None, {"type": "none"}),
        (ToolMode.NONE, False, {"type": "none"}),
        (ToolMode.REQUIRED, None, {"type": "any"}),
        (ToolMode.REQUIRED, False, {"type": "any", "disable_parallel_tool_use": True}),
        (ToolMode.NAMED, False, {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}),
    ],
)
def test_every_tool_choice_has_its_form(mode, parallel, expected):
    """none, auto, required and a named function, with and without parallel calls."""
    choice = None if mode is None else ToolChoice(mode, "weather" if mode is ToolMode.NAMED else None)
    body = asked(tools=(WEATHER,), tool_choice=choice, parallel_tool_calls=parallel).body
    assert body.get("tool_choice") == expected
    assert body["tools"] == [{"name": "weather", "description": "the weather of a city", "input_schema": SCHEMA}]


def test_a_tool_without_parameters_takes_an_empty_object():
    """input_schema is required and of the type object."""
    assert asked(tools=(Tool("now"),)).body["tools"] == [{"name": "now", "input_schema": {"type": "object"}}]


def test_a_strict_tool_is_strict_with_closed_objects():
    """strict is Anthropic's own word for the same promise."""
    (tool,) = asked(tools=(Tool("weather", None, json.dumps(SCHEMA), strict=True),)).body["tools"]
    assert tool["strict"] is True
    assert tool["input_schema"] == {**SCHEMA, "additionalProperties": False}


def test_a_json_schema_becomes_an_output_format_with_closed_objects():
    """An object that says nothing of further members is closed: whoever keeps to that keeps to the schema."""
    schema = {**SCHEMA, "properties": {"at": {"anyOf": [SCHEMA, {"type": "null"}]}}, "$defs": {"x": SCHEMA}}
    output = OutputFormat(OutputKind.JSON_SCHEMA, json.dumps(schema), "answer", strict=True)
    closed = {**SCHEMA, "additionalProperties": False}
    assert asked(output=output).body["output_config"] == {
        "format": {
            "type": "json_schema",
            "schema": {
                **closed,
                "properties": {"at": {"anyOf": [closed, {"type": "null"}]}},
                "$defs": {"x": closed},
            },
        }
    }


def test_a_property_may_have_the_name_of_a_keyword():
    """Only keywords are refused, not what a client calls its fields."""
    schema = {"type": "object", "properties": {"minimum": {"type": "number"}, "not": {"type": "string"}}}
    output = OutputFormat(OutputKind.JSON_SCHEMA, json.dumps(schema), "answer")
    assert asked(output=output).body["output_config"]["format"]["schema"]["properties"] == schema["properties"]


# -- what it lacks ---------------------------------------------------------------------------------------------------


def with_schema(**keywords):
    return {"output": OutputFormat(OutputKind.JSON_SCHEMA, json.dumps({"type": "object", **keywords}), "answer")}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"top_logprobs": 0}, "logprobs"),
        ({"prompt": "once"}, "prompt"),
        ({"sampling": Sampling(logit_bias=((5, 1.0),))}, "logit_bias"),
        ({"stop": ("a", "\n\n")}, "stop"),
        ({"output": OutputFormat(OutputKind.JSON_OBJECT)}, "response_format"),
        ({"output": OutputFormat(OutputKind.REGEX, "a+")}, "response_format"),
        ({"output": OutputFormat(OutputKind.GRAMMAR, 'root ::= "a"')}, "response_format"),
        (with_schema(additionalProperties=True), "response_format"),
        (with_schema(properties={"a": {"type": "number", "minimum": 0}}), "response_format"),
        (
            with_schema(properties={"a": {"type": "array", "items": {"type": "string", "maxLength": 3}}}),
            "response_format",
        ),
        (with_schema(properties={"a": {"type": "array", "minItems": 2}}), "response_format"),
        ({"messages": [Message(Role.USER, "hi"), Message(Role.ASSISTANT, "he")]}, "messages[1]"),
        ({"messages": [Message(Role.SYSTEM, "hi")]}, "messages"),
        ({"messages": [Message(Role.USER, "")]}, "messages[0]"),
        (
            {
                "messages": [
                    Message(Role.USER, "hi"),
                    Message(Role.ASSISTANT, None, tool_calls=(ToolCall("c", "f", "[1]"),)),
                    Message(Role.TOOL, "x", tool_call_id="c"),
                ]
            },
            "messages[1]",
        ),
    ],
)
@pytest.mark.parametrize("pinned", [True, False])
def test_what_would_not_survive_is_refused_before_anything_is_spent(fields, param, pinned):
    """The error names the field; the next upstream of the route is asked."""
    with pytest.raises(Unsupported) as caught:
        asked(pinned=pinned, **fields)
    assert caught.value.param == param
    assert param.partition("[")[0] in caught.value.message


@pytest.mark.parametrize(
    ("sampling", "sent", "dropped"),
    [
        (Sampling(temperature=0.0, top_p=0.5), {"temperature": 0.0, "top_p": 0.5}, ()),
        (Sampling(temperature=1.5), {"temperature": 1.0}, ("temperature",)),
        (Sampling(seed=7), {}, ("seed",)),
        (Sampling(presence_penalty=1.0, frequency_penalty=1.0), {}, ("presence_penalty", "frequency_penalty")),
        (Sampling(presence_penalty=0.0), {}, ()),
        (Sampling(top_k=5, min_p=0.1, repeat_penalty=1.1), {}, ()),
    ],
)
def test_how_tokens_are_chosen_is_a_wish_on_an_escalation(sampling, sent, dropped):
    """It was said of the local model: what Anthropic lacks is left out and reported."""
    call = asked(sampling=sampling)
    assert call.body == {**ALWAYS, "messages": [USER], **sent}
    assert call.dropped == dropped


@pytest.mark.parametrize(
    "sampling",
    [Sampling(temperature=1.5), Sampling(seed=7), Sampling(presence_penalty=1.0), Sampling(min_p=0.1),
     Sampling(repeat_penalty=1.1)],
)  # fmt: skip
def test_how_tokens_are_chosen_is_an_order_on_a_pin(sampling):
    """The client named this very model: what it lacks is refused."""
    with pytest.raises(Unsupported):
        asked(sampling=sampling, pinned=True)


def test_top_k_follows_a_pin():
    """Anthropic has it; on an escalation it was meant for the local sampler."""
    assert asked(sampling=Sampling(top_k=5, repeat_penalty=1.0), pinned=True).body["top_k"] == 5
