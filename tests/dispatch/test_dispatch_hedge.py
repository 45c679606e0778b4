"""Hedging: two sides, one author, the loser cancelled and priced, never beyond its budget."""

import asyncio

import pytest
from builders import a_request
from dispatch_builders import STREAMED, UNSURE, a_box, cancel_after, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.core import EngineState, Outcome, Reason, Status, Target
from edged.errors import WorkerLost
from edged.routing.hedge import MIN_SAMPLES
from edged.testing import Reply
from edged.testing.local import Script, ScriptedEngine

LOCAL = "local1 local2 local3 local4 local5 local6"
CLOUD = "cloud1 cloud2 cloud3 cloud4"
NOW = {"enabled": True, "max_share": 1.0, "after_s": 0.001}


def outcomes(record):
    return [(a.target, a.outcome) for a in record.attempts]


@STREAMED
def test_a_late_local_answer_loses_to_the_clouds_first_token(stream):
    """The local side is cancelled at once; its work is recorded as thrown away."""

    async def main():
        async with a_box(hedge=NOW) as box:
            box.engine.script(text=LOCAL, first_token_delay_s=30)
            box.up.reply(text=CLOUD)
            seen = await box.ask(stream=stream)
            assert seen.text == CLOUD
            record = box.record
            assert outcomes(record) == [(Target.LOCAL, Outcome.DISCARDED), (Target.CLOUD, Outcome.SERVED)]
            assert (record.served_by, record.reason) == (Target.CLOUD, Reason.TTFT_EXCEEDED)
            assert record.decisions[-1].stage == "hedge"
            await box.at_rest()

    run(main)


@STREAMED
def test_a_late_cloud_answer_loses_to_the_local_one_and_its_cost_is_recorded(stream):
    """Its connection is closed, its prompt is priced, its reservation is freed."""

    async def main():
        async with a_box(hedge=NOW) as box:
            box.engine.script(text=LOCAL, first_token_delay_s=0.1)
            box.up.reply(hang=True)
            seen = await box.ask(stream=stream)
            assert seen.text == LOCAL
            record = box.record
            assert outcomes(record) == [(Target.LOCAL, Outcome.SERVED), (Target.CLOUD, Outcome.CANCELLED)]
            assert (record.served_by, record.reason) == (Target.LOCAL, Reason.WITHIN_BUDGET)
            assert record.attempts[1].error == "hedge_lost"
            assert record.attempts[1].cost_uusd > 0
            assert record.attempts[1].cost_estimated
            assert await box.up.seen[0].hung_up()
            await box.at_rest()

    run(main)


def test_a_whole_answer_that_has_begun_is_not_hedged():
    """Its tokens are coming: only silence is late."""

    async def main():
        async with a_box(hedge={**NOW, "after_s": 0.1}) as box:
            box.engine.script(text=LOCAL, token_delay_s=0.05)
            await box.ask(stream=False)
            assert box.client.calls == 0

    run(main)


def test_a_local_answer_that_fails_probation_waits_for_the_hedge_under_way():
    """The cloud is not called twice."""

    async def main():
        async with a_box(hedge=NOW) as box:
            box.engine.script(text=LOCAL, logprob=UNSURE, first_token_delay_s=0.03)
            box.up.reply(text=CLOUD, first_token_delay_s=0.15)
            seen = await box.ask()
            assert (seen.text, box.client.calls) == (CLOUD, 1)
            assert box.record.reason is Reason.LOW_CONFIDENCE
            await box.at_rest()

    run(main)


def test_a_hedge_that_fails_leaves_the_local_answer_and_is_not_tried_again():
    """Kept: served. Deferred: finished after all and marked, without a second call."""

    async def main():
        async with a_box(hedge=NOW) as box:
            for logprob, reason in ((-0.01, Reason.WITHIN_BUDGET), (UNSURE, Reason.CLOUD_UNAVAILABLE)):
                box.engine.script(text=LOCAL, logprob=logprob, first_token_delay_s=0.1)
                box.up.reply(status=500)
                assert (await box.ask()).text == LOCAL
                assert box.records[-1].reason is reason
            assert box.client.calls == len(box.cloud_attempts) == 2
            await box.at_rest()

    run(main)


def test_without_a_measured_tail_nothing_is_hedged_and_with_one_the_late_are():
    """The first requests only measure; then what passes the 95th percentile is late."""

    async def main():
        async with a_box(hedge={"enabled": True, "max_share": 1.0}) as box:
            for _ in range(MIN_SAMPLES):
                await box.ask()
            assert box.client.calls == 0
            box.engine.script(text=LOCAL, first_token_delay_s=1.5)
            assert (await box.ask()).head.served_by is Target.CLOUD
            assert box.client.calls == 1

    run(main)


def test_no_hedge_is_spent_where_nobody_may_be_asked():
    """An upstream that asked to be left alone costs no share of the hedges."""

    async def main():
        async with a_box(hedge=NOW) as box:
            box.engine.default = Script(text=LOCAL, first_token_delay_s=0.05)
            box.up.reply(status=429, headers={"Retry-After": "60"})
            assert (await box.ask()).text == LOCAL
            saved = box.dispatcher._hedging.budgets["auto"].saved
            assert (await box.ask()).text == LOCAL
            assert box.dispatcher._hedging.budgets["auto"].saved == saved + 1
            assert box.client.calls == 1

    run(main)


