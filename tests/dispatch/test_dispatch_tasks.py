"""Which task a query is, who serves it, and that a conversation keeps its author unless there is cause."""

from dataclasses import replace

import pytest
from builders import a_request
from dispatch_builders import SURE, UNSURE, WORDS, a_box, run

from edged.core import Chat, Locality, Message, Reason, Role, Target

CLOUD, LOCAL = Target.CLOUD, Target.LOCAL
SUM = "What is 17 * 23?"


def turn(*texts, **fields):
    """A streamed request whose messages alternate between user and assistant."""
    roles = (Role.USER, Role.ASSISTANT)
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(texts))
    return replace(a_request(stream=True, **fields), input=Chat(messages))


@pytest.mark.parametrize(
    ("fields", "task", "source"),
    [
        ({"text": SUM}, "mathematics", "detected"),
        ({"text": "hello"}, "chat", "detected"),
        ({"text": SUM, "limits": {"task": "house"}}, "house", "asked"),
    ],
)
def test_the_record_says_the_task_and_whose_word_it_is(fields, task, source):
    """Asked for, or detected."""

    async def main():
        async with a_box() as box:
            await box.ask(**fields)
            assert (box.record.task, box.record.task_source) == (task, source)

    run(main)


def test_a_task_has_its_own_side_and_thresholds():
    """Mathematics goes to the cloud at once; translation is trusted less; chat is as the route says."""
    tasks = [
        {"name": "mathematics", "local": ""},
        {"name": "translation", "thresholds": {"confidence": 0.995}},
        {"name": "code", "cloud": []},
    ]

    async def main():
        async with a_box(task=tasks) as box:
            box.engine.default = replace(box.engine.default, text=WORDS, logprob=SURE)
            asked = [SUM, "Translate: dog", "hello"]
            found = [(await box.ask(text=text)).head for text in asked]
            assert [(head.served_by, head.reason) for head in found] == [
                (CLOUD, Reason.PINNED_CLOUD),
                (CLOUD, Reason.LOW_CONFIDENCE),
                (LOCAL, Reason.WITHIN_BUDGET),
            ]
            box.engine.script(text=WORDS, logprob=UNSURE)
            assert (await box.ask(text="```\nx\n```")).head.served_by is LOCAL
            await box.at_rest()

    run(main)


def test_a_conversation_the_cloud_was_needed_for_stays_there():
    """The next turn is not tried on the box first; another conversation is."""

    async def main():
        async with a_box(ups=2) as box:
            box.engine.script(text=WORDS, logprob=UNSURE)
            first = await box.ask(turn("why?"))
            assert first.head.reason is Reason.LOW_CONFIDENCE
            prepared = len(box.engine.prepared)
            second = await box.ask(turn("why?", first.text, "and then?"))
            assert (second.head.served_by, second.head.reason) == (CLOUD, Reason.KEPT_AUTHOR)
            third = await box.ask(turn("why?", first.text, "and then?", second.text, "sure?"))
            assert third.head.reason is Reason.KEPT_AUTHOR
            assert len(box.engine.prepared) == prepared
            other = await box.ask(turn("how?", first.text, "and then?"))
            assert other.head.served_by is LOCAL
            stranger = await box.ask(turn("why?", first.text, "and then?", tenant="somebody else"))
            assert stranger.head.served_by is LOCAL

    run(main)


def test_a_conversation_goes_back_to_the_upstream_that_knows_it():
    """The second one answered, so it is asked first: its prompt cache is warm."""

    async def main():
        async with a_box(ups=2) as box:
            box.engine.script(text=WORDS, logprob=UNSURE)
            box.ups[0].reply(status=503)
            first = await box.ask(turn("why?"))
            assert first.head.model == "cloud1/scripted-model"
            second = await box.ask(turn("why?", first.text, "and then?"))
            assert second.head.model == "cloud1/scripted-model"
            assert [len(up.seen) for up in box.ups] == [1, 2]

    run(main)


@pytest.mark.parametrize("cause", ["label", "failure", "moment", "switched off"])
def test_a_conversation_changes_its_author_for_a_cause(cause):
    """A label; an upstream that fails; an author that a busy moment chose; the operator's word."""

    async def main():
        async with a_box(keep_author=cause != "switched off") as box:
            if cause == "moment":
                box.engine.worker = {"prefill_tps": 10.0, "decode_tps": 10.0}
                box.engine.script(prompt_tokens=200)
            else:
                box.engine.script(text=WORDS, logprob=UNSURE)
            first = await box.ask(turn("why?"))
            assert first.head.served_by is CLOUD
            box.engine.worker = {}
            box.engine.script(text=WORDS, logprob=SURE)
            limits = {"locality": Locality.LOCAL_ONLY} if cause == "label" else {}
            if cause == "failure":
                box.up.reply(status=503)
            second = await box.ask(turn("why?", first.text, "and then?", limits=limits))
            assert second.head.served_by is LOCAL
            expected = {"label": Reason.PINNED_LOCAL, "failure": Reason.CLOUD_UNAVAILABLE}
            assert second.head.reason is expected.get(cause, Reason.WITHIN_BUDGET)
            if cause == "failure":  # the box is its author now
                box.engine.script(text=WORDS, logprob=SURE)
                third = await box.ask(turn("why?", first.text, "and then?", second.text, "sure?"))
                assert (third.head.served_by, third.head.reason) == (LOCAL, Reason.WITHIN_BUDGET)
            await box.at_rest()

    run(main)


def test_a_guess_gives_way_to_the_conversations_task_but_a_fact_does_not():
    """A sum in a chat stays with the chat's author; functions and what is asked for do not."""

    async def main():
        async with a_box(task=[{"name": "mathematics", "local": ""}]) as box:
            box.engine.default = replace(box.engine.default, text=WORDS, logprob=SURE)
            first = await box.ask(turn("hello"))
            second = await box.ask(turn("hello", first.text, SUM))
            assert second.head.served_by is LOCAL
            assert box.records[-1].task == "chat"
            asked = await box.ask(turn("hello", first.text, SUM, limits={"task": "mathematics"}))
            assert asked.head.served_by is CLOUD

    run(main)
