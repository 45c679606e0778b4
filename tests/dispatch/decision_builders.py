"""Questions, and what box and cloud make of them."""

import asyncio
import time
from dataclasses import replace

from builders import a_request

from edged.core import (
    Completion,
    Limits,
    Locality,
)
from edged.core.questions import Question, QuestionKind, QuestionsRequest, Standard
from edged.dispatch.audit import Auditor
from edged.dispatch.judging import PlainJudges
from edged.errors import EdgedError

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
