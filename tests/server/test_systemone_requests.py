"""What a body of ``/v1/systemone`` may hold, every limit by the field it names."""

import json

import pytest

from edged.core.questions import Example, QuestionKind
from edged.errors import InvalidRequest, Unsupported
from edged.server import systemone_requests as limits
from edged.server.systemone_requests import systemone_request

TEAM = {"type": "choice", "instructions": "Which team?", "criteria": {"billing": None, "shipping": "parcels"}}
URGENT = {"type": "score", "instructions": "How urgent?", "criteria": ["later", "now"]}
ANGRY = {"type": "noul", "instructions": "Angry?"}
ALL = {"team": TEAM, "urgent": URGENT, "angry": ANGRY}


def parsed(header=None, **body):
    body = {"state": "It broke.", "questions": ALL, **body}
    document = {key: value for key, value in body.items() if value is not ...}
    return systemone_request(document, header=header, id="r", received_s=1.0, tenant="t")


def test_the_three_kinds_of_question():
    """As llama-server's README shows them; ``model`` may be left out."""
    request = parsed()
    team, urgent, angry = request.questions
    assert (request.model, request.api, request.state, request.input.prompt) == (
        "auto",
        "systemone",
        *["It broke."] * 2,
    )
    assert (team.name, team.kind, team.options, team.notes) == (
        "team",
        QuestionKind.CHOICE,
        ("billing", "shipping"),
        (None, "parcels"),
    )
    assert (urgent.kind, urgent.options, urgent.notes) == (QuestionKind.SCORE, ("later", "now"), ())
    assert (angry.kind, angry.options, angry.notes) == (QuestionKind.NOUL, ("yes", "no"), ())


@pytest.mark.parametrize("value", [{"a": [1, "ü"]}, ["a", {"role": "user", "content": "hi"}], [], {}])
def test_what_is_no_string_is_given_as_json_text(value):
    """State and instructions, readable as they were."""
    question = {**ANGRY, "instructions": value or "x"}
    request = parsed(state=value, questions={"q": question})
    assert json.loads(request.state) == value
    if value:
        assert json.loads(request.questions[0].instructions) == value


def test_a_noul_may_describe_both_answers():
    """Descriptions may be anything JSON that says something."""
    question = {**ANGRY, "criteria": {"false": "calm", "true": {"signs": ["shouts"]}}}
    (found,) = parsed(questions={"q": question}).questions
    assert found.notes == ('{"signs": ["shouts"]}', "calm")


def test_examples_name_answers_as_answers_are_given():
    """An option; an index of a level; true or false."""
    request = parsed(
        questions={
            "team": {**TEAM, "examples": [{"state": "double charge", "answer": "billing"}]},
            "urgent": {**URGENT, "examples": [{"state": {"a": 1}, "answer": 1}]},
            "angry": {"type": "noul", "examples": [{"state": "!!!", "answer": True}, {"state": ".", "answer": False}]},
        }
    )
    assert [question.examples for question in request.questions] == [
        (Example("double charge", "billing"),),
        (Example('{"a": 1}', "now"),),
        (Example("!!!", "yes"), Example(".", "no")),
    ]


@pytest.mark.parametrize(
    ("body", "header"),
    [
        ({"task": "intent"}, None),
        ({"edged": {"task": "intent"}}, None),
        ({"task": "intent", "edged": {"task": "intent", "min_confidence": 0.5}}, None),
        ({}, '{"task": "intent"}'),
    ],
)
def test_a_task_stands_for_questions(body, header):
    """By its short field, by ``edged.task`` or by the header."""
    request = parsed(questions=..., header=header, **body)
    assert (request.limits.task, request.questions) == ("intent", ())


def test_a_task_may_say_what_is_asked():
    """A question of a task's options needs no instructions of its own."""
    (found,) = parsed(task="intent", questions={"q": {"type": "choice", "criteria": {"a": None, "b": None}}}).questions
    assert (found.instructions, found.options) == ("", ("a", "b"))


def question(**changes):
    return {"questions": {"q": {**TEAM, **changes}}}


def many(count):
    return {f"o{i}": None for i in range(count)}


