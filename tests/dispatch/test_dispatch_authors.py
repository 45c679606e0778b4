"""Who answers: a scripted engine, real scripted upstreams, and the one record that says why."""

import asyncio
import time

import pytest
from builders import a_request
from dispatch_builders import STREAMED, SURE, UNSURE, WORDS, a_box, run

from edged.core import FinishReason, Outcome, Reason, Release, Status, Target
from edged.errors import (
    ModelNotFound,
)
from edged.testing.local import ScriptedEngine

LOCAL, CLOUD, NONE = Target.LOCAL, Target.CLOUD, Target.NONE


@STREAMED
def test_a_trusted_answer_is_served_locally(stream):
    """Kept: the whole local text, one attempt, no call."""

    async def main():
        async with a_box() as box:
            seen = await box.ask(stream=stream)
            assert seen.text == "a quiet local answer"
            assert (seen.head.served_by, seen.head.reason) == (LOCAL, Reason.WITHIN_BUDGET)
            assert seen.head.confidence > 0.9
            assert box.record.status is Status.OK
            assert [a.outcome for a in box.record.attempts] == [Outcome.SERVED]
            assert box.record.answer_text == seen.text
            assert not box.up.seen
            await box.at_rest()

    run(main)


@STREAMED
def test_a_doubted_answer_is_the_clouds(stream):
    """Low confidence: local is discarded, the cloud is asked with the original prompt, every token of both counted."""

    async def main():
        async with a_box() as box:
            box.engine.script(text=WORDS, logprob=UNSURE)
            box.up.reply(text="the cloud knows better")
            seen = await box.ask(stream=stream, text="why?")
            assert seen.text == "the cloud knows better"
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.LOW_CONFIDENCE)
            assert seen.head.model == "cloud/scripted-model"
            assert seen.head.confidence < 0.5
            local, cloud = box.record.attempts
            assert (local.outcome, local.usage.completion_tokens, local.cost_uusd) == (Outcome.DISCARDED, 1, 0)
            assert (cloud.outcome, cloud.usage.completion_tokens) == (Outcome.SERVED, 4)
            assert cloud.cost_uusd > 0
            assert box.up.seen[0].body["messages"] == [{"role": "user", "content": "why?"}]
            assert box.record.confidence == local.confidence == seen.head.confidence
            await box.at_rest()

    run(main)


def test_min_confidence_of_one_always_asks_the_cloud():
    """No uncalibrated score reaches it."""

    async def main():
        async with a_box() as box:
            box.engine.script(logprob=0.0)
            seen = await box.ask(limits={"min_confidence": 1.0})
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.LOW_CONFIDENCE)

    run(main)


# -- how much is held ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hold", [1, 3, 5])
def test_guarded_holds_exactly_hold_tokens(hold):
    """The verdict falls with token number hold_tokens: not one more is computed for a deferred answer."""

    async def main():
        async with a_box(hold_tokens=hold) as box:
            box.engine.script(text=WORDS, logprob=[*[SURE] * (hold - 1), -30.0])
            await box.ask()
            assert len(box.engine.steps) == hold

    run(main)


@pytest.mark.parametrize("hold", [1, 3, 5])
def test_a_kept_stream_begins_when_hold_tokens_are_there(hold):
    """What was held is sent at once, the rest as it comes."""

    async def main():
        async with a_box(hold_tokens=hold) as box:
            box.engine.script(text=WORDS, logprob=SURE)
            async with box.dispatcher.answer(a_request(stream=True)) as answer:
                assert len(box.engine.steps) == hold
                chunks = answer.chunks()
                for place in range(8):
                    await anext(chunks)
                    assert len(box.engine.steps) == max(hold, place + 1)
                await chunks.aclose()

    run(main)


def test_doubt_after_the_hold_changes_no_author():
    """Guarded judges the first tokens only."""

    async def main():
        async with a_box() as box:
            box.engine.script(text=WORDS, logprob=[SURE, SURE, SURE, SURE, UNSURE])
            seen = await box.ask()
            assert (seen.head.served_by, seen.text) == (LOCAL, WORDS)

    run(main)


def test_strict_judges_the_whole_answer():
    """The same answer, judged to its end, is the cloud's."""

    async def main():
        async with a_box(release="strict") as box:
            box.engine.script(text=WORDS, logprob=[SURE, SURE, SURE, SURE, UNSURE])
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.LOW_CONFIDENCE)
            assert len(box.engine.steps) == 8

    run(main)


def test_eager_never_holds():
    """The first token commits, whatever it is worth; the score is in the record all the same."""

    async def main():
        async with a_box(release="eager") as box:
            box.engine.script(text=WORDS, logprob=UNSURE)
            async with box.dispatcher.answer(a_request(stream=True)) as answer:
                assert len(box.engine.steps) == 1
                assert answer.head.confidence is None
                text = "".join([chunk.text async for chunk in answer.chunks()])
            assert text == WORDS
            assert box.record.reason is Reason.WITHIN_BUDGET
            assert box.record.confidence < 0.5

    run(main)


# -- too slow --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", list(Release))
@pytest.mark.parametrize("where", ["prepare_delay_s", "first_token_delay_s"])
def test_a_first_token_that_does_not_come_is_not_waited_for(release, where):
    """Silence is evidence: tokenizing and prefill alike are given ttft_s and no more."""

    async def main():
        async with a_box(release=release.value, thresholds={"ttft_s": 0.05}) as box:
            box.engine.script(**{where: 60.0})
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.TTFT_EXCEEDED)
            assert box.record.decisions[-1].threshold == 0.05
            assert 0.05 <= box.record.ttft_s < 20
            await box.at_rest()

    run(main)


