"""Upstreams that fail, money that is spent, a daemon that drains: who answers then."""

import pytest
from builders import a_request
from dispatch_builders import STREAMED, UNSURE, WORDS, a_box, run

from edged.core import Outcome, Reason, Status, Target
from edged.errors import (
    BudgetExhausted,
    NotReady,
    UpstreamError,
)

LOCAL, CLOUD, NONE = Target.LOCAL, Target.CLOUD, Target.NONE


def steps_of(box):
    """(choice, place) of every token the engine computed."""
    return [(step.choice, step.index) for step in box.engine.steps]


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
