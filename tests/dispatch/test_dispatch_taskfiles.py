"""Task files while requests come in: whose request it is, what holds for it, and what may be remembered."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from builders import a_request

from edged.calibration.artefact import Artefact, LabelSource, Level
from edged.calibration.certificate import Certificate
from edged.calibration.heads import Head, HeadKey
from edged.config import TaskFile
from edged.core import Clearance, Locality, OutputFormat, OutputKind, Target
from edged.core.questions import Question, QuestionKind, Seen, Standard
from edged.dispatch.tasks import TaskJudges
from edged.learning.learning import Learning, Tuning
from edged.learning.pupil import Standing
from edged.learning.store import read

KEY = HeadKey(model_sha256="m", template_sha256="t", sampler="score/f16", task="intent@0")
OPTIONS = ("PlayMusic", "GetWeather")
LOGPROBS = [[-0.1], [-4.0]]
FREE = Clearance(Locality.ANY)
MARKER = "zebra-crossing-4711"


class Standings:
    """Learning that only says what holds, and hears what is noted."""

    def __init__(self, **fields) -> None:
        self.now = Standing(**{"key": KEY, **fields})
        self.taken = []

    def standing(self, _task: str) -> Standing:
        return self.now

    def take(self, task, observation) -> None:
        self.taken.append((task, observation))


def a_task(**fields) -> TaskFile:
    document = {
        "name": "intent",
        "instructions": "Which intent?",
        "option": [{"name": name} for name in OPTIONS],
        "target": {"max_error": 0.05},
        "learn": {"enabled": True, "audit_share": 1.0},
    }
    return TaskFile.model_validate(document | fields)


def an_artefact(*, threshold: float | None = 0.8, level=Level.ZERO_SHOT, **fields) -> Artefact:
    certificate = Certificate(
        threshold=threshold or 0, alpha=0.05, delta=0.1, served=90, wrong=0, bound=0.03, coverage=0.7
    )
    values = {
        "key": KEY,
        "level": level,
        "source": LabelSource.GOLD,
        "threshold": threshold,
        "certificate": None if threshold is None else certificate,
        "labels": 340,
        "accuracy": 0.97,
        "auroc": None,
        "ece": None,
        "made_at": "2026-11-25T00:00:00Z",
    }
    return Artefact(**values | fields)


def judges(*tasks, **fields):
    learning = Standings(**fields)
    return TaskJudges(tasks or (a_task(),), learning=learning, model_of=lambda _: "small"), learning


def a_question(**fields) -> Question:
    return Question(**{"name": "q", "kind": QuestionKind.CHOICE, "options": OPTIONS, **fields})


def of_enum(*values: str) -> OutputFormat:
    return OutputFormat(OutputKind.JSON_SCHEMA, json.dumps({"type": "string", "enum": values}))


def standard_of(found: TaskJudges, question=None, *, model="small", threshold=0.5, **fields) -> Standard:
    request = a_request(**{"clearance": FREE, **fields})
    return found.standard(request, question or a_question(), model=model, threshold=threshold)


def seen(standard: Standard, **fields) -> Seen:
    values = {
        "request_id": "r",
        "model": "small",
        "tenant": "kitchen",
        "locality": Locality.ANY,
        "logprobs": ((-0.1,), (-4.0,)),
        "state": b"\0\x3c",
        "choice": 0,
        "confidence": 0.9,
        "served_by": Target.CLOUD,
        "label": 1,
        "is_audited": False,
        "received_at": 1e9,
    }
    return Seen(standard=standard, **values | fields)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"limits": {"task": "intent"}}, True),
        ({"limits": {"task": "intent"}, "model": "other"}, False),
        ({"limits": {"task": "code"}}, False),
        ({"limits": {"task": "code"}, "output": of_enum(*OPTIONS)}, False),
        ({"output": of_enum(*OPTIONS)}, True),
        ({"output": of_enum(*reversed(OPTIONS))}, True),
        ({"output": of_enum(*OPTIONS), "model": "other"}, False),
        ({"output": of_enum(*OPTIONS, "More")}, False),
        ({"output": OutputFormat(OutputKind.JSON_SCHEMA, "[" * 9_000)}, False),
        ({"output": OutputFormat(OutputKind.JSON_SCHEMA, "7")}, False),
        ({}, False),
    ],
)
def test_a_request_is_a_tasks_by_name_or_by_schema_and_on_its_route(fields, found) -> None:
    """Another name is a kind of query, another route another policy: the request stays what it was."""
    question = judges()[0].question_of(a_request(**fields))
    assert (question is not None) is found
    assert question is None or question.instructions == "Which intent?"


def test_tasks_alike_are_served_by_name_alone() -> None:
    """A schema that could mean either means neither."""
    found, _ = judges(a_task(), a_task(name="mood"))
    assert found.question_of(a_request(output=of_enum(*OPTIONS))) is None
    assert found.question_of(a_request(limits={"task": "mood"})).name == "mood"


def test_a_task_with_a_schema_or_free_text_has_no_question_of_options() -> None:
    """It is recognised all the same."""
    found, _ = judges(a_task(option=[], learn={}))
    request = a_request(limits={"task": "intent"})
    assert found.question_of(request) is None
    assert found.task_of(request).name == "intent"


@pytest.mark.parametrize(
    ("question", "is_tasks"),
    [
        (a_question(), True),
        (a_question(options=OPTIONS[::-1]), True),
        (a_question(instructions="Which intent?"), True),
        (a_question(instructions="Which of these is longer?"), False),
        (a_question(options=("PlayMusic", "Other")), False),
        (a_question(kind=QuestionKind.SCORE), False),
    ],
)
def test_only_what_the_task_asks_is_judged_as_the_task(question, is_tasks) -> None:
    """The same options under other words are another question: nothing was measured of it."""
    found, _ = judges(artefact=an_artefact(), version=1)
    standard = standard_of(found, question)
    assert (standard.task == "intent") is is_tasks
    assert standard.threshold == (0.8 if is_tasks else 0.5)
    assert standard.question.options == (OPTIONS if is_tasks else question.options)


def test_the_certificates_threshold_takes_the_routes_place_and_a_request_may_only_tighten_it() -> None:
    """What was measured says from where on answers are served."""
    found, _ = judges(artefact=an_artefact(), version=1)
    assert standard_of(found, threshold=0.99).threshold == 0.8
    assert standard_of(found, limits={"min_confidence": 0.9}).threshold == 0.9
    assert standard_of(found, limits={"min_confidence": 0.1}).threshold == 0.8
    assert "at most 5 % error, confidence 90 %, from 340 labels" in standard_of(found).certificate


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"artefact": an_artefact(threshold=None)}, "no threshold keeps the target"),
        ({"problem": "stale: made for another model_sha256"}, "stale: made for another model_sha256"),
        ({"key": None, "problem": "the model's file cannot be read"}, "cannot be read"),
    ],
)
def test_what_is_not_certified_is_never_served_on_its_confidence(fields, told) -> None:
    """No threshold at all: the route's own would let through what nobody measured."""
    standard = standard_of(judges(**fields)[0])
    assert standard.threshold is None
    assert "uncertified" in standard.certificate
    assert told in standard.certificate


