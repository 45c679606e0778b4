"""Tools and forms through the dispatcher: judged, escalated, resumed and recorded."""

import json

import pytest
from builders import a_request
from dispatch_builders import STREAMED, SURE, UNSURE, a_box, run

from edged.core import (
    FinishReason,
    OutputFormat,
    OutputKind,
    Reason,
    Status,
    Target,
    Tool,
    ToolChoice,
    ToolMode,
)
from edged.errors import InvalidRequest, Unsupported

WEATHER = Tool("get_weather", None, '{"type": "object"}')
JSON = OutputFormat(OutputKind.JSON_OBJECT)
CALL = ("get_weather", '{"city": "Rome"}')


def calls_of(outcome):
    """(name, arguments) of the first choice's calls."""
    calls = {}
    for delta in [delta for chunk in outcome.chunks for delta in chunk.tool_calls]:
        call = calls.setdefault(delta.index, ["", ""])
        call[0] += delta.name or ""
        call[1] += delta.arguments
    return [tuple(call) for call in calls.values()]


@STREAMED
def test_a_local_call_is_an_answer(stream):
    """No text is not "nothing said" where a function is called; the record keeps what was called."""

    async def main():
        async with a_box(thresholds={"confidence": 0}) as box:
            box.engine.script(text="", calls=[CALL, ("get_weather", "{}")])
            seen = await box.ask(stream=stream, tools=(WEATHER,))
            assert calls_of(seen) == [CALL, ("get_weather", "{}")]
            assert seen.head.served_by is Target.LOCAL
            assert seen.chunks[-1].finish is FinishReason.TOOL_CALLS
            assert box.record.answer_text == 'get_weather({"city": "Rome"})\nget_weather({})'
            assert not box.up.seen
            await box.at_rest()

    run(main)


@STREAMED
def test_a_doubted_call_is_the_clouds(stream):
    """Nothing of the local call reaches the client; the cloud gets tools, choice and form as they came."""

    async def main():
        async with a_box() as box:
            box.engine.script(text='{"city":', logprob=UNSURE, calls=[("get_weather", '{"city": "Oslo"}')])
            box.up.reply(calls=[CALL])
            seen = await box.ask(
                stream=stream, tools=(WEATHER,), tool_choice=ToolChoice(ToolMode.REQUIRED), parallel_tool_calls=False
            )
            assert calls_of(seen) == [CALL]
            assert (seen.head.served_by, seen.head.reason) == (Target.CLOUD, Reason.LOW_CONFIDENCE)
            assert seen.chunks[-1].finish is FinishReason.TOOL_CALLS
            body = box.up.seen[0].body
            assert (body["tool_choice"], body["parallel_tool_calls"]) == ("required", False)
            assert body["tools"][0]["function"]["name"] == "get_weather"
            assert box.record.attempts[-1].cost_uusd > 0
            await box.at_rest()

    run(main)


@STREAMED
@pytest.mark.parametrize("finish", [FinishReason.STOP, FinishReason.LENGTH])
def test_json_that_does_not_parse_is_never_served_while_another_may_answer(stream, finish):
    """The client asked for JSON: half of an object is no answer, however sure the model was (D07)."""

    async def main():
        async with a_box() as box:
            box.engine.script(text='{"a": [1, 2', logprob=SURE, finish=finish)
            box.up.reply(text='{"a":[1,2]}')
            seen = await box.ask(stream=stream, output=JSON, max_tokens=3)
            assert json.loads(seen.text) == {"a": [1, 2]}
            assert seen.head.reason is Reason.INVALID_OUTPUT
            assert box.up.seen[0].body["response_format"] == {"type": "json_object"}
            await box.at_rest()

    run(main)


@STREAMED
def test_sound_json_is_served_whole(stream):
    """Held to its end, whatever hold_tokens says, and then released."""

    async def main():
        async with a_box(hold_tokens=1) as box:
            box.engine.script(text='{"a": [1, 2, 3, 4, 5]}', logprob=SURE)
            seen = await box.ask(stream=stream, output=JSON)
            assert seen.text == '{"a": [1, 2, 3, 4, 5]}'
            assert (seen.head.served_by, seen.head.reason) == (Target.LOCAL, Reason.WITHIN_BUDGET)
            assert seen.head.confidence > 0.9
            await box.at_rest()

    run(main)


@STREAMED
def test_text_of_a_model_that_may_call_is_released_like_any_text(stream):
    """Tools at hand hold back nothing but what may become a call."""

    async def main():
        async with a_box() as box:
            box.engine.script(text="one two three four five six seven", logprob=SURE, hang_after=5)
            if not stream:
                return
            request = a_request(stream=True, tools=(WEATHER,))
            async with box.dispatcher.answer(request) as answer:
                chunks = answer.chunks()
                assert (await anext(chunks)).text == "one"
                await chunks.aclose()
            await box.at_rest()

    run(main)


@STREAMED
def test_a_call_is_finished_locally_where_the_cloud_fails(stream):
    """The deferred call is kept, and served marked as such."""

    async def main():
        async with a_box() as box:
            box.engine.script(text='{"city":', logprob=UNSURE, calls=[CALL])
            box.up.reply(status=500)
            seen = await box.ask(stream=stream, tools=(WEATHER,))
            assert calls_of(seen) == [CALL]
            assert (seen.head.served_by, seen.head.reason) == (Target.LOCAL, Reason.CLOUD_UNAVAILABLE)
            await box.at_rest()

    run(main)


def test_what_the_local_model_cannot_keep_to_is_the_clouds():
    """A schema beyond our grammars leaves for capability, where it may."""

    async def main():
        async with a_box() as box:
            box.engine.script(refusal=Unsupported("no grammar for uniqueItems", param="response_format"))
            box.up.reply(text="[1]")
            seen = await box.ask(output=OutputFormat(OutputKind.JSON_SCHEMA, "{}", "x", strict=True))
            assert seen.text == "[1]"
            assert seen.head.reason is Reason.CAPABILITY
            await box.at_rest()

    run(main)


def test_what_nobody_can_keep_to_is_the_requests_fault():
    """Local only, or a grammar that no provider knows: a 400 that names the field, and no call."""

    async def main():
        async with a_box() as box:
            for output, limits in ((JSON, {"locality": "local_only"}), (OutputFormat(OutputKind.REGEX, "["), {})):
                kind = Unsupported if output is JSON else InvalidRequest
                box.engine.script(refusal=kind("cannot", param="response_format"))
                seen = await box.ask(output=output, limits=limits)
                assert isinstance(seen.error, InvalidRequest)
                assert seen.error.param == "response_format"
            assert {record.status for record in box.records} == {Status.REJECTED}
            assert not box.up.seen
            await box.at_rest()

    run(main)


@STREAMED
def test_a_doubted_regular_expression_stays(stream):
    """No provider can keep to it: the local answer is served, marked with what the cloud could not do."""

    async def main():
        async with a_box() as box:
            box.engine.script(text="yes no yes no yes", logprob=UNSURE)
            seen = await box.ask(stream=stream, output=OutputFormat(OutputKind.REGEX, "(yes|no| )+"))
            assert seen.text == "yes no yes no yes"
            assert (seen.head.served_by, seen.head.reason) == (Target.LOCAL, Reason.CLOUD_UNAVAILABLE)
            assert not box.up.seen
            await box.at_rest()

    run(main)
