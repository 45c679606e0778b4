"""Upstreams that fail for long: they are left alone, asked again, and never asked more often than the budget allows."""

import asyncio
import logging
import time

import pytest
from dispatch_builders import STREAMED, UNSURE, WORDS, a_box, run

from edged.config import RetriesConfig
from edged.core import Reason, Sampling, Target
from edged.dispatch.upstreams import Upstreams, UpstreamState
from edged.errors import UpstreamBusy, UpstreamDenied, UpstreamTimeout
from edged.routing.breaker import BreakerSettings
from edged.testing import Reply
from edged.testing.local import Script, ScriptedEngine

CLOUD, LOCAL = Target.CLOUD, Target.LOCAL
FIRST = "cloud/scripted-model"
NEVER = BreakerSettings(min_calls=1000, keep_calls=1000)


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


def unsure(box):
    """Every local answer wants to leave."""
    box.engine.default = Script(text=WORDS, logprob=UNSURE)


def watched(box, **settings):
    """The box's upstreams with settings and a clock of the test's own."""
    clock = Clock()
    box.cloud.upstreams = Upstreams(box.client, clock=clock, **settings)
    return clock


@STREAMED
@pytest.mark.parametrize(
    "fault", [{"status": 500}, {"status": 429}, {"status": 200, "body": b"<html>"}, {"drop": "reset"}, {"events": []}]
)
def test_an_upstream_that_always_fails_is_left_alone(fault, stream):
    """Five calls, then none: the next upstream answers everybody at the cost of one call each."""

    async def main():
        async with a_box(ups=2) as box:
            unsure(box)
            clock = watched(box, retries=RetriesConfig(share=1.0))
            box.up.default = Reply(content_type="text/html", **fault) if "body" in fault else Reply(**fault)
            for _ in range(20):
                seen = await box.ask(stream=stream)
                assert seen.head.served_by is CLOUD
            assert [len(up.seen) for up in box.ups] == [5, 20]
            assert box.cloud.upstreams.state(FIRST) is UpstreamState.OPEN
            clock.now_s += 6.0
            box.up.default = Reply(text="back")
            assert (await box.ask(stream=stream)).text == "back"
            assert box.cloud.upstreams.state(FIRST) is UpstreamState.CLOSED
            await box.at_rest()

    run(main)


def test_a_lone_upstream_is_never_given_up():
    """Open, it is still asked, every two seconds at most; one success brings it back at once (F02)."""

    async def main():
        async with a_box() as box:
            unsure(box)
            clock = watched(box)
            box.up.default = Reply(status=503)
            for _ in range(100):  # ten seconds, ten requests in each
                seen = await box.ask()
                assert (seen.text, seen.head.reason) == (WORDS, Reason.CLOUD_UNAVAILABLE)
                clock.now_s += 0.1
            assert 8 <= len(box.up.seen) <= 11
            assert len(box.up.seen) == len(box.cloud_attempts) == box.client.calls
            box.up.default = Reply(text="back")
            clock.now_s += 2.0
            assert [(await box.ask()).text for _ in range(3)] == ["back"] * 3

    run(main)


def test_one_blip_costs_nobody_the_upstream():
    """A single 503 is a retry for one request; the next one asks the same upstream again (F02)."""

    async def main():
        async with a_box(ups=2) as box:
            unsure(box)
            box.up.reply(status=503)
            answers = [(await box.ask()).head.model for _ in range(3)]
            assert answers == ["cloud1/scripted-model", FIRST, FIRST]

    run(main)


@pytest.mark.parametrize("fault", [{"status": 400}, {"status": 404}, {"status": 413}, {"status": 422}])
def test_requests_that_are_at_fault_themselves_trip_nothing(fault):
    """Twenty poisoned requests, and the upstream answers the twenty-first (F02)."""

    async def main():
        async with a_box() as box:
            unsure(box)
            box.up.default = Reply(**fault)
            for _ in range(20):
                await box.ask()
            assert len(box.up.seen) == 20
            box.up.default = Reply(text="well")
            assert (await box.ask()).text == "well"

    run(main)