WRONG = [
    ({"state": ...}, "state", "missing_required_parameter"),
    ({"state": None}, "state", "invalid_type"),
    ({"state": 5}, "state", "invalid_type"),
    ({"state": ""}, "state", "invalid_value"),
    ({"questions": ...}, "questions", "missing_required_parameter"),
    ({"questions": {}}, "questions", "invalid_value"),
    ({"questions": []}, "questions", "invalid_type"),
    ({"questions": {f"q{i}": ANGRY for i in range(limits.MAX_QUESTIONS + 1)}}, "questions", "invalid_value"),
    ({"questions": {"": ANGRY}}, "questions", "invalid_value"),
    ({"questions": {"q" * (limits.MAX_NAME_CHARS + 1): ANGRY}}, "questions", "invalid_value"),
    ({"questions": {"q": 5}}, "questions.q", "invalid_type"),
    ({"questions": {"q": {"instructions": "?"}}}, "questions.q.type", "missing_required_parameter"),
    (question(type="rank"), "questions.q.type", "invalid_value"),
    (question(weight=1), "questions.q.weight", "unknown_parameter"),
    (question(instructions=None), "questions.q.instructions", "missing_required_parameter"),
    (question(instructions=7), "questions.q.instructions", "invalid_type"),
    (question(instructions="x" * (limits.MAX_INSTRUCTIONS_CHARS + 1)), "questions.q.instructions", "invalid_value"),
    (question(criteria=None), "questions.q.criteria", "invalid_type"),
    (question(criteria=["a", "b"]), "questions.q.criteria", "invalid_type"),
    (question(criteria=many(1)), "questions.q.criteria", "invalid_value"),
    (question(criteria=many(limits.MAX_OPTIONS + 1)), "questions.q.criteria", "invalid_value"),
    (question(criteria={"a": None, " ": None}), "questions.q.criteria. ", "invalid_value"),
    (question(criteria={"a": 5, "b": None}), "questions.q.criteria.a", "invalid_type"),
    (question(criteria={"a": "x" * (limits.MAX_NOTE_CHARS + 1), "b": None}), "questions.q.criteria.a", "invalid_value"),
    (question(type="score"), "questions.q.criteria", "invalid_type"),
    (question(type="score", criteria=["low"]), "questions.q.criteria", "invalid_value"),
    (question(type="score", criteria=["x"] * (limits.MAX_LEVELS + 1)), "questions.q.criteria", "invalid_value"),
    (question(type="score", criteria=["low", None]), "questions.q.criteria[1]", "invalid_type"),
    (question(type="score", criteria=["low", ""]), "questions.q.criteria[1]", "invalid_value"),
    (
        question(type="score", criteria=["low", "x" * (limits.MAX_OPTION_CHARS + 1)]),
        "questions.q.criteria[1]",
        "invalid_value",
    ),
    (question(type="noul", criteria=["a", "b"]), "questions.q.criteria", "invalid_type"),
    (question(type="noul", criteria={"maybe": "x"}), "questions.q.criteria.maybe", "unknown_parameter"),
    (question(examples=[{"state": "s"}]), "questions.q.examples[0].answer", "missing_required_parameter"),
    (question(examples=[{"state": None, "answer": "billing"}]), "questions.q.examples[0].state", "invalid_type"),
    (question(examples=[{"state": "s", "answer": "sales"}]), "questions.q.examples[0].answer", "invalid_value"),
    (
        question(examples=[{"state": "s", "answer": "billing"}] * (limits.MAX_EXAMPLES + 1)),
        "questions.q.examples",
        "invalid_value",
    ),
    (
        question(type="score", criteria=["a", "b"], examples=[{"state": "s", "answer": 2}]),
        "questions.q.examples[0].answer",
        "invalid_value",
    ),
    (
        question(type="noul", criteria=None, examples=[{"state": "s", "answer": "yes"}]),
        "questions.q.examples[0].answer",
        "invalid_value",
    ),
    ({"questions": {f"q{i}": {**TEAM, "criteria": many(128)} for i in range(9)}}, "questions", "invalid_value"),
    ({"model": ""}, "model", "invalid_value"),
    ({"task": "a b"}, "task", "invalid_value"),
    ({"task": "a", "edged": {"task": "b"}}, "task", "invalid_value"),
    ({"edged": {"min_confidence": 2}}, "edged.min_confidence", "invalid_value"),
    ({"temperature": 0}, "temperature", "unknown_parameter"),
]


@pytest.mark.parametrize(("body", "param", "code"), WRONG)
def test_an_error_names_the_field(body, param, code):
    """And its limit, where there is one."""
    with pytest.raises(InvalidRequest) as caught:
        parsed(**body)
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, code, 400)


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"files": ["data:image/png;base64,AA"]}, "files"),
        ({"images": ["data:image/png;base64,AA"]}, "images"),
        ({"state": [{"role": "user", "content": [IMAGE]}]}, "state[0].content[0]"),
        ({"state": {"messages": [{}, {"content": [{"type": "text"}, IMAGE]}]}}, "state.messages[1].content[1]"),
        ({"state": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "state[0].content[0]"),
    ],
)
def test_images_are_refused_as_by_a_server_that_does_not_see(body, param):
    """501, and the place of the first one."""
    with pytest.raises(Unsupported) as caught:
        parsed(**body)
    assert (caught.value.param, caught.value.code, caught.value.status) == (param, "unsupported_parameter", 501)


def test_nothing_shown_and_nothing_streamed_is_fine():
    """Empty lists and null ask for nothing; a stream is refused."""
    assert parsed(files=[], images=None, stream=False).questions
    with pytest.raises(Unsupported) as caught:
        parsed(stream=True)
    assert caught.value.param == "stream"
