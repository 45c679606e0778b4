"""Tools, response formats and function calls as providers speak of them (B13)."""

import itertools
import json

import pytest
from builders import a_request

from edged.core import FinishReason, OutputFormat, OutputKind, Tool, ToolChoice, ToolMode
from edged.errors import Unsupported, UpstreamProtocolError
from edged.upstream.openai import Decoder, encode

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = Tool("get_weather", "Weather", json.dumps(SCHEMA), strict=True)
PLAIN = Tool("now")


def body(**fields):
    return encode(a_request(**fields), "m", pinned=False).body


def test_tools_are_sent_on_as_they_came():
    """What was not said is not sent."""
    sent = body(tools=(WEATHER, PLAIN))
    assert sent["tools"] == [
        {
            "type": "function",
            "function": {"name": "get_weather", "description": "Weather", "parameters": SCHEMA, "strict": True},
        },
        {"type": "function", "function": {"name": "now"}},
    ]
    assert not {"tool_choice", "parallel_tool_calls", "response_format"} & set(sent)


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (ToolChoice(ToolMode.NONE), "none"),
        (ToolChoice(ToolMode.AUTO), "auto"),
        (ToolChoice(ToolMode.REQUIRED), "required"),
        (ToolChoice(ToolMode.NAMED, "now"), {"type": "function", "function": {"name": "now"}}),
    ],
)
def test_the_choice_is_sent_on(choice, sent):
    """All four kinds, with the wish for one call at a time."""
    asked = body(tools=(WEATHER, PLAIN), tool_choice=choice, parallel_tool_calls=False)
    assert asked["tool_choice"] == sent
    assert asked["parallel_tool_calls"] is False


def test_response_formats_are_sent_on():
    """A schema keeps its name and its strictness."""
    assert body(output=OutputFormat(OutputKind.JSON_OBJECT))["response_format"] == {"type": "json_object"}
    output = OutputFormat(OutputKind.JSON_SCHEMA, json.dumps(SCHEMA), "place", strict=True)
    assert body(output=output)["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "place", "strict": True, "schema": SCHEMA},
    }


@pytest.mark.parametrize("kind", [OutputKind.REGEX, OutputKind.GRAMMAR])
def test_forms_no_provider_knows_are_never_dropped(kind):
    """Asked without them it would answer anything."""
    with pytest.raises(Unsupported) as caught:
        body(output=OutputFormat(kind, "a"))
    assert caught.value.param == "response_format"


# -- answers ---------------------------------------------------------------------------------------------------------


def answer(*deltas, finish="tool_calls", message=False, n=1, choice=0):
    """The decoded (calls, finish, text) of a choice of an answer in these deltas."""
    request = a_request(tools=(WEATHER, PLAIN), id="rq", n=n)
    decoder = Decoder(request, upstream="cloud", call=encode(request, "m", pinned=False))
    if message:
        document = {"choices": [{"index": 0, "message": deltas[0], "finish_reason": finish}]}
        chunks = decoder.body(json.dumps(document).encode())
    else:
        events = [{"choices": [{"index": choice, "delta": delta}]} for delta in deltas]
        ends = [{"choices": [{"index": i, "delta": {}, "finish_reason": finish}]} for i in range(n)]
        chunks = [chunk for event in (*events, *ends) for chunk in decoder.event(json.dumps(event))]
        decoder.event("[DONE]")
    chunks += decoder.close()
    calls = {}
    for delta in [d for chunk in chunks if chunk.choice == choice for d in chunk.tool_calls]:
        if delta.index not in calls:
            assert delta.id, "the first delta of a call has an id"
            assert delta.name, "and a name"
            calls[delta.index] = [delta.id, delta.name, delta.arguments]
        else:
            assert (delta.id, delta.name) == (None, None), "id and name come once"
            calls[delta.index][2] += delta.arguments
    assert list(calls) == list(range(len(calls)))
    finishes = [chunk.finish for chunk in chunks if chunk.choice == choice and chunk.finish]
    return [tuple(call) for call in calls.values()], finishes[0], "".join(chunk.text for chunk in chunks)


def tool_calls(*calls):
    return {"tool_calls": list(calls)}


def part(arguments="", *, name=None, **fields):
    function = {} if name is None else {"name": name}
    return {**fields, "function": {**function, "arguments": arguments}}


TWO = [("a", "get_weather", '{"city": "Rome"}'), ("b", "now", "{}")]


