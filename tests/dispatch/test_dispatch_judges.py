"""What judges are asked, and what they are told of every question."""

import json
from dataclasses import replace

from decision_builders import DOUBT, TEAM, asked, decide, judged, posted, said
from dispatch_builders import a_box, run

from edged.core import (
    Locality,
    Reason,
    Status,
    Target,
)
from edged.errors import InvalidRequest
from edged.routing.decisions import FEWEST_STATES
from edged.testing import Reply


def test_what_is_not_to_be_trusted_at_all_always_goes():
    """However sure the model is; and where it may not go, it is marked."""

    async def main():
        async with a_box(thresholds={"confidence": 0}) as box:
            box.up.default = Reply(text=json.dumps({"urgent": "1"}))
            (left, kept), _ = await judged(box, asked(), asked(limits={"locality": "local_only"}), audits=False)
            return left, kept, box.records

    left, kept, records = run(main)
    assert said(left)["urgent"] == (Target.CLOUD, Reason.LOW_CONFIDENCE, 1)
    assert said(left)["team"] == (Target.LOCAL, Reason.WITHIN_BUDGET, 0)
    assert said(kept)["urgent"] == (Target.LOCAL, Reason.PRIVATE, 0)
    assert said(kept)["team"] == (Target.LOCAL, Reason.PINNED_LOCAL, 0)
    assert all(d.threshold is None for record in records for d in record.decisions if d.stage == "review")


def test_every_question_is_noted_once_with_what_the_cloud_said():
    """Of an escalated one at once; of one in the sample, once the cloud has been asked behind the record."""

    async def main():
        async with a_box(thresholds={"confidence": 0}) as box:
            box.up.reply(text=json.dumps({"urgent": "1"}))
            box.up.reply(text=json.dumps({"team": "shipping", "angry": True}))
            (found,), seen = await judged(box, asked())
            assert posted(box.up) == [["urgent"], ["team", "angry"]]
            return found, {one.standard.question.name: one for one in seen}, len(seen)

    _, seen, count = run(main)
    assert count == 3
    assert [(seen[name].label, seen[name].served_by) for name in ("team", "urgent", "angry")] == [
        (1, Target.LOCAL),
        (1, Target.CLOUD),
        (0, Target.LOCAL),
    ]
    assert all(one.is_audited and one.state == bytes(16) and one.task == "t" for one in seen.values())
    assert seen["team"].logprobs == ((-0.01,), (-8.0,))


def test_what_may_not_leave_is_noted_without_a_label():
    """And nobody is asked."""

    async def main():
        async with a_box(thresholds={"confidence": 0}) as box:
            _, seen = await judged(box, asked(limits={"locality": "local_only"}))
            assert not box.up.seen
            return seen

    seen = run(main)
    assert [(one.label, one.locality) for one in seen] == [(None, Locality.LOCAL_ONLY)] * 3


def test_a_task_is_asked_by_its_name():
    """One question, the task's own; a name that nobody knows is an error on the record."""

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            known = asked((), limits={"task": "intent"})
            (found, error), _ = await judged(box, known, asked((), limits={"task": "nobody"}), audits=False)
            return found, error, box.records

    found, error, records = run(main)
    assert said(found) == {"intent": (Target.LOCAL, Reason.WITHIN_BUDGET, 0)}
    assert isinstance(error, InvalidRequest)
    assert (error.code, error.param) == ("unknown_task", "task")
    assert [record.status for record in records] == [Status.OK, Status.REJECTED]
    assert records[0].task == "intent"


def test_what_is_usual_for_an_option_is_taken_off_in_time():
    """The same question asked often enough is judged by what its options usually get."""

    async def main():
        async with a_box(cloud=[]) as box:
            box.engine.default = replace(box.engine.default, odds=((-1.0, -5.0),))
            for _ in range(FEWEST_STATES):
                first = await decide(box, asked((TEAM,)))
            box.engine.script(odds=((-1.0, -4.0),))
            return first, await decide(box, asked((TEAM,)))

    first, later = run(main)
    assert (first.decided[0].place, first.decided[0].method) == (0, "mean_logprob")
    assert (later.decided[0].place, later.decided[0].method) == (1, "label_prior")