def test_another_local_model_has_nothing_to_show() -> None:
    """A request that names the route but is served by other weights is uncertified."""
    assert standard_of(judges(artefact=an_artefact())[0], model="large").threshold is None


def test_a_verdict_is_the_artefacts() -> None:
    """Confidence as calibrated, method as measured; without an artefact by the options' scores."""
    artefact = an_artefact(level=Level.MAP, knots_x=np.array([0.0, 1.0]), knots_y=np.array([0.0, 0.5]))
    found, _ = judges(artefact=artefact, version=1)
    standard = standard_of(found)
    verdict = found.judge(a_request(), standard, LOGPROBS, model="small", state=None)
    assert (verdict.best, verdict.method) == (0, "map")
    assert verdict.confidence == pytest.approx(max(verdict.probabilities) / 2)
    found._learning.now = Standing(key=KEY)
    plain = found.judge(a_request(), standard_of(found), LOGPROBS, model="small", state=None)
    assert plain.method == "mean_logprob"


def test_a_version_that_takes_over_meanwhile_judges_the_next_request() -> None:
    """Threshold and confidence of one answer come of one artefact."""
    found, learning = judges(artefact=an_artefact(), version=1)
    standard = standard_of(found)
    learning.now = Standing(key=KEY)
    assert found.judge(a_request(), standard, LOGPROBS, model="small", state=None).method == "zero_shot"
    found.note(seen(standard))
    assert learning.taken[0][1].version == 1


