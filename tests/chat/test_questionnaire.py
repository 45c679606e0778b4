"""Questions as a chat whose answer is one JSON object."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.chat.questionnaire import as_chat, read, written
from edged.core import Clearance, Completion, Limits, Locality, Role
from edged.core.questions import Example, Question, QuestionKind, QuestionsRequest

TEAM = Question(
    name="team",
    kind=QuestionKind.CHOICE,
    options=("billing", "ship\nping"),
    instructions="Which team?",
    notes=("money", None),
    examples=(Example("I was charged twice", "billing"),),
)
URGENT = Question(name="urgent", kind=QuestionKind.SCORE, options=("later", "now"), instructions="How urgent?")
ANGRY = Question(
    name="angry", kind=QuestionKind.NOUL, options=("yes", "no"), instructions="Angry?", notes=("shouts", None)
)
ALL = (TEAM, URGENT, ANGRY)


def asked(questions=ALL, **fields):
    known = {"id": "r", "model": "auto", "received_s": 1.0, "tenant": "t", "api": "systemone"}
    return QuestionsRequest(**known, input=Completion("s"), state="the state", questions=questions, **fields)


def test_questions_become_a_chat_with_a_strict_schema():
    """One property per question; the state alone is the user's turn; labels and limits go with it."""
    limits, clearance = Limits(max_cost_uusd=5), Clearance(Locality.REDACT)
    request = as_chat(asked(limits=limits, clearance=clearance), ALL)
    schema = json.loads(request.output.definition)
    assert schema == {
        "type": "object",
        "properties": {
            "team": {"type": "string", "enum": ["billing", "ship\nping"]},
            "urgent": {"type": "string", "enum": ["0", "1"]},
            "angry": {"type": "boolean"},
        },
        "required": ["team", "urgent", "angry"],
        "additionalProperties": False,
    }
    assert request.output.strict
    system, user = request.input.messages
    assert (system.role, user.role, user.text) == (Role.SYSTEM, Role.USER, "the state")
    for part in ('"billing": money', '"0": later', "true: shouts", '"I was charged twice" -> "billing"', "Angry?"):
        assert part in system.text
    assert (request.id, request.tenant, request.api, request.limits) == ("r", "t", "systemone", limits)
    assert request.clearance is clearance
    assert type(request).__name__ == "Request"


def test_only_the_questions_put_are_asked():
    """The others are not in it by any word."""
    request = as_chat(asked(), (ANGRY,))
    assert list(json.loads(request.output.definition)["properties"]) == ["angry"]
    assert "team" not in request.input.messages[0].text


def test_names_that_a_schema_may_not_hold_become_numbers():
    """In the schema and in the answer alike."""
    odd = (Question(name="is it ok?", kind=QuestionKind.NOUL, options=("yes", "no")), URGENT)
    assert list(json.loads(as_chat(asked(odd), odd).output.definition)["properties"]) == ["q1", "q2"]
    assert read('{"q1": false, "q2": "1"}', odd) == (1, 1)


places = st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 1))


@given(places)
def test_what_is_written_is_read(chosen):
    """Every combination of answers survives the way there and back."""
    assert read(written(ALL, chosen), ALL) == chosen


@pytest.mark.parametrize(
    "text",
    [
        "",
        "billing",
        "[]",
        "null",
        "[" * 100_000,
        "{}",
        '{"team": "billing", "urgent": "1"}',
        '{"team": "sales", "urgent": "1", "angry": true}',
        '{"team": "billing", "urgent": 1, "angry": true}',
        '{"team": "billing", "urgent": "2", "angry": true}',
        '{"team": "billing", "urgent": "1", "angry": "true"}',
        '{"team": "billing", "urgent": "1", "angry": 1}',
        '{"team": "billing", "urgent": "1", "angry": tr',
    ],
)
def test_anything_but_one_option_each_is_no_answer(text):
    """Missing, of another type, outside the options, or no JSON at all."""
    with pytest.raises(ValueError):
        read(text, ALL)
