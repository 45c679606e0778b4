"""Chats whose format leaves a few answers to choose from."""

import json
from dataclasses import replace

import pytest
from builders import a_request
from decision_builders import DOUBT, UNSURE, Strict
from dispatch_builders import a_box, run

from edged.core import (
    Chat,
    Message,
    OutputFormat,
    OutputKind,
    Reason,
    Role,
    Target,
)
from edged.core.questions import Question, QuestionKind
from edged.testing import Reply

INTENT = {
    "type": "object",
    "properties": {"intent": {"type": "string", "enum": ["play", "stop"]}},
    "required": ["intent"],
    "additionalProperties": False,
}


def a_chat(schema=None, **fields):
    output = OutputFormat(OutputKind.JSON_SCHEMA, json.dumps(INTENT if schema is None else schema), "x", strict=True)
    return a_request(text="some jazz please", output=output, **fields)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_chat_with_a_closed_set_of_answers_is_scored(stream):
    """The likeliest option is the whole answer, its probability the confidence; nothing is generated."""

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            box.engine.script(odds=[(-6.0, -0.01)])
            seen = await box.ask(a_chat(stream=stream))
            await box.at_rest()
            return seen, box.record

    seen, record = run(main)
    assert json.loads(seen.text) == {"intent": "stop"}
    assert seen.chunks[-1].finish == "stop"
    assert seen.chunks[-1].usage.completion_tokens == 1
    assert (seen.head.served_by, seen.head.reason) == (Target.LOCAL, Reason.WITHIN_BUDGET)
    assert seen.head.confidence == record.confidence > 0.99
    assert (record.task, record.task_source) == ("labels", "detected")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_doubtful_choice_escalates_as_any_answer(stream):
    """With the request as it came; where the cloud fails, the choice stands."""

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            box.engine.default = replace(box.engine.default, odds=[UNSURE[:2]])
            box.up.reply(text='{"intent": "stop"}')
            left = await box.ask(a_chat(stream=stream))
            box.up.default = Reply(status=500)
            stayed = await box.ask(a_chat(stream=stream))
            await box.at_rest()
            return left, stayed, box.up.seen[0].body

    left, stayed, body = run(main)
    assert (left.head.served_by, left.head.reason, json.loads(left.text)) == (
        Target.CLOUD,
        Reason.LOW_CONFIDENCE,
        {"intent": "stop"},
    )
    assert body["messages"] == [{"role": "user", "content": "some jazz please"}]
    assert (stayed.head.reason, json.loads(stayed.text)) == (Reason.CLOUD_UNAVAILABLE, {"intent": "play"})


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"top_logprobs": 0},
        {"stop": ("x",)},
        {"max_tokens": 5},
        {"schema": {"type": "string", "enum": ["only"]}},
        {"schema": {**INTENT, "properties": {**INTENT["properties"], "more": {"type": "string"}}}},
    ],
)
def test_what_needs_one_token_after_the_other_is_generated(fields):
    """Several choices, log-probabilities, stop strings, a length that an answer may not fit, another schema."""

    async def main():
        async with a_box(cloud=[]) as box:
            box.engine.script(text='{"intent": "play"}')
            seen = await box.ask(a_chat(**fields))
            return [token for chunk in seen.chunks for token in chunk.tokens]

    assert run(main)


def test_a_chat_of_a_task_is_put_as_the_task_says():
    """One user's message is the state of the task's own question; its options are the schema's, in any order."""
    prompts = []

    class Known(Strict):
        def question_of(self, request):
            return Question(name="t", kind=QuestionKind.CHOICE, options=("stop", "play"), instructions="Which?")

    async def main():
        async with a_box(cloud=[]) as box:
            judges = box.dispatcher._judges = Known()
            score = box.engine.score

            async def watched(request, items, **fields):
                prompts.extend(items)
                return await score(request, items, **fields)

            box.engine.score = watched
            seen = await box.ask(a_chat())
            two = a_request(output=a_chat().output)
            two = replace(
                two, input=Chat((*two.input.messages, Message(Role.ASSISTANT, "hm"), Message(Role.USER, "again")))
            )
            await box.ask(two)
            return seen, judges.seen

    seen, noted = run(main)
    assert json.loads(seen.text) == {"intent": "stop"}
    assert prompts[0].options == (" stop", " play")
    assert "some jazz please\n\nQuestion: Which?" in prompts[0].prompt
    assert isinstance(prompts[1].prompt, Chat)
    assert prompts[1].options == ("play", "stop")
    assert [one.choice for one in noted] == [0, 0]


def test_what_the_cloud_says_of_a_chat_is_its_label():
    """Escalated, the option is known by its JSON; what is none of them labels nothing."""

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            judges = box.dispatcher._judges = Strict()
            box.engine.default = replace(box.engine.default, odds=[UNSURE[:2]])
            box.up.reply(text='{"intent":"stop"}')
            await box.ask(a_chat())
            box.up.reply(text="pardon?")
            await box.ask(a_chat())
            return judges.seen

    assert [(one.label, one.served_by) for one in run(main)] == [(1, Target.CLOUD), (None, Target.CLOUD)]
