"""A box that is full, starting, broken or unable: another author, or an error that says why."""

import pytest
from builders import a_request
from dispatch_builders import STREAMED, WORDS, a_box, run

from edged.core import EngineState, Outcome, Reason, Release, Status, Target
from edged.errors import (
    Busy,
    ContextOverflow,
    EngineError,
    NotReady,
    TemplateRejected,
    WorkerLost,
)
from edged.testing.local import ScriptedEngine

LOCAL, CLOUD, NONE = Target.LOCAL, Target.CLOUD, Target.NONE


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