def test_a_stall_between_tokens_ends_the_probation():
    """The gap is measured from the last token."""

    async def main():
        async with a_box(thresholds={"itl_s": 0.05}) as box:
            box.engine.script(hang_after=2)
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.ITL_EXCEEDED)
            assert box.record.attempts[0].usage.completion_tokens == 2
            await box.at_rest()

    run(main)


@pytest.mark.parametrize("release", ["guarded", "eager"])
def test_a_busy_loop_is_not_taken_for_a_silent_engine(release):
    """A token that came in time counts, even if the daemon was too busy to read it then."""

    async def main():
        async with a_box(release=release, thresholds={"itl_s": 0.5, "ttft_s": 0.5}) as box:
            box.engine.script(text=WORDS, token_delay_s=0.02)
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, time.sleep, 0.7)
            seen = await box.ask()
            assert (seen.head.served_by, seen.text) == (LOCAL, WORDS)

    run(main)


def test_a_wait_that_is_foreseen_is_not_waited():
    """The prediction at admission is in the record, and no token was computed."""

    async def main():
        async with a_box() as box:
            box.engine.worker = {"prefill_tps": 10.0, "decode_tps": 10.0, "queued_prompt_tokens": 42}
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.TTFT_PREDICTED)
            assert 5.0 <= box.record.predicted_ttft_s < 15
            assert not box.engine.steps
            await box.at_rest()

    run(main)


def test_the_prediction_is_recorded_for_an_answer_that_stays():
    """So that its error can be measured."""

    async def main():
        async with a_box() as box:
            box.engine.worker = {"prefill_tps": 100.0, "decode_tps": 10.0}
            await box.ask()
            assert 0.08 <= box.record.predicted_ttft_s < 2
            assert box.record.ttft_s is not None

    run(main)


def test_time_counts_from_receipt():
    """What was spent before the dispatcher saw the request is part of the first token's delay."""

    async def main():
        async with a_box() as box:
            now = asyncio.get_running_loop().time()
            await box.ask(a_request(stream=True, received_s=now - 1.0))
            assert 1.0 <= box.record.ttft_s < 10
            assert box.record.attempts[0].ttft_s < box.record.ttft_s - 1.0
            assert box.record.attempts[0].started_s >= 1.0

    run(main)


# -- what the answer is ----------------------------------------------------------------------------------------------


def test_an_answer_without_a_word_is_the_clouds():
    """Finished without text."""

    async def main():
        async with a_box() as box:
            box.engine.script(text="")
            assert (await box.ask()).head.reason is Reason.INVALID_OUTPUT

    run(main)


def test_an_answer_cut_short_of_what_was_asked_is_the_clouds():
    """Ended for length before the length asked for; the length itself is no cut."""

    async def main():
        async with a_box(release="strict") as box:
            box.engine.script(text=WORDS, finish=FinishReason.LENGTH)
            assert (await box.ask()).head.reason is Reason.TRUNCATED
            box.engine.script(text=WORDS)
            assert (await box.ask(max_tokens=3)).head.served_by is LOCAL

    run(main)


# -- pins and labels -------------------------------------------------------------------------------------------------


def test_a_label_keeps_an_answer_that_would_have_left_and_says_so():
    """local_only: served, marked private, no call."""

    async def main():
        async with a_box() as box:
            box.engine.script(text=WORDS, logprob=UNSURE)
            seen = await box.ask(limits={"locality": "local_only"})
            assert (seen.text, seen.head.reason) == (WORDS, Reason.PINNED_LOCAL)
            assert box.record.reason is Reason.PRIVATE
            assert box.record.confidence < 0.5
            assert not box.up.seen

    run(main)


def test_an_unstreamed_answer_says_private_in_its_head():
    """Read to its end before it is committed, it can be judged before its headers are sent."""

    async def main():
        async with a_box() as box:
            box.engine.script(text=WORDS, logprob=UNSURE)
            seen = await box.ask(stream=False, limits={"locality": "local_only"})
            assert (seen.head.reason, seen.head.confidence < 0.5) == (Reason.PRIVATE, True)

    run(main)


@pytest.mark.parametrize(
    ("model", "by", "reason"),
    [("small", LOCAL, Reason.PINNED_LOCAL), ("cloud/scripted-model", CLOUD, Reason.PINNED_CLOUD)],
)
def test_a_models_own_name_pins_the_request(model, by, reason):
    """No other side is tried, however unsure the answer."""

    async def main():
        async with a_box() as box:
            box.engine.default = ScriptedEngine().default
            box.engine.script(logprob=UNSURE)
            seen = await box.ask(model=model)
            assert (seen.head.served_by, box.record.reason) == (by, reason)
            assert len(box.record.attempts) == 1

    run(main)


def test_an_unknown_model_is_rejected_and_recorded():
    """A 404 with a record: no route, nobody tried."""

    async def main():
        async with a_box() as box:
            seen = await box.ask(model="nothing")
            assert isinstance(seen.error, ModelNotFound)
            record = box.record
            assert (record.status, record.served_by, record.reason) == (Status.REJECTED, NONE, Reason.NO_ROUTE)
            assert (record.error, record.route, record.attempts) == ("model_not_found", None, ())

    run(main)
