"""What the cloud cost: recorded for every call, never below the upstream's own count, never beyond the budget."""

import asyncio
import socket

import pytest
from builders import a_request
from dispatch_builders import DAY_S, UNSURE, a_box, run

from edged.core import Outcome, Reason, Sampling, Status, Target
from edged.errors import Unsupported
from edged.testing import Reply
from edged.testing.local import Script


def deferring(box):
    box.engine.default = Script(logprob=UNSURE)
    return box


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_served_call_costs_its_own_usage_at_our_prices(stream):
    """A dollar per million in, two out: 1000 and 500 tokens are 2000 micro-dollars."""

    async def main():
        async with a_box() as box:
            deferring(box).up.reply(text="yes", usage={"prompt_tokens": 1000, "completion_tokens": 500})
            await box.ask(stream=stream)
            (cloud,) = box.cloud_attempts
            assert (cloud.cost_uusd, cloud.cost_estimated, cloud.usage.estimated) == (2000, False, False)
            assert box.record.cost_uusd == box.budget.spent_uusd == 2000

    run(main)


def test_the_providers_own_cost_is_preferred():
    """It knows its discounts and surcharges; ours is the second opinion."""

    async def main():
        async with a_box() as box:
            usage = {"prompt_tokens": 1000, "completion_tokens": 500, "cost": 0.0123}
            deferring(box).up.reply(text="yes", usage=usage)
            await box.ask()
            (cloud,) = box.cloud_attempts
            assert (cloud.cost_uusd, cloud.cost_estimated) == (12_300, False)

    run(main)


def test_an_answer_without_a_count_is_estimated_and_marked():
    """Never free."""

    async def main():
        async with a_box() as box:
            deferring(box).up.reply(text="one two three", usage=None)
            await box.ask()
            (cloud,) = box.cloud_attempts
            assert cloud.cost_uusd > 0
            assert cloud.cost_estimated
            assert cloud.usage.estimated
            assert cloud.usage.completion_tokens >= 3

    run(main)


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_a_refused_call_costs_nothing(status):
    """An error status comes before any work."""

    async def main():
        async with a_box() as box:
            deferring(box).up.reply(status=status)
            await box.ask()
            (cloud,) = box.cloud_attempts
            assert (cloud.outcome, cloud.cost_uusd, cloud.cost_estimated) == (Outcome.FAILED, 0, False)
            assert cloud.usage.total_tokens == 0

    run(main)


def test_a_call_that_never_connected_costs_nothing():
    """Nothing was handed over."""

    async def main():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            nobody = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
            async with a_box(up_config={"base_url": nobody}) as box:
                seen = await deferring(box).ask()
                assert seen.head.reason is Reason.CLOUD_UNAVAILABLE
                (cloud,) = box.cloud_attempts
                assert (cloud.error, cloud.cost_uusd, cloud.cost_estimated) == ("upstream_unavailable", 0, False)
                assert box.client.calls == 1

    run(main)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"hang": True}, "first_token_timeout"),
        ({"first_token_delay_s": 60.0}, "first_token_timeout"),
        ({"cut_at_byte": 0}, "upstream_protocol_error"),
    ],
)
def test_a_call_that_took_the_prompt_and_failed_is_estimated(fault, error):
    """It may have been worked on, so it may be charged."""

    async def main():
        async with a_box(up_config={"first_token_timeout_s": 0.05}) as box:
            deferring(box).up.reply(**fault)
            seen = await box.ask()
            assert seen.head.reason is Reason.CLOUD_UNAVAILABLE
            (cloud,) = box.cloud_attempts
            assert cloud.error in (error, "upstream_unavailable")
            assert cloud.cost_uusd > 0
            assert cloud.cost_estimated

    run(main)


def test_words_received_before_a_refusal_are_costed():
    """An overload inside a 200 after three words: those words were generated."""

    async def main():
        async with a_box() as box:
            deferring(box).up.reply(text="one two three", error={"code": 429}, error_after=3)
            await box.ask(stream=False)
            (cloud,) = box.cloud_attempts
            assert cloud.outcome is Outcome.FAILED
            assert cloud.cost_uusd > 0

    run(main)


def test_a_parameter_refused_before_the_call_is_no_attempt():
    """Token numbers of the local model mean nothing to another: no call, no attempt, no cost, the local answer."""

    async def main():
        async with a_box() as box:
            own = Sampling(logit_bias=((5, 1.0),))
            seen = await deferring(box).ask(sampling=own)
            assert (seen.head.served_by, seen.head.reason) == (Target.LOCAL, Reason.CLOUD_UNAVAILABLE)
            pinned = await box.ask(sampling=own, limits={"locality": "cloud_only"})
            assert isinstance(pinned.error, Unsupported)
            assert box.records[1].status is Status.REJECTED
            assert not box.cloud_attempts
            assert box.client.calls == 0
            await box.at_rest()

    run(main)


def test_concurrent_calls_cannot_overshoot_a_budget():
    """Thirty at once where three fit: the others are answered locally, marked, and nothing stays reserved."""

    async def main():
        async with a_box(budget={"usd_per_day": 0.0007}, thresholds={"queue": 100}) as box:
            deferring(box).up.default = Reply(text="yes", delay_s=0.02)
            seen = await asyncio.gather(*(box.ask(max_tokens=100) for _ in range(30)))
            by = [one.head.served_by for one in seen]
            assert by.count(Target.CLOUD) == 3
            assert {one.head.reason for one in seen} == {Reason.LOW_CONFIDENCE, Reason.BUDGET_EXHAUSTED}
            assert box.budget.spent_uusd == sum(record.cost_uusd for record in box.records) <= 700
            await box.at_rest()

    run(main)


def test_a_failed_upstream_does_not_hold_the_next_ones_money():
    """What a refused call had reserved is free again before the next upstream is asked."""

    async def main():
        async with a_box(ups=2, budget={"usd_per_day": 0.00025}) as box:
            deferring(box).up.reply(status=500)
            seen = await box.ask(max_tokens=100)
            assert seen.head.model == "cloud1/scripted-model"

    run(main)


def test_what_the_ledger_already_counted_today_is_spent():
    """A restart does not open the budget again; the next day does, and a clock that steps back does not."""

    async def main():
        now = [20_000 * DAY_S]
        async with a_box(spent_uusd=1_000_000, budget={"usd_per_day": 1.0}, clock=lambda: now[0]) as box:
            for step_s, by in [(0, Target.LOCAL), (-DAY_S, Target.LOCAL), (DAY_S, Target.CLOUD)]:
                now[0] = 20_000 * DAY_S + step_s
                assert (await deferring(box).ask()).head.served_by is by

    run(main)


def test_a_cancelled_call_is_costed():
    """A client that leaves does not make the call free."""

    async def main():
        async with a_box(locality="cloud_only") as box:
            box.up.reply(hang=True)
            task = asyncio.create_task(box.ask(a_request(stream=True, text="a question of some length")))
            await box.up.request()
            task.cancel()
            await asyncio.wait([task])
            assert box.record.status is Status.CANCELLED
            assert box.record.cost_uusd > 0
            assert box.budget.spent_uusd == box.record.cost_uusd
            await box.at_rest()

    run(main)
