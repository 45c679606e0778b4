"""Who answers: a scripted engine, real scripted upstreams, and the one record that says why."""

import asyncio
import time

import pytest
from builders import a_request
from dispatch_builders import SURE, UNSURE, a_box, run

from edged.core import EngineState, FinishReason, Outcome, Reason, Release, Status, Target
from edged.errors import (
    BudgetExhausted,
    Busy,
    ContextOverflow,
    EngineError,
    ModelNotFound,
    NotReady,
    TemplateRejected,
    UpstreamError,
    WorkerLost,
)
from edged.testing.local import ScriptedEngine

LOCAL, CLOUD, NONE = Target.LOCAL, Target.CLOUD, Target.NONE
WORDS = "one two three four five six seven eight"
STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


def steps_of(box):
    """(choice, place) of every token the engine computed."""
    return [(step.choice, step.index) for step in box.engine.steps]


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
            assert (local.outcome, local.usage.completion_tokens, local.cost_uusd) == (Outcome.DISCARDED, 4, 0)
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
            box.engine.script(text=WORDS, logprob=[UNSURE])
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
            assert 0.05 <= box.record.ttft_s < 2
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
        async with a_box(release=release, thresholds={"itl_s": 0.1, "ttft_s": 0.1}) as box:
            box.engine.script(text=WORDS, token_delay_s=0.02)
            loop = asyncio.get_running_loop()
            loop.call_later(0.01, time.sleep, 0.3)
            seen = await box.ask()
            assert (seen.head.served_by, seen.text) == (LOCAL, WORDS)

    run(main)


def test_a_wait_that_is_foreseen_is_not_waited():
    """The prediction at admission is in the record, and no token was computed."""

    async def main():
        async with a_box() as box:
            box.engine.load = {"prefill_tps": 10.0, "decode_tps": 10.0, "queued_prompt_tokens": 42}
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.TTFT_PREDICTED)
            assert box.record.predicted_ttft_s == pytest.approx(5.0, abs=0.5)
            assert not box.engine.steps
            await box.at_rest()

    run(main)


def test_the_prediction_is_recorded_for_an_answer_that_stays():
    """So that its error can be measured."""

    async def main():
        async with a_box() as box:
            box.engine.load = {"prefill_tps": 100.0, "decode_tps": 10.0}
            await box.ask()
            assert box.record.predicted_ttft_s == pytest.approx(0.08, abs=0.05)
            assert box.record.ttft_s is not None

    run(main)


def test_time_counts_from_receipt():
    """What was spent before the dispatcher saw the request is part of the first token's delay."""

    async def main():
        async with a_box() as box:
            now = asyncio.get_running_loop().time()
            await box.ask(a_request(stream=True, received_s=now - 1.0))
            assert 1.0 <= box.record.ttft_s < 1.5
            assert box.record.attempts[0].ttft_s < 0.5
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


# -- load and failure of the engine ----------------------------------------------------------------------------------


def test_a_full_queue_overflows_into_the_cloud():
    """Slots and queue taken: the next request goes up at once."""

    async def main():
        async with a_box(engine=ScriptedEngine(slots=1), thresholds={"queue": 0}) as box:
            async with box.dispatcher.answer(a_request(stream=True)):
                seen = await box.ask()
                assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.QUEUE_FULL)
            await box.at_rest()

    run(main)


@pytest.mark.parametrize("pinned", [True, False], ids=["label", "cloud gone"])
def test_a_full_queue_with_nowhere_to_go_is_a_503(pinned):
    """Whether a label or a dead cloud closes the way out: rejected_busy, with a time to come back."""

    async def main():
        async with a_box(engine=ScriptedEngine(slots=1), thresholds={"queue": 0}) as box:
            box.up.default = type(box.up.default)(status=500)
            async with box.dispatcher.answer(a_request(stream=True)):
                seen = await box.ask(limits={"locality": "local_only"} if pinned else {})
            assert isinstance(seen.error, Busy)
            assert seen.error.retry_after_s > 0
            record = box.records[0]
            assert (record.reason, record.served_by) == (Reason.REJECTED_BUSY, NONE)
            assert record.status is (Status.REJECTED if pinned else Status.FAILED)
            await box.at_rest()

    run(main)


