"""Questions between the box and the cloud: who answers which, and the one record."""

import asyncio
import json
import time
from dataclasses import replace

import pytest
from builders import a_request
from dispatch_builders import a_box, cancel_after, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.core import (
    Chat,
    Completion,
    EngineState,
    Limits,
    Locality,
    Message,
    Outcome,
    OutputFormat,
    OutputKind,
    Reason,
    Role,
    Status,
    Target,
)
from edged.core.questions import Question, QuestionKind, QuestionsRequest, Standard
from edged.dispatch.audit import Auditor
from edged.dispatch.judging import PlainJudges
from edged.dispatch.veil import Veil
from edged.errors import EdgedError, InvalidRequest, WorkerLost
from edged.routing.decisions import FEWEST_STATES
from edged.testing import Reply

TEAM = Question(name="team", kind=QuestionKind.CHOICE, options=("billing", "shipping"), instructions="Which team?")
URGENT = Question(name="urgent", kind=QuestionKind.SCORE, options=("later", "soon", "now"), instructions="How urgent?")
ANGRY = Question(name="angry", kind=QuestionKind.NOUL, options=("yes", "no"), instructions="Angry?")
ALL = (TEAM, URGENT, ANGRY)
SURE, UNSURE = (-0.01, -8.0, -8.0), (-1.0, -1.1, -1.2)
CLOUD = {"team": "shipping", "urgent": "2", "angry": False}
DOUBT = {"confidence": 0.9}


def asked(questions=ALL, *, limits=None, model="auto", **fields):
    limits = dict(limits or {})
    limits["locality"] = Locality(limits.get("locality", "any"))
    made = a_request()
    return QuestionsRequest(
        id=made.id,
        model=model,
        input=Completion("It broke."),
        received_s=time.monotonic(),
        state="It broke.",
        questions=tuple(questions),
        limits=Limits(**limits),
        api="systemone",
        **fields,
    )


def odds(*rows, questions=ALL):
    """Log-probabilities of each question's options, as many as it has."""
    return [row[: len(question.options)] for row, question in zip(rows, questions, strict=True)]


async def decide(box, request):
    """The decisions, or the error."""
    try:
        async with box.dispatcher.decide(request) as found:
            return found
    except EdgedError as exc:
        return exc


def said(found):
    """Of each question who answered, why, and what."""
    return {d.question.name: (d.served_by, d.reason, d.place) for d in found.decided}


def posted(up):
    """What an upstream was asked: the properties of each call's schema."""
    schemas = [seen.body["response_format"]["json_schema"]["schema"] for seen in up.seen]
    return [list(schema["properties"]) for schema in schemas]


def test_what_the_box_is_sure_of_stays():
    """One prompt after the other is scored, nothing is called; the least confidence is the record's."""

    async def main():
        async with a_box(thresholds={"confidence": 0.8}) as box:
            box.engine.script(odds=odds(SURE, (-0.2, -3.0, -3.0), SURE))
            found = await decide(box, asked())
            assert said(found) == dict.fromkeys(("team", "urgent", "angry"), (Target.LOCAL, Reason.WITHIN_BUDGET, 0))
            assert not box.up.seen
            await box.at_rest()
            return found, box.record

    found, record = run(main)
    assert record.confidence == min(d.confidence for d in found.decided)
    assert (record.status, record.api, record.served_by) == (Status.OK, "systemone", Target.LOCAL)
    assert record.attempts[0].outcome is Outcome.SERVED
    assert record.decisions[-1].threshold == 0.8
    assert {d.method for d in found.decided} == {"mean_logprob"}


def test_only_what_is_undecided_goes_and_in_one_call():
    """The cloud is asked two of three questions once; its answers are certain of nothing but themselves."""

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            box.engine.script(odds=odds(SURE, UNSURE, UNSURE))
            box.up.reply(text=json.dumps({"urgent": "2", "angry": False}))
            found = await decide(box, asked())
            assert posted(box.up) == [["urgent", "angry"]]
            assert box.up.seen[0].body["response_format"]["json_schema"]["strict"] is True
            await box.at_rest()
            return found, box.record

    found, record = run(main)
    assert said(found) == {
        "team": (Target.LOCAL, Reason.WITHIN_BUDGET, 0),
        "urgent": (Target.CLOUD, Reason.LOW_CONFIDENCE, 2),
        "angry": (Target.CLOUD, Reason.LOW_CONFIDENCE, 1),
    }
    team, urgent, angry = found.decided
    assert (urgent.probabilities, angry.probabilities) == ((0.0, 0.0, 1.0), (0.0, 1.0))
    assert (urgent.method, team.method) == ("cloud", "mean_logprob")
    assert urgent.confidence < 0.5 < team.confidence
    assert (record.served_by, record.reason) == (Target.CLOUD, Reason.LOW_CONFIDENCE)
    assert [(a.target, a.outcome) for a in record.attempts] == [
        (Target.LOCAL, Outcome.SERVED),
        (Target.CLOUD, Outcome.SERVED),
    ]
    assert record.served.target is Target.CLOUD
    assert record.confidence == min(d.confidence for d in found.decided)
    assert record.cost_uusd == record.attempts[1].cost_uusd > 0