def test_clients_that_hang_up_and_deadlines_of_their_own_trip_nothing():
    """Ten impatient clients say nothing about the upstream."""

    async def main():
        async with a_box(thresholds={"ttft_s": 0.01}) as box:
            unsure(box)
            box.up.default = Reply(hang=True)
            for _ in range(6):
                await box.ask(limits={"deadline_s": 0.05})
            for _ in range(6):
                task = asyncio.create_task(box.ask(limits={"locality": "cloud_only"}))
                await box.up.request(len(box.up.seen) + 1)
                task.cancel()
                await asyncio.wait([task])
            assert box.cloud.upstreams.state(FIRST) is UpstreamState.CLOSED
            await box.at_rest()

    run(main)


def test_a_wait_the_provider_named_is_kept_and_trips_nothing():
    """Storms of 429 with Retry-After: one call, state "cooling", and no breaker to outlast the wait."""

    async def main():
        async with a_box() as box:
            unsure(box)
            box.up.default = Reply(status=429, headers={"Retry-After": "30"})
            for _ in range(20):
                await box.ask()
            assert len(box.up.seen) == 1
            assert box.cloud.upstreams.state(FIRST) is UpstreamState.COOLING
            pinned = await box.ask(model=FIRST)
            assert isinstance(pinned.error, UpstreamBusy)
            assert 28 < pinned.error.retry_after_s <= 30

    run(main)


def test_a_key_that_is_refused_twice_sets_the_upstream_aside(caplog):
    """Two calls, one line that says what to do, then a call a minute; a key that was mended works again."""

    async def main():
        async with a_box() as box:
            unsure(box)
            clock = watched(box)
            box.up.default = Reply(status=401)
            for _ in range(10):
                seen = await box.ask()
                assert seen.head.reason is Reason.CLOUD_UNAVAILABLE
            assert len(box.up.seen) == 2
            assert box.cloud.upstreams.states() == {FIRST: "unauthorised"}
            pinned = await box.ask(model=FIRST)
            assert isinstance(pinned.error, UpstreamDenied)
            clock.now_s += 61
            await box.ask()
            await box.ask()
            assert len(box.up.seen) == 3
            box.up.default = Reply(text="well")
            clock.now_s += 121
            assert (await box.ask()).text == "well"
            assert (await box.ask()).text == "well"

    with caplog.at_level(logging.INFO):
        run(main)
    lines = [r.message for r in caplog.records if "unauthorised" in r.message and "was=closed" in r.message]
    assert len(lines) == 1
    assert "check api_key" in lines[0]


def test_one_forbidden_model_leaves_its_neighbours_alone():
    """A 403 is about one model; the same key may ask another."""

    async def main():
        async with a_box() as box:
            upstreams = box.cloud.upstreams
            for _ in range(2):
                error = UpstreamDenied("no", upstream="cloud")
                error.answered = 403
                upstreams.end(upstreams.begin(FIRST), error)
            target = upstreams._targets[FIRST]
            assert upstreams.state(FIRST) is UpstreamState.UNAUTHORISED
            assert target.key.wait_s(now_s=time.monotonic()) == 0.0

    run(main)


@STREAMED
def test_answers_that_break_off_count_against_the_upstream(stream):
    """Cut after the first token, again and again: the breaker opens for that too."""

    async def main():
        async with a_box(ups=2) as box:
            unsure(box)
            box.up.default = Reply(text="alpha beta gamma", error={"code": "server_error"}, error_after=3)
            for _ in range(20):
                await box.ask(stream=stream)
            assert len(box.up.seen) <= 6
            assert box.cloud.upstreams.state(FIRST) is UpstreamState.OPEN

    run(main)