@pytest.mark.parametrize("state", [EngineState.DOWN, EngineState.LOADING])
def test_without_a_worker_the_cloud_answers(state):
    """local_unavailable, and no local attempt is invented."""

    async def main():
        async with a_box() as box:
            box.engine.state = state
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.LOCAL_UNAVAILABLE)
            assert [a.target for a in box.record.attempts] == [CLOUD]
            pinned = await box.ask(limits={"locality": "local_only"})
            assert isinstance(pinned.error, NotReady)
            assert box.records[1].status is Status.REJECTED
            assert box.records[1].reason is Reason.LOCAL_UNAVAILABLE

    run(main)


@STREAMED
@pytest.mark.parametrize("release", list(Release))
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_worker_lost_on_probation_is_the_clouds_case(release, after, stream):
    """Nothing was sent yet, so another author may answer."""

    async def main():
        async with a_box(release=release.value) as box:
            box.engine.script(text=WORDS, fail_after=after)
            seen = await box.ask(stream=stream)
            sent_one = release is Release.EAGER and stream and after
            if sent_one:
                assert isinstance(seen.error, WorkerLost)
                return
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.LOCAL_UNAVAILABLE)
            local, cloud = box.record.attempts
            assert (local.outcome, local.error) == (Outcome.FAILED, "worker_lost")
            assert cloud.outcome is Outcome.SERVED
            await box.at_rest()

    run(main)


def test_a_worker_lost_after_the_commit_ends_the_stream_with_an_error():
    """The author is fixed: no cloud call, a failed record, what was sent stays one author's."""

    async def main():
        async with a_box() as box:
            box.engine.script(text=WORDS, fail_after=6)
            seen = await box.ask()
            assert isinstance(seen.error, WorkerLost)
            assert seen.text == "one two three four five six"
            record = box.record
            assert (record.status, record.served_by, record.error) == (Status.FAILED, LOCAL, "worker_lost")
            assert not box.up.seen
            await box.at_rest()

    run(main)


def test_a_worker_lost_before_an_unstreamed_answer_is_whole_is_the_clouds_case():
    """Nothing of it was sent, kept or not."""

    async def main():
        async with a_box() as box:
            box.engine.script(text=WORDS, fail_after=6)
            seen = await box.ask(stream=False)
            assert (seen.head.served_by, seen.text) == (CLOUD, "echo: hello")
            assert box.record.reason is Reason.LOCAL_UNAVAILABLE
            assert [d.reason for d in box.record.decisions][-2:] == [Reason.WITHIN_BUDGET, Reason.LOCAL_UNAVAILABLE]
            await box.at_rest()

    run(main)


@STREAMED
@pytest.mark.parametrize("release", list(Release))
def test_an_engine_that_just_stops_talking_is_an_engine_that_failed(release, stream):
    """A stream that ends without a finish is never taken for an answer."""

    async def main():
        async with a_box(release=release.value, cloud=[]) as box:
            box.engine.script(text=WORDS, vanish_after=2)
            seen = await box.ask(stream=stream)
            assert isinstance(seen.error, EngineError)
            assert box.record.status is Status.FAILED
            await box.at_rest()

    run(main)


@pytest.mark.parametrize(
    ("refusal", "reason", "status"),
    [
        (ContextOverflow("the prompt has 999 tokens", param="messages"), Reason.CONTEXT_OVERFLOW, Status.REJECTED),
        (TemplateRejected("roles must alternate", param="messages"), Reason.CAPABILITY, Status.REJECTED),
        (NotReady("restarting"), Reason.LOCAL_UNAVAILABLE, Status.FAILED),
        (WorkerLost("it died"), Reason.LOCAL_UNAVAILABLE, Status.FAILED),
    ],
    ids=lambda value: getattr(value, "code", ""),
)
def test_a_prompt_the_engine_cannot_take_goes_to_the_cloud_or_back_to_the_client(refusal, reason, status):
    """With a cloud it is answered there; without one the client hears the engine's own reason."""

    async def main():
        async with a_box() as box:
            box.engine.script(refusal=refusal)
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, reason)
            assert box.record.attempts[0].error == refusal.code
            await box.at_rest()
        async with a_box(cloud=[]) as box:
            box.engine.script(refusal=refusal)
            seen = await box.ask()
            assert seen.error is refusal
            assert (box.record.status, box.record.reason, box.record.served_by) == (status, reason, NONE)
            await box.at_rest()

    run(main)


def test_a_prompt_too_long_for_the_box_is_named_as_such_when_the_cloud_fails_too():
    """The client's own fault is what it hears, not the cloud's failure."""

    async def main():
        async with a_box() as box:
            box.engine.script(refusal=ContextOverflow("the prompt has 999 tokens", param="messages"))
            box.up.reply(status=500)
            seen = await box.ask()
            assert isinstance(seen.error, ContextOverflow)

    run(main)