def test_an_answer_that_nobody_used_is_discarded():
    """All of it went to the cloud."""

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            box.engine.script(odds=odds(UNSURE, UNSURE, UNSURE))
            box.up.reply(text=json.dumps(CLOUD))
            found = await decide(box, asked())
            assert {d.served_by for d in found.decided} == {Target.CLOUD}
            return box.record

    assert [a.outcome for a in run(main).attempts] == [Outcome.DISCARDED, Outcome.SERVED]


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


class Strict(PlainJudges):
    """Knows a task, trusts the model with one question not at all, and draws the lot for all."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def question_of(self, request):
        return replace(TEAM, name="intent") if request.limits.task == "intent" else None

    def standard(self, request, question, *, model, threshold):
        limit = None if question.name == "urgent" else threshold
        return Standard(question=question, threshold=limit, task="t", is_audited=True, wants_state=True)

    def note(self, seen):
        self.seen.append(seen)


async def judged(box, *requests, audits=True):
    """What these requests teach, once nothing is asked any more."""
    judges = box.dispatcher._judges = Strict()
    auditor = box.dispatcher._auditor = Auditor(box.cloud, [].append) if audits else None
    found = [await decide(box, request) for request in requests]
    if auditor is not None and auditor.open:
        await asyncio.wait(set(auditor._tasks))
        await asyncio.sleep(0)
    return found, judges.seen


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


names = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    questions=names.flatmap(
        lambda letters: st.tuples(
            *(
                st.tuples(st.just(letter), st.sampled_from(ALL), st.booleans(), st.integers(0, 1), st.integers(0, 1))
                for letter in letters
            )
        )
    ),
    cloud_works=st.booleans(),
)
def test_any_partition_between_box_and_cloud_is_merged_right(questions, cloud_works):
    """Each question has the answer of whoever gave it, the cloud was asked exactly what was undecided, once, and there
    is one record."""
    asked_for = tuple(replace(question, name=letter) for letter, question, *_ in questions)

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            rows = []
            for _, question, sure, local, _ in questions:
                row = [-8.0 if sure else -1.2] * len(question.options)
                row[local] = -0.01 if sure else -1.0
                rows.append(row)
            box.engine.script(odds=rows)
            box.up.default = Reply(status=500)
            if cloud_works:
                answers = {
                    letter: {"team": question.options[place], "urgent": str(place), "angry": place == 0}[question.name]
                    for letter, question, sure, _, place in questions
                    if not sure
                }
                box.up.default = Reply(text=json.dumps(answers))
            found = await decide(box, asked(asked_for))
            await box.at_rest()
            return found, posted(box.up), box.record

    found, calls, record = run(main)
    undecided = [letter for letter, _, sure, _, _ in questions if not sure]
    assert calls == ([undecided] if undecided else [])
    for decided, (letter, _, sure, local, cloud) in zip(found.decided, questions, strict=True):
        by_cloud = not sure and cloud_works
        assert decided.question.name == letter
        assert (decided.served_by, decided.place) == ((Target.CLOUD, cloud) if by_cloud else (Target.LOCAL, local))
        assert sum(decided.probabilities) == pytest.approx(1.0)
    by_cloud = bool(undecided) and cloud_works
    assert record.served_by is (Target.CLOUD if by_cloud else Target.LOCAL)
    assert len([a for a in record.attempts if a.target is Target.CLOUD]) == len(calls)
    assert record.confidence == min(d.confidence for d in found.decided)


# -- chat ------------------------------------------------------------------------------------------------------------

INTENT = {
    "type": "object",
    "properties": {"intent": {"type": "string", "enum": ["play", "stop"]}},
    "required": ["intent"],
    "additionalProperties": False,
}


def a_chat(schema=None, **fields):
    output = OutputFormat(OutputKind.JSON_SCHEMA, json.dumps(INTENT if schema is None else schema), "x", strict=True)
    return a_request(text="some jazz please", output=output, **fields)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_chat_with_a_closed_set_of_answers_is_scored(stream):
    """The likeliest option is the whole answer, its probability the confidence; nothing is generated."""

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            box.engine.script(odds=[(-6.0, -0.01)])
            seen = await box.ask(a_chat(stream=stream))
            await box.at_rest()
            return seen, box.record

    seen, record = run(main)
    assert json.loads(seen.text) == {"intent": "stop"}
    assert seen.chunks[-1].finish == "stop"
    assert seen.chunks[-1].usage.completion_tokens == 1
    assert (seen.head.served_by, seen.head.reason) == (Target.LOCAL, Reason.WITHIN_BUDGET)
    assert seen.head.confidence == record.confidence > 0.99
    assert (record.task, record.task_source) == ("labels", "detected")


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_doubtful_choice_escalates_as_any_answer(stream):
    """With the request as it came; where the cloud fails, the choice stands."""

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            box.engine.default = replace(box.engine.default, odds=[UNSURE[:2]])
            box.up.reply(text='{"intent": "stop"}')
            left = await box.ask(a_chat(stream=stream))
            box.up.default = Reply(status=500)
            stayed = await box.ask(a_chat(stream=stream))
            await box.at_rest()
            return left, stayed, box.up.seen[0].body

    left, stayed, body = run(main)
    assert (left.head.served_by, left.head.reason, json.loads(left.text)) == (
        Target.CLOUD,
        Reason.LOW_CONFIDENCE,
        {"intent": "stop"},
    )
    assert body["messages"] == [{"role": "user", "content": "some jazz please"}]
    assert (stayed.head.reason, json.loads(stayed.text)) == (Reason.CLOUD_UNAVAILABLE, {"intent": "play"})


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 2},
        {"top_logprobs": 0},
        {"stop": ("x",)},
        {"max_tokens": 5},
        {"schema": {"type": "string", "enum": ["only"]}},
        {"schema": {**INTENT, "properties": {**INTENT["properties"], "more": {"type": "string"}}}},
    ],
)
def test_what_needs_one_token_after_the_other_is_generated(fields):
    """Several choices, log-probabilities, stop strings, a length that an answer may not fit, another schema."""

    async def main():
        async with a_box(cloud=[]) as box:
            box.engine.script(text='{"intent": "play"}')
            seen = await box.ask(a_chat(**fields))
            return [token for chunk in seen.chunks for token in chunk.tokens]

    assert run(main)


def test_a_chat_of_a_task_is_put_as_the_task_says():
    """One user's message is the state of the task's own question; its options are the schema's, in any order."""
    prompts = []

    class Known(Strict):
        def question_of(self, request):
            return Question(name="t", kind=QuestionKind.CHOICE, options=("stop", "play"), instructions="Which?")

    async def main():
        async with a_box(cloud=[]) as box:
            judges = box.dispatcher._judges = Known()
            score = box.engine.score

            async def watched(request, items, **fields):
                prompts.extend(items)
                return await score(request, items, **fields)

            box.engine.score = watched
            seen = await box.ask(a_chat())
            two = a_request(output=a_chat().output)
            two = replace(
                two, input=Chat((*two.input.messages, Message(Role.ASSISTANT, "hm"), Message(Role.USER, "again")))
            )
            await box.ask(two)
            return seen, judges.seen

    seen, noted = run(main)
    assert json.loads(seen.text) == {"intent": "stop"}
    assert prompts[0].options == (" stop", " play")
    assert "some jazz please\n\nQuestion: Which?" in prompts[0].prompt
    assert isinstance(prompts[1].prompt, Chat)
    assert prompts[1].options == ("play", "stop")
    assert [one.choice for one in noted] == [0, 0]