def test_an_answer_the_artefact_cannot_judge_is_not_trusted() -> None:
    """Options that do not fit its prior: no confidence, no exception, one line in the log."""
    found, _ = judges(artefact=an_artefact(prior=(0.0, 0.0, 0.0)), version=1)
    standard = standard_of(found)
    assert found.judge(a_request(), standard, LOGPROBS, model="small", state=None).confidence == 0.0


def test_the_lot_falls_on_the_share_that_was_asked_for() -> None:
    """Whatever the request is, and the same for the same request."""
    found, _ = judges(a_task(learn={"enabled": True, "audit_share": 0.1}), artefact=an_artefact(), version=1)
    drawn = [standard_of(found, id=f"r{number}").is_audited for number in range(3_000)]
    assert 220 < sum(drawn) < 380
    assert drawn == [standard_of(found, id=f"r{number}").is_audited for number in range(3_000)]


@pytest.mark.parametrize("label", [Locality.REDACT, Locality.SITE_ONLY, Locality.LOCAL_ONLY])
def test_of_labelled_requests_nothing_is_kept_and_no_lot_is_drawn(label) -> None:
    """Nor is the model asked for a hidden state that nobody may keep."""
    found, learning = judges()
    standard = standard_of(found, clearance=Clearance(label))
    assert not standard.is_audited
    assert not standard.wants_state
    found.note(seen(standard, locality=label))
    found.note(seen(standard_of(found), locality=label))
    assert learning.taken == []


def test_a_task_that_does_not_learn_keeps_nothing() -> None:
    """Learning is opted into."""
    found, learning = judges(a_task(learn={}))
    standard = standard_of(found)
    assert not standard.is_audited
    assert not standard.wants_state
    found.note(seen(standard))
    found.note(seen(Standard(question=a_question(), threshold=0.5)))
    assert learning.taken == []


def test_an_artefact_on_hidden_states_asks_for_them() -> None:
    """Also of a request that may not be learnt from."""
    size = 5
    head = Head(
        classes=OPTIONS,
        mean=np.zeros(size),
        scale=np.ones(size),
        weights=np.zeros((2, size)),
        bias=np.zeros(2),
        knots_x=np.array([0.0]),
        knots_y=np.array([0.5]),
    )
    found, _ = judges(a_task(learn={}), artefact=an_artefact(level=Level.HIDDEN, head=head), version=1)
    standard = standard_of(found, clearance=Clearance(Locality.LOCAL_ONLY))
    assert standard.wants_state
    assert found.judge(a_request(), standard, LOGPROBS, model="small", state=b"\0\x3c").method == "hidden"
    assert found.judge(a_request(), standard, LOGPROBS, model="small", state=None).confidence == 0.0


def test_while_nothing_is_served_every_label_is_unbiased() -> None:
    """Later only those the lot fell on."""
    found, learning = judges()
    found.note(seen(standard_of(found)))
    learning.now = Standing(key=KEY, artefact=an_artefact(), version=3)
    found.note(seen(standard_of(found)))
    found.note(seen(standard_of(found), is_audited=True, served_by=Target.LOCAL))
    kept = [observation for _, observation in learning.taken]
    assert [one.is_unbiased for one in kept] == [True, False, True]
    assert [(one.is_local, one.version) for one in kept] == [(False, 0), (False, 3), (True, 3)]


def test_no_text_and_no_name_gets_into_what_is_kept(tmp_path: Path) -> None:
    """A search of every byte under the state directory; what carries a label leaves no file at all."""
    task = a_task()
    quick = Tuning(keep_every_s=0.01, look_every_s=0.01)
    learning = Learning([task], directory=tmp_path, key_of=lambda _: KEY, tuning=quick)
    found = TaskJudges([task], learning=learning, model_of=lambda _: "small")
    learning.start()
    try:
        due_s = time.monotonic() + 10
        while learning.standing("intent").key is None:
            assert time.monotonic() < due_s
            threading.Event().wait(0.005)
        labelled = standard_of(found, clearance=Clearance(Locality.LOCAL_ONLY))
        found.note(seen(labelled, request_id=MARKER, locality=Locality.LOCAL_ONLY))
        assert learning.stats.queued == 0
        standard = standard_of(found, a_question(name=MARKER), id=MARKER, tenant=MARKER)
        found.note(seen(standard, request_id=MARKER, tenant=MARKER))
    finally:
        assert learning.close(10)
    assert len(list(read(tmp_path / "intent"))) == 1
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or MARKER.encode() not in path.read_bytes()