def test_more_tokens_than_the_context_holds_leave_for_the_cloud_and_come_back_if_they_must():
    """An answer longer than what is left of the context: the cloud's, or cut short at home."""

    async def main():
        async with a_box() as box:
            seen = await box.ask(max_tokens=249)
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.CONTEXT_OVERFLOW)
            box.up.reply(status=500)
            seen = await box.ask(max_tokens=249)
            assert (seen.head.served_by, seen.head.reason) == (LOCAL, Reason.CLOUD_UNAVAILABLE)
            await box.at_rest()

    run(main)


# -- the cloud fails -------------------------------------------------------------------------------------------------


@STREAMED
@pytest.mark.parametrize(
    "fault", [{"status": 500}, {"cut_at_byte": 0}, {"error": {"code": "server_error"}}, {"events": []}]
)
def test_upstreams_are_asked_in_order_until_one_speaks(fault, stream):
    """Whatever keeps the first from its first token, the next is asked; both attempts are recorded."""

    async def main():
        async with a_box(ups=3) as box:
            box.engine.script(logprob=UNSURE)
            box.ups[0].reply(**fault)
            box.ups[1].reply(text="second")
            seen = await box.ask(stream=stream)
            assert (seen.text, seen.head.model) == ("second", "cloud1/scripted-model")
            assert [len(up.seen) for up in box.ups] == [1, 1, 0]
            outcomes = [(a.backend, a.outcome) for a in box.cloud_attempts]
            assert outcomes == [("cloud", Outcome.FAILED), ("cloud1", Outcome.SERVED)]
            await box.at_rest()

    run(main)


def test_an_upstream_that_dies_after_its_first_token_ends_the_stream():
    """No other author goes on: an error, and the bytes so far are the first one's."""

    async def main():
        async with a_box(ups=2) as box:
            box.engine.script(text=WORDS, logprob=UNSURE)
            box.up.reply(text="alpha beta gamma delta", error={"code": "server_error"}, error_after=3)
            box.ups[1].default = type(box.up.default)(text="omega")
            seen = await box.ask()
            assert isinstance(seen.error, UpstreamError)
            assert seen.text == "alpha beta"
            assert not box.ups[1].seen
            assert (box.record.status, box.record.served_by) == (Status.FAILED, CLOUD)
            assert box.record.attempts[1].cost_uusd > 0
            assert box.record.attempts[1].cost_estimated
            await box.at_rest()

    run(main)


def test_an_upstream_that_dies_before_an_unstreamed_answer_is_whole_is_replaced():
    """Nothing was sent, so the next may answer from the start; the broken call is paid for all the same."""

    async def main():
        async with a_box(ups=2) as box:
            box.engine.script(text=WORDS, logprob=UNSURE)
            box.up.reply(text="alpha beta gamma delta", error={"code": "server_error"}, error_after=3)
            box.ups[1].reply(text="omega")
            seen = await box.ask(stream=False)
            assert (seen.text, seen.head.model) == ("omega", "cloud1/scripted-model")
            failed = box.cloud_attempts[0]
            assert (failed.outcome, failed.cost_estimated, failed.cost_uusd > 0) == (Outcome.FAILED, True, True)
            await box.at_rest()

    run(main)


@STREAMED
@pytest.mark.parametrize("release", ["strict", "guarded"])
@pytest.mark.parametrize("n", [1, 3])
def test_when_the_cloud_is_gone_the_local_answer_is_finished_and_says_so(release, n, stream):
    """From where it stopped: the same text as an undisturbed run, every token computed once."""

    async def main():
        async with a_box(ups=2, release=release) as box:
            box.engine.script(text=WORDS, logprob=UNSURE)
            for up in box.ups:
                up.reply(status=500)
            seen = await box.ask(stream=stream, n=n)
            assert [seen.text_of(choice) for choice in range(n)] == [WORDS] * n
            assert (seen.head.served_by, seen.head.reason) == (LOCAL, Reason.CLOUD_UNAVAILABLE)
            assert sorted(steps_of(box)) == [(choice, place) for choice in range(n) for place in range(8)]
            local, *cloud = box.record.attempts
            assert local.outcome is Outcome.SERVED
            assert local.usage.completion_tokens == 8 * n
            assert [a.outcome for a in cloud] == [Outcome.FAILED] * 2
            assert box.record.confidence < 0.5
            await box.at_rest()

    run(main)


