"""Decisions when cloud, worker, time or the client fail."""

import asyncio
import json
from dataclasses import replace

import pytest
from decision_builders import (
    CLOUD,
    DOUBT,
    SURE,
    UNSURE,
    asked,
    decide,
    odds,
    posted,
    said,
)
from dispatch_builders import a_box, cancel_after, run

from edged.core import (
    EngineState,
    Outcome,
    Reason,
    Status,
    Target,
)
from edged.errors import WorkerLost
from edged.testing import Reply

GARBAGE = {
    "no json": Reply(text="I think shipping."),
    "outside the options": Reply(text=json.dumps({**CLOUD, "team": "sales"})),
    "of another type": Reply(text=json.dumps({**CLOUD, "urgent": 2})),
    "incomplete": Reply(text=json.dumps({"team": "shipping"})),
    "cut for length": Reply(text=json.dumps(CLOUD), finish="length"),
    "cut off": Reply(text=json.dumps(CLOUD), cut_at_byte=120),
    "too many requests": Reply(status=429, headers={"Retry-After": "1"}),
    "broken": Reply(status=500),
    "empty": Reply(text=""),
}


@pytest.mark.parametrize("reply", GARBAGE.values(), ids=GARBAGE)
def test_a_cloud_that_gives_no_answer_leaves_the_local_one(reply):
    """Marked as such; the call is on the record as failed, and paid for where there were tokens."""

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            box.up.default = reply
            box.engine.script(odds=odds(UNSURE, UNSURE, SURE))
            found = await decide(box, asked())
            await box.at_rest()
            return found, box.record

    found, record = run(main)
    assert said(found) == {
        "team": (Target.LOCAL, Reason.CLOUD_UNAVAILABLE, 0),
        "urgent": (Target.LOCAL, Reason.CLOUD_UNAVAILABLE, 0),
        "angry": (Target.LOCAL, Reason.WITHIN_BUDGET, 0),
    }
    assert (record.status, record.served_by, record.reason) == (Status.OK, Target.LOCAL, Reason.CLOUD_UNAVAILABLE)
    assert [a.outcome for a in record.attempts] == [Outcome.SERVED, Outcome.FAILED]
    assert record.attempts[1].cost_uusd >= 0


def test_after_garbage_the_next_upstream_is_asked():
    """A model that does not keep to the options says nothing of the others."""

    async def main():
        async with a_box(ups=2, thresholds=DOUBT) as box:
            box.ups[0].default = Reply(text="no idea")
            box.ups[1].default = Reply(text=json.dumps(CLOUD))
            box.engine.script(odds=odds(UNSURE, UNSURE, UNSURE))
            found = await decide(box, asked())
            assert {d.served_by for d in found.decided} == {Target.CLOUD}
            await box.at_rest()
            return box.record

    record = run(main)
    assert [(a.outcome, a.error) for a in record.attempts[1:]] == [
        (Outcome.FAILED, "invalid_answer"),
        (Outcome.SERVED, None),
    ]
    assert record.attempts[1].cost_uusd > 0


@pytest.mark.parametrize(
    ("route", "limits", "reason"),
    [
        ({"budget": {"usd_per_day": 0}}, {}, Reason.BUDGET_EXHAUSTED),
        ({}, {"max_cost_uusd": 0}, Reason.BUDGET_EXHAUSTED),
        ({}, {"locality": "local_only"}, Reason.PRIVATE),
        ({"locality": "local_only"}, {}, Reason.PRIVATE),
        ({"cloud": []}, {}, Reason.WITHIN_BUDGET),
    ],
)
def test_what_may_not_leave_stays_and_says_why(route, limits, reason):
    """No byte reaches the upstream; the doubtful answer carries the reason, the sure one that it was sure."""

    async def main():
        async with a_box(thresholds=DOUBT, **route) as box:
            box.engine.script(odds=odds(SURE, UNSURE, SURE))
            found = await decide(box, asked(limits=limits))
            assert not box.up.seen
            await box.at_rest()
            return found, box.record

    found, record = run(main)
    urgent = found.decided[1]
    assert (urgent.served_by, urgent.reason, record.reason) == (Target.LOCAL, reason, reason)
    assert {found.decided[0].reason, found.decided[2].reason} <= {Reason.WITHIN_BUDGET, Reason.PINNED_LOCAL}
    assert found.head.reason is reason


def test_pinned_to_the_cloud_nothing_is_scored():
    """All questions in one call; the local model's confidence is not known."""

    async def main():
        async with a_box() as box:
            box.up.reply(text=json.dumps(CLOUD))
            found = await decide(box, asked(limits={"locality": "cloud_only"}))
            assert box.engine.steps == []
            return found, box.record

    found, record = run(main)
    assert said(found)["team"] == (Target.CLOUD, Reason.PINNED_CLOUD, 1)
    assert {d.confidence for d in found.decided} == {None}
    assert (record.confidence, record.reason) == (None, Reason.PINNED_CLOUD)