def test_what_the_cloud_says_of_a_chat_is_its_label():
    """Escalated, the option is known by its JSON; what is none of them labels nothing."""

    async def main():
        async with a_box(thresholds=DOUBT) as box:
            judges = box.dispatcher._judges = Strict()
            box.engine.default = replace(box.engine.default, odds=[UNSURE[:2]])
            box.up.reply(text='{"intent":"stop"}')
            await box.ask(a_chat())
            box.up.reply(text="pardon?")
            await box.ask(a_chat())
            return judges.seen

    assert [(one.label, one.served_by) for one in run(main)] == [(1, Target.CLOUD), (None, Target.CLOUD)]


# -- privacy ---------------------------------------------------------------------------------------------------------


def test_personal_data_is_hidden_in_state_and_options_and_comes_back():
    """The upstream chooses among placeholders; the client hears the option it named."""
    mail = "anna.mueller@example.com"
    question = Question(name="who", kind=QuestionKind.CHOICE, options=("nobody", mail), instructions=f"Is it {mail}?")

    def the_last_option(seen):
        (schema,) = seen.body["response_format"]["json_schema"]["schema"]["properties"].values()
        return Reply(text=json.dumps({"who": schema["enum"][-1]}))

    async def main():
        async with a_box(thresholds={"confidence": 1.0}) as box:
            box.cloud._veil = Veil(box.dispatcher._config)
            box.up.respond = the_last_option
            request = replace(asked((question,), limits={"locality": "redact"}), state=f"Written by {mail}.")
            found = await decide(box, request)
            assert mail not in json.dumps(box.up.seen[0].body)
            return found, box.record

    found, record = run(main)
    assert (found.decided[0].served_by, found.decided[0].place) == (Target.CLOUD, 1)
    assert (record.locality, record.redacted) == (Locality.REDACT, (("email", 1),))
    assert record.prompt_text is None
