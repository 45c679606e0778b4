"""The small labelled set that ships with edged: original questions with four options, and utterances with an intent."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from edged.engine.probe_protocol import Question


@dataclass(frozen=True, slots=True)
class Task:
    """Questions with the index of the right option. ``prefix`` comes before each of them.

    Where all share their options (``fixed_labels``), a model's taste for a label can be told from its answers and
    taken off.
    """

    name: str
    prefix: str
    questions: tuple[Question, ...]
    answers: tuple[int, ...]
    fixed_labels: bool

    def first(self, count: int) -> "Task":
        return Task(self.name, self.prefix, self.questions[:count], self.answers[:count], self.fixed_labels)


def built_in() -> tuple[Task, ...]:
    """Both tasks, in the order they are asked."""
    return (_facts(_lines("facts")), _intents(_lines("intents")))


def all_text(tasks: Sequence[Task]) -> str:
    """Ordinary text to take times with."""
    return " ".join(question.prompt for task in tasks for question in task.questions)


def _facts(lines: list[dict[str, Any]]) -> Task:
    questions = tuple(
        Question(f"Question: {line['question']}\nAnswer:", tuple(f" {option}" for option in line["options"]))
        for line in lines
    )
    return Task("facts", "", questions, tuple(line["answer"] for line in lines), fixed_labels=False)


def _intents(lines: list[dict[str, Any]]) -> Task:
    labels = sorted({line["intent"] for line in lines})
    shown = [line for line in lines if line.get("example")]
    asked = [line for line in lines if not line.get("example")]
    prefix = "".join(f"Request: {line['text']}\nTopic: {line['intent']}\n\n" for line in shown)
    options = tuple(f" {label}" for label in labels)
    questions = tuple(Question(f"Request: {line['text']}\nTopic:", options) for line in asked)
    answers = tuple(labels.index(line["intent"]) for line in asked)
    return Task("intents", prefix, questions, answers, fixed_labels=True)


def _lines(name: str) -> list[dict[str, Any]]:
    text = (resources.files(__package__) / "data" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