@pytest.mark.parametrize(
    "deltas",
    [
        [  # as OpenAI does it
            tool_calls(part(name="get_weather", index=0, id="a", type="function")),
            tool_calls(part('{"city": ', index=0)),
            tool_calls(part('"Rome"}', index=0)),
            tool_calls(part("{}", name="now", index=1, id="b", type="function")),
        ],
        [  # both in one delta
            tool_calls(
                part('{"city": "Rome"}', name="get_weather", index=0, id="a"), part("{}", name="now", index=1, id="b")
            )
        ],
        [  # no index
            tool_calls(part('{"city": ', name="get_weather", id="a")),
            tool_calls(part('"Rome"}')),
            tool_calls(part("{}", name="now", id="b")),
        ],
        [  # one index for all
            tool_calls(part('{"city": "Rome"}', name="get_weather", index=0, id="a")),
            tool_calls(part("{}", name="now", index=0, id="b")),
        ],
        [  # id and name in every delta
            tool_calls(part('{"city": ', name="get_weather", index=0, id="a")),
            tool_calls(part('"Rome"}', name="get_weather", index=0, id="a")),
            tool_calls(part("{", name="now", index=1, id="b")),
            tool_calls(part("}", name="now", index=1, id="b")),
        ],
        [  # indices that begin at 1, interleaved
            tool_calls(part('{"city": ', name="get_weather", index=1, id="a")),
            tool_calls(part("{", name="now", index=2, id="b")),
            tool_calls(part('"Rome"}', index=1)),
            tool_calls(part("}", index=2)),
        ],
        [  # arguments as an object
            tool_calls(part({"city": "Rome"}, name="get_weather", id="a"), part({}, name="now", id="b")),
        ],
        [  # a new id in every delta of one index
            tool_calls(part('{"city": ', name="get_weather", index=0, id="a")),
            tool_calls(part('"Rome"}', index=0, id="other")),
            tool_calls(part("{}", name="now", index=1, id="b")),
        ],
    ],
)
def test_every_way_of_streaming_calls_is_one_thing(deltas):
    """Two parallel calls, stable indices, id and name once, arguments whole (B13)."""
    assert answer(*deltas) == (TWO, FinishReason.TOOL_CALLS, "")


def test_calls_without_ids_get_one():
    """A client has to name the call it answers; no two of a request are the same."""
    calls, _, _ = answer(tool_calls(part("{}", name="now"), part("{}", name="now")))
    ids = [call_id for call_id, _, _ in calls]
    assert ids == ["call_rq_0_0", "call_rq_0_1"]


def test_a_name_repeated_while_arguments_come_is_the_same_call():
    """Without index and id only the arguments tell."""
    deltas = [tool_calls(part(piece, name="get_weather")) for piece in ('{"ci', 'ty": "Rome"', "}")]
    calls, _, _ = answer(*deltas, tool_calls(part('{"city": "Oslo"}', name="get_weather")))
    assert [arguments for _, _, arguments in calls] == ['{"city": "Rome"}', '{"city": "Oslo"}']


def test_a_whole_message_is_read_likewise():
    """From a provider that ignores ``stream``; with text beside the calls."""
    message = {"content": "Looking.", "tool_calls": [part("{}", name="now", id="b", type="function")]}
    assert answer(message, message=True) == ([("b", "now", "{}")], FinishReason.TOOL_CALLS, "Looking.")


def test_the_older_function_call_is_read_likewise():
    """Before there were tools."""
    deltas = [{"function_call": {"name": "now", "arguments": "{"}}, {"function_call": {"arguments": "}"}}]
    calls, finish, _ = answer(*deltas, finish="function_call")
    assert [(name, arguments) for _, name, arguments in calls] == [("now", "{}")]
    assert finish is FinishReason.TOOL_CALLS


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("stop", FinishReason.TOOL_CALLS), ("tool_calls", FinishReason.TOOL_CALLS), ("length", FinishReason.LENGTH)],
)
def test_the_finish_reason_fits_the_answer(reason, finish):
    """Some end a call with "stop"."""
    assert answer(tool_calls(part("{}", name="now", id="b")), finish=reason)[1] is finish


def test_tool_calls_that_never_came_are_a_stop():
    """A client told "tool_calls" would look for them in vain."""
    assert answer({"content": "no"})[1] is FinishReason.STOP


def test_a_character_split_over_two_deltas_is_joined():
    """Half a surrogate pair never reaches the client (C11)."""
    halves = ['{"x": "\\ud83d', '\\ude00"}']
    raw = [tool_calls(part(json.loads(f'"{h}"'.replace('{"x": "', "").replace('"}', "")), index=0)) for h in halves]
    first = tool_calls(part('{"x": "', name="now", index=0, id="b"))
    calls, _, _ = answer(first, *raw, tool_calls(part('"}', index=0)))
    assert calls == [("b", "now", '{"x": "😀"}')]


def test_calls_of_several_choices_stay_apart():
    """Each choice counts its own calls."""
    assert answer(tool_calls(part("{}", name="now", id="b", index=0)), n=2, choice=1)[0] == [("b", "now", "{}")]


@pytest.mark.parametrize(
    "delta", [tool_calls("x"), {"tool_calls": "x"}, tool_calls(part(5, name="now")), tool_calls(part("{}"))]
)
def test_malformed_calls_are_the_providers_fault(delta):
    """Never ours, and never the client's."""
    with pytest.raises(UpstreamProtocolError):
        answer(delta)


def test_calls_nobody_asked_for_are_refused():
    """Without tools there is nobody to run them."""
    request = a_request()
    decoder = Decoder(request, upstream="cloud", call=encode(request, "m", pinned=False))
    event = {"choices": [{"index": 0, "delta": tool_calls(part("{}", name="now", id="b"))}]}
    with pytest.raises(UpstreamProtocolError):
        decoder.event(json.dumps(event))


def test_any_order_of_two_interleaved_calls_gives_the_same():
    """As long as each delta says whose it is."""
    news = {0: ['{"a": ', "1", "}"], 1: ["[", "2", "]"]}
    for order in set(itertools.permutations([0, 0, 0, 1, 1, 1])):
        left = {index: list(pieces) for index, pieces in news.items()}
        heads = [tool_calls(part(name="now", index=index, id=str(index))) for index in (0, 1)]
        calls, _, _ = answer(*heads, *(tool_calls(part(left[i].pop(0), index=i)) for i in order))
        assert [arguments for _, _, arguments in calls] == ['{"a": 1}', "[2]"]
