"""A model that is loaded when asked for: who waits, who leaves, and what the wait counts as."""

import asyncio

import pytest
from dispatch_builders import STREAMED, a_box, run

from edged.core import EngineState, Reason, Status, Target
from edged.engine.pressure import Reading
from edged.engine.residency import Residency
from edged.errors import NotReady, OutOfMemory
from edged.testing.local import ScriptedEngine

LOCAL, CLOUD, NONE = Target.LOCAL, Target.CLOUD, Target.NONE
SLOW = {"ttft_s": 0.2, "confidence": 0}


def cold(*, takes_s=0.0, measured_s=None, error=None) -> ScriptedEngine:
    """An unloaded engine; ``measured_s`` is how long its last load took."""
    engine = ScriptedEngine()
    engine.state = EngineState.UNLOADED
    engine.load_takes_s, engine.load_error = takes_s, error
    if measured_s is not None:
        engine.loads.note(measured_s)
    return engine


@STREAMED
def test_a_load_that_takes_longer_than_the_threshold_is_no_late_token(stream):
    """Without a cloud the request waits, and its cold load is told apart from its latency."""

    async def main():
        async with a_box(engine=cold(takes_s=0.3), cloud=[], thresholds=SLOW) as box:
            seen = await box.ask(stream=stream)
            assert (seen.head.served_by, seen.head.reason) == (LOCAL, Reason.WITHIN_BUDGET)
            record = box.record
            assert record.timings.load_s >= 0.29
            assert record.ttft_s >= record.timings.load_s
            (attempt,) = record.attempts
            assert attempt.started_s >= 0.29
            assert attempt.ttft_s < 0.2
            await box.at_rest()

    run(main)


def test_a_load_in_time_keeps_the_request_and_leaves_the_threshold_whole():
    """With a cloud and a short load: the first token has its whole ``ttft_s`` after the load."""

    async def main():
        async with a_box(engine=cold(takes_s=0.15, measured_s=0.1), thresholds=SLOW) as box:
            box.engine.script(first_token_delay_s=0.12)
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (LOCAL, Reason.WITHIN_BUDGET)
            assert box.record.timings.load_s >= 0.14
            assert not box.up.seen

    run(main)


def test_a_load_that_is_known_to_be_slow_sends_the_request_away_and_goes_on():
    """The cloud answers at once, the model is loaded for those who come later."""

    async def main():
        async with a_box(engine=cold(takes_s=0.05, measured_s=3.0)) as box:
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.LOCAL_UNAVAILABLE)
            assert [a.target for a in box.record.attempts] == [CLOUD]
            assert box.record.timings.load_s == 0
            assert await box.engine.settled() is EngineState.READY
            assert (await box.ask()).head.served_by is LOCAL

    run(main)


def test_a_load_slower_than_expected_sends_the_request_away_at_the_threshold():
    """Whoever waited for a load that should have been short waits no longer than ``ttft_s``."""

    async def main():
        async with a_box(engine=cold(takes_s=30, measured_s=0.1), thresholds=SLOW) as box:
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.LOCAL_UNAVAILABLE)
            assert 0.19 <= box.record.timings.load_s < 2
            await box.at_rest()

    run(main)


@pytest.mark.parametrize("measured_s", [3.0, 0.01], ids=["left at admission", "left while it loaded"])
def test_when_the_cloud_fails_too_the_load_is_waited_for(measured_s):
    """A slow answer beats none: local after all, marked as such."""

    async def main():
        async with a_box(engine=cold(takes_s=0.4, measured_s=measured_s), thresholds=SLOW) as box:
            box.up.reply(status=500)
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (LOCAL, Reason.CLOUD_UNAVAILABLE)
            assert seen.text == "a quiet local answer"
            assert box.record.timings.load_s > 0
            await box.at_rest()

    run(main)


@pytest.mark.parametrize(
    ("error", "heard"),
    [(OutOfMemory("model small needs about 9 MB"), OutOfMemory), (NotReady("no"), NotReady)],
    ids=["no room", "no load"],
)
def test_a_load_that_fails_is_the_clouds_case_or_the_clients_error(error, heard):
    """No attempt is invented for a model that was never there."""

    async def main():
        async with a_box(engine=cold(measured_s=0.01, error=error)) as box:
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.LOCAL_UNAVAILABLE)
            assert [a.target for a in box.record.attempts] == [CLOUD]
        async with a_box(engine=cold(measured_s=0.01, error=error), cloud=[]) as box:
            seen = await box.ask()
            assert isinstance(seen.error, heard)
            assert seen.error.status == 503
            record = box.record
            assert (record.status, record.served_by, record.reason) == (Status.REJECTED, NONE, Reason.LOCAL_UNAVAILABLE)
            await box.at_rest()

    run(main)


def test_those_who_wait_for_a_load_are_a_queue_like_any_other():
    """Slots and queue bound how many wait; nobody waits for ever."""

    async def main():
        async with a_box(engine=cold(takes_s=0.2), cloud=[], thresholds={"queue": 1}) as box:
            seen = await asyncio.gather(*(box.ask() for _ in range(5)))
            assert sum(s.error is None for s in seen) == 3
            assert sum(r.reason is Reason.REJECTED_BUSY for r in box.records) == 2
            await box.at_rest()

    run(main)


def test_under_memory_pressure_the_cloud_answers_where_it_may():
    """host_pressure: no new local work, no load, until it is over; a label or a dead cloud keeps the request here."""

    async def main():
        reading = Reading(stall_percent=90.0, available_bytes=10**12)
        residency = Residency(reading=lambda: reading)
        engine = ScriptedEngine()
        engine._residency = residency
        await residency.look()
        await residency.look()
        async with a_box(engine=engine) as box:
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.HOST_PRESSURE)
            pinned = await box.ask(limits={"locality": "local_only"})
            assert (pinned.head.served_by, pinned.head.reason) == (LOCAL, Reason.PINNED_LOCAL)
            box.up.reply(status=500)
            after_all = await box.ask()
            assert (after_all.head.served_by, after_all.head.reason) == (LOCAL, Reason.CLOUD_UNAVAILABLE)
            engine.state = EngineState.UNLOADED
            assert (await box.ask()).head.reason is Reason.HOST_PRESSURE
            assert engine.state is EngineState.UNLOADED

    run(main)
