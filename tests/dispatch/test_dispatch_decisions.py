"""Questions between the box and the cloud: who answers which, and the one record."""

import json
from dataclasses import replace

import pytest
from decision_builders import ALL, CLOUD, DOUBT, SURE, TEAM, UNSURE, asked, decide, odds, posted, said
from dispatch_builders import a_box, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.core import (
    Locality,
    Outcome,
    Reason,
    Status,
    Target,
)
from edged.core.questions import Question, QuestionKind
from edged.dispatch.veil import Veil
from edged.testing import Reply


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
    assert (urgent.trusted, team.trusted) == (False, True)
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


def test_more_options_than_one_command_takes_are_scored_in_turn():
    """300 options in three questions: two commands under the request's own name, and one answer."""
    many = [replace(TEAM, name=name, options=tuple(f"{name}{i}" for i in range(100))) for name in "xyz"]
    commands = []

    async def main():
        async with a_box(cloud=[]) as box:
            score = box.engine.score

            async def watched(request, items, **fields):
                commands.append((request.id, [len(item.options) for item in items]))
                return await score(request, items, **fields)

            box.engine.score = watched
            found = await decide(box, asked(many))
            await box.at_rest()
            return found, box.record

    found, record = run(main)
    assert [d.place for d in found.decided] == [0, 0, 0]
    assert commands == [(record.id, [100, 100]), (record.id, [100])]


def test_a_deadline_counts_what_is_computed_not_an_answer_that_nobody_writes():
    """At two tokens a second a usual answer would be late; the options are there in time."""

    async def main():
        async with a_box(thresholds={"ttft_s": 60}) as box:
            box.engine.worker = {"prefill_tps": 1_000.0, "decode_tps": 2.0}
            found = await decide(box, asked(limits={"deadline_s": 5.0}))
            assert not box.up.seen
            return found

    assert {d.reason for d in run(main).decided} == {Reason.WITHIN_BUDGET}