@pytest.mark.parametrize("texts", [("one", WORDS), (WORDS, "one two"), ("", WORDS)])
def test_a_resumed_answer_with_one_choice_already_finished_goes_on_with_the_other(texts):
    """n = 2, one choice shorter than the hold: only the other is computed further, and usage counts both."""

    async def main():
        async with a_box(hold_tokens=4) as box:
            box.engine.script(text=texts, logprob=UNSURE)
            box.up.reply(status=500)
            seen = await box.ask(n=2)
            assert (seen.text_of(0), seen.text_of(1)) == texts
            assert seen.head.reason is Reason.CLOUD_UNAVAILABLE
            assert len(steps_of(box)) == len(set(steps_of(box))) == sum(len(text.split()) for text in texts)
            assert box.record.attempts[0].usage.completion_tokens == len(steps_of(box))
            await box.at_rest()

    run(main)


def test_an_answer_too_slow_to_begin_is_begun_again_when_nobody_else_can():
    """Late is better than never, and marked."""

    async def main():
        async with a_box(thresholds={"ttft_s": 0.05}) as box:
            box.engine.script(hang_after=0)
            box.up.reply(status=500)
            seen = await box.ask()
            assert (seen.text, seen.head.reason) == ("a quiet local answer", Reason.CLOUD_UNAVAILABLE)
            await box.at_rest()

    run(main)


def test_when_nobody_can_answer_the_client_hears_why():
    """A dead worker and a dead cloud: one error, one record, both tries in it."""

    async def main():
        async with a_box() as box:
            box.engine.script(fail_after=0)
            box.up.reply(status=500)
            seen = await box.ask()
            assert isinstance(seen.error, UpstreamError)
            assert (box.record.status, box.record.served_by) == (Status.FAILED, NONE)
            assert [a.outcome for a in box.record.attempts] == [Outcome.FAILED] * 2
            await box.at_rest()

    run(main)


def test_an_upstream_that_asked_to_be_left_alone_is_left_alone():
    """Retry-After is obeyed by the next request, which is no attempt and costs nothing."""

    async def main():
        async with a_box() as box:
            box.engine.default = type(box.engine.default)(logprob=UNSURE)
            box.up.reply(status=429, headers={"Retry-After": "30"})
            for _ in range(3):
                seen = await box.ask()
                assert (seen.head.served_by, seen.head.reason) == (LOCAL, Reason.CLOUD_UNAVAILABLE)
            assert len(box.up.seen) == len(box.cloud_attempts) == 1
            pinned = await box.ask(limits={"locality": "cloud_only"})
            assert 0 < pinned.error.retry_after_s <= 30

    run(main)


# -- money -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "limits"), [({"budget": {"usd_per_day": 0}}, {}), ({}, {"max_cost_uusd": 5})], ids=["route", "request"]
)
def test_without_money_the_local_answer_stays_and_says_so(route, limits):
    """Neither the route's day nor the request's own limit is passed: no call is made."""

    async def main():
        async with a_box(**route) as box:
            box.engine.script(text=WORDS, logprob=UNSURE)
            seen = await box.ask(limits=limits)
            assert (seen.text, seen.head.served_by, seen.head.reason) == (WORDS, LOCAL, Reason.BUDGET_EXHAUSTED)
            assert sorted(steps_of(box)) == [(0, place) for place in range(8)]
            assert not box.up.seen
            pinned = await box.ask(limits={"locality": "cloud_only", **limits})
            assert isinstance(pinned.error, BudgetExhausted)
            await box.at_rest()

    run(main)


def test_max_cost_allows_what_it_covers():
    """A short answer fits where a long one does not."""

    async def main():
        async with a_box() as box:
            box.engine.default = type(box.engine.default)(logprob=UNSURE)
            seen = await box.ask(max_tokens=10, limits={"max_cost_uusd": 100})
            assert seen.head.served_by is CLOUD
            assert box.record.cost_uusd <= 100

    run(main)


# -- draining --------------------------------------------------------------------------------------------------------


def test_a_draining_daemon_admits_nobody_and_finishes_what_runs():
    """Rejected with a time to come back; the running answer ends well."""

    async def main():
        async with a_box() as box:
            async with box.dispatcher.answer(a_request(stream=True)) as answer:
                box.dispatcher.draining = True
                refused = await box.ask()
                text = "".join([chunk.text async for chunk in answer.chunks()])
            assert isinstance(refused.error, NotReady)
            assert text == "a quiet local answer"
            assert [r.status for r in box.records] == [Status.REJECTED, Status.OK]
            assert box.records[0].reason is Reason.REJECTED_BUSY

    run(main)