def test_a_try_that_failed_or_never_began_leaves_the_tail_alone():
    """A dead worker and a prompt that is predicted too slow take no time, and say nothing of how long answers take."""

    async def main():
        async with a_box(hedge={"enabled": True}) as box:
            tail = box.dispatcher._hedging.tails["auto", True]
            box.engine.script(refusal=WorkerLost("it died"))
            await box.ask()
            box.engine.worker = {"prefill_tps": 0.1}
            await box.ask()
            assert not tail.samples_s
            box.engine.worker = {}
            await box.ask()
            assert len(tail.samples_s) == 1

    run(main)


def test_hedging_is_off_unless_asked_for():
    """Late or not."""

    async def main():
        async with a_box(hedge={"after_s": 0.001}) as box:
            box.engine.script(text=LOCAL, first_token_delay_s=0.05)
            assert (await box.ask()).text == LOCAL
            assert box.client.calls == 0

    run(main)


def test_hedges_stay_within_their_share():
    """Forty late requests at a share of a tenth: four hedges."""

    async def main():
        async with a_box(hedge={**NOW, "max_share": 0.1}) as box:
            box.engine.default = Script(text=LOCAL, first_token_delay_s=0.02)
            for _ in range(40):
                await box.ask()
            assert box.client.calls == len(box.cloud_attempts) == 4

    run(main)


@pytest.mark.parametrize("obstacle", ["label", "budget", "loading"])
def test_nothing_crosses_a_label_a_budget_or_a_cold_load(obstacle):
    """A hedge is a cloud call like any other; loading is nobody's latency."""

    async def main():
        route = {"budget": {"usd_per_day": 0}} if obstacle == "budget" else {}
        async with a_box(hedge=NOW, thresholds={"ttft_s": 5.0}, **route) as box:
            limits = {"locality": "local_only"} if obstacle == "label" else {}
            if obstacle == "loading":
                box.engine.state, box.engine.load_takes_s = EngineState.UNLOADED, 0.05
                box.engine.loads.note(0.05)
            box.engine.script(text=LOCAL, first_token_delay_s=0.05)
            assert (await box.ask(limits=limits)).text == LOCAL
            assert box.client.calls == 0
            await box.at_rest()

    run(main)


scripts = st.builds(
    Script,
    text=st.just(LOCAL),
    logprob=st.sampled_from([-0.01, -0.01, -8.0]),
    first_token_delay_s=st.sampled_from([0.0, 0.002, 0.004, 0.01]),
    token_delay_s=st.sampled_from([0.0, 0.001]),
    fail_after=st.none() | st.integers(0, 6),
    hang_after=st.none() | st.integers(0, 3),
)
replies = st.builds(
    Reply,
    text=st.just(CLOUD),
    status=st.sampled_from([200, 200, 200, 500, 429]),
    delay_s=st.sampled_from([0.0, 0.002, 0.005]),
    chunk_delay_s=st.sampled_from([0.0, 0.001]),
    cut_at_byte=st.none() | st.integers(0, 1500),
)
storms = st.lists(st.tuples(scripts, replies, st.booleans(), st.none() | st.integers(1, 60)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(storm=storms, share=st.sampled_from([1.0, 0.5]), release=st.sampled_from(["strict", "guarded", "eager"]))
def test_whatever_the_interleaving_an_answer_has_one_author_and_every_call_is_recorded(storm, share, release):
    """Both sides at once, each slow, failing or hanging, clients that leave at any turn of the loop: bytes of one
    source, calls made are attempts recorded, one record each, nothing held for anybody afterwards."""

    async def main():
        patience = {"first_token_timeout_s": 0.1, "idle_timeout_s": 0.1}
        hedge = {"enabled": True, "max_share": share, "after_s": 0.002}
        limits = {"ttft_s": 0.05, "itl_s": 0.05}
        engine = ScriptedEngine(slots=2)
        async with a_box(engine=engine, up_config=patience, hedge=hedge, thresholds=limits, release=release) as box:
            asks = []
            for script, reply, stream, leaves_after in storm:
                box.engine.script(script)
                box.up.reply(reply)
                asks.append(_one(box, stream, leaves_after))
            await asyncio.gather(*asks)
            await box.at_rest()
            assert len(box.records) == len(storm)
            assert len(box.up.seen) <= box.client.calls == len(box.cloud_attempts)
            assert all(attempt.outcome is not None for attempt in box.cloud_attempts)

    run(main)


async def _one(box, stream, leaves_after):
    request = a_request(stream=stream)
    if leaves_after is not None:
        await cancel_after(leaves_after, box.ask(request))
        return
    try:
        async with asyncio.timeout(0.5):  # once it is committed, a local answer may hang for ever with the engine
            seen = await box.ask(request)
    except TimeoutError:
        return
    record = next(r for r in box.records if r.id == request.id)
    assert {word.rstrip("0123456789") for word in seen.text.split()} <= {record.served_by.value}
    assert (record.status is Status.OK) == (seen.error is None)
    assert sum(attempt.outcome is Outcome.SERVED for attempt in record.attempts) == (record.status is Status.OK)