# -- one owner of retries --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "floor"), [(0.2, 10), (0.2, 0), (0.0, 3), (0.0, 0)])
def test_calls_stay_within_requests_and_the_retry_budget(share, floor):
    """Three upstreams that always fail, and nothing else that would stop anybody: counted at the sockets,
    calls <= requests x (1 + share) + floor, and who went without says so (guarantee 4, F04)."""

    async def main():
        async with a_box(ups=3) as box:
            unsure(box)
            watched(box, retries=RetriesConfig(share=share, floor_per_minute=floor), breaker=NEVER)
            for up in box.ups:
                up.default = Reply(status=500)
            for _ in range(40):
                seen = await box.ask()
                assert (seen.text, seen.head.reason) == (WORDS, Reason.CLOUD_UNAVAILABLE)
            calls = sum(len(up.seen) for up in box.ups)
            assert calls == box.client.calls == len(box.cloud_attempts)
            assert 40 <= calls <= 40 * (1 + share) + floor
            short = [r for r in box.records if any(d.stage == "retry_budget" for d in r.decisions)]
            assert len(short) >= 40 - (40 * share + floor)
            await box.at_rest()

    run(main)


def test_a_refused_parameter_is_asked_without_once_and_counts_as_a_retry():
    """The same upstream, one call more; from then on the parameter stays out and no retry is needed."""

    async def main():
        async with a_box() as box:
            unsure(box)
            refusal = {"message": "Unsupported parameter: 'seed'", "code": "unsupported_parameter", "param": "seed"}
            box.up.reply(status=400, error=refusal)
            box.up.default = Reply(text="well")
            for _ in range(2):
                assert (await box.ask(sampling=Sampling(seed=7))).text == "well"
            assert [("seed" in seen.body) for seen in box.up.seen] == [True, False, False]
            assert box.cloud.upstreams.retries.taken == 1
            assert len(box.cloud_attempts) == 3

    run(main)


@STREAMED
def test_the_deadline_of_the_request_bounds_all_calls_together(stream):
    """An upstream that hangs: the local answer comes at the deadline, not after the sum of all time-outs."""

    async def main():
        async with a_box(ups=3, up_config={"first_token_timeout_s": 5.0}) as box:
            unsure(box)
            for up in box.ups:
                up.default = Reply(hang=True)
            began_s = time.monotonic()
            seen = await box.ask(stream=stream, limits={"deadline_s": 0.3})
            assert time.monotonic() - began_s < 1.5
            assert (seen.text, seen.head.reason) == (WORDS, Reason.CLOUD_UNAVAILABLE)
            assert [a.error for a in box.cloud_attempts] == ["deadline_exceeded"]
            pinned = await box.ask(stream=stream, model=FIRST, limits={"deadline_s": 0.1})
            assert isinstance(pinned.error, UpstreamTimeout)
            await box.at_rest()

    run(main)


def test_a_storm_over_many_clients_keeps_every_bound():
    """Sixty clients at once, upstreams that fail four times in five: everybody is answered, calls are attempts, the
    budget holds, and no permit is lost."""

    async def main():
        async with a_box(ups=2, engine=ScriptedEngine(slots=64)) as box:
            unsure(box)
            for up in box.ups:
                faults = [Reply(status=500), Reply(status=429), Reply(drop="reset"), Reply(cut_at_byte=40), Reply()]
                up.respond = lambda seen, faults=faults, up=up: faults[len(up.seen) % 5]
            seen = await asyncio.gather(*(box.ask(stream=place % 2 == 0) for place in range(60)))
            assert not [outcome.error for outcome in seen if not outcome.text]
            calls = sum(len(up.seen) for up in box.ups)
            assert calls == len(box.cloud_attempts) <= 60 * 1.2 + 10
            for target in box.cloud.upstreams._targets.values():
                assert target.breaker._probing == 0
            await box.at_rest()

    run(main)