def test_a_cloud_alone_that_gives_garbage_is_an_error():
    """It says so, and the record too."""

    async def main():
        async with a_box() as box:
            box.up.default = Reply(text="no idea")
            found = await decide(box, asked(limits={"locality": "cloud_only"}))
            return found, box.record

    error, record = run(main)
    assert (error.code, error.status) == ("invalid_answer", 502)
    assert (record.status, record.error) == (Status.FAILED, "invalid_answer")


@pytest.mark.parametrize("fields", [{"fail_after": 1}, {"refusal": WorkerLost("it died")}])
def test_a_worker_that_dies_while_scoring_escalates_or_says_so(fields):
    """With a cloud all questions go there; without one the client hears what happened."""

    async def main():
        async with a_box() as box:
            box.engine.script(odds=odds(SURE, SURE, SURE), **fields)
            box.up.reply(text=json.dumps(CLOUD))
            found = await decide(box, asked())
            assert posted(box.up) == [["team", "urgent", "angry"]]
            await box.at_rest()
            assert box.record.reason is Reason.LOCAL_UNAVAILABLE
        async with a_box(cloud=[]) as box:
            box.engine.script(odds=odds(SURE, SURE, SURE), **fields)
            error = await decide(box, asked())
            await box.at_rest()
            return found, error, box.record

    found, error, record = run(main)
    assert {d.served_by for d in found.decided} == {Target.CLOUD}
    assert (error.code, record.status) == ("worker_lost", Status.FAILED)


def test_scoring_that_is_late_is_given_up():
    """Silence is judged as of any answer; the slot is free again."""

    async def main():
        async with a_box(thresholds={"ttft_s": 0.05}) as box:
            box.engine.script(odds=odds(SURE, SURE, SURE), hang_after=1)
            box.up.reply(text=json.dumps(CLOUD))
            found = await decide(box, asked())
            await box.at_rest()
            return found, box.record

    found, record = run(main)
    assert {d.reason for d in found.decided} == {Reason.TTFT_EXCEEDED}
    assert record.served_by is Target.CLOUD


def test_late_and_alone_the_box_answers_after_all():
    """The cloud fails: what was given up is scored again, to its end."""

    async def main():
        async with a_box(thresholds={"ttft_s": 0.05}) as box:
            box.engine.script(odds=odds(SURE, UNSURE, SURE), hang_after=1)
            box.up.default = Reply(status=500)
            found = await decide(box, asked())
            await box.at_rest()
            return found, box.record

    found, record = run(main)
    assert {d.reason for d in found.decided} == {Reason.CLOUD_UNAVAILABLE}
    assert (record.served_by, record.reason) == (Target.LOCAL, Reason.CLOUD_UNAVAILABLE)


def test_admission_is_that_of_any_answer():
    """A full queue, a model that is down, a shutdown."""

    async def main():
        async with a_box(cloud=[], thresholds={"queue": 0}) as box:
            box.engine.default = replace(box.engine.default, hang_after=0)
            waiting = [asyncio.create_task(decide(box, asked())) for _ in range(2)]
            for _ in range(50):
                await asyncio.sleep(0)
            assert box.engine.in_flight == 2
            busy = await decide(box, asked())
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            box.engine.state = EngineState.DOWN
            down = await decide(box, asked())
            box.dispatcher.draining = True
            draining = await decide(box, asked())
            await box.at_rest()
            return busy, down, draining, [record.status for record in box.records]

    busy, down, draining, statuses = run(main)
    assert [error.code for error in (busy, down, draining)] == ["rejected_busy", "not_ready", "not_ready"]
    assert statuses.count(Status.REJECTED) == 3
    assert statuses.count(Status.CANCELLED) == 2


def test_hanging_up_at_any_moment_leaves_one_record_and_nothing_behind():
    """A client that leaves after so many turns of the loop, until one does not."""

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            for steps in range(500):
                box.engine.script(odds=odds(SURE, UNSURE, SURE))
                box.up.reply(text=json.dumps({"urgent": "1"}))
                request = asked()
                met = await cancel_after(steps, decide(box, request))
                records = [record for record in box.records if record.id == request.id]
                assert len(records) == (1 if steps else len(records))
                await box.at_rest()
                if not met:
                    return records[0]
        raise AssertionError("it never ends")

    assert run(main).status is Status.OK


def test_a_hedged_request_has_one_author_too():
    """The cloud is asked everything while the box is still at it; whoever is first answers all."""

    async def main():
        hedge = {"enabled": True, "after_s": 0.01, "max_share": 1.0}
        async with a_box(hedge=hedge) as box:
            box.engine.script(odds=odds(SURE, SURE, SURE), hang_after=1)
            box.up.reply(text=json.dumps(CLOUD))
            found = await decide(box, asked())
            await box.at_rest()
            return found

    assert {d.served_by for d in run(main).decided} == {Target.CLOUD}
