"""The kind of a query: the task asked for, else what its form says, else what its newest message looks like."""

import json
import time
from dataclasses import replace

import pytest
from builders import a_request
from hypothesis import given
from hypothesis import strategies as st

from edged.core import Chat, Completion, Message, OutputFormat, OutputKind, Role, Tool, ToolChoice, ToolMode
from edged.routing.kinds import LONG_CHARS, Kind, Task, TaskSource, detect, kind

TOOL = Tool("weather")
LABELS = {"type": "string", "enum": ["yes", "no"]}


def schema(document):
    return OutputFormat(OutputKind.JSON_SCHEMA, json.dumps(document))


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({"tools": (TOOL,)}, Task.TOOLS),
        ({"tools": (TOOL,), "tool_choice": ToolChoice(ToolMode.NONE)}, Task.CHAT),
        ({"output": schema(LABELS)}, Task.LABELS),
        ({"output": schema({"type": "object", "properties": {"spam": {"type": "boolean"}}})}, Task.LABELS),
        ({"output": schema({"type": "object", "properties": {"topic": LABELS, "mood": {"const": 1}}})}, Task.LABELS),
        ({"output": schema({"properties": {"tags": {"type": "array", "items": LABELS}}})}, Task.LABELS),
        ({"output": schema({"properties": {"topic": LABELS, "why": {"type": "string"}}})}, Task.JSON),
        ({"output": schema({"type": "object"})}, Task.JSON),
        ({"output": schema(True)}, Task.JSON),
        ({"output": OutputFormat(OutputKind.JSON_SCHEMA, "[" * 60_000)}, Task.JSON),
        ({"output": OutputFormat(OutputKind.JSON_OBJECT)}, Task.JSON),
        ({"output": OutputFormat(OutputKind.REGEX, "a+")}, Task.JSON),
        ({"text": "word " * (LONG_CHARS // 5 + 1)}, Task.LONG_CONTEXT),
    ],
)
def test_the_form_of_a_request_is_a_fact(fields, task):
    """Functions, labels, JSON, length: in this order."""
    assert detect(a_request(**fields)) is task


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("```py\nx = 1\n```\nwhat is x?", Task.CODE),
        ("Write a Python function that reverses a list.", Task.CODE),
        ("Schreibe ein Programm in Rust, das zählt.", Task.CODE),
        ("import os\ndef main(): pass\nwhat does it do", Task.CODE),
        ("My python ate a mouse.", Task.CHAT),
        ("Translate to German: good morning", Task.TRANSLATION),
        ("Übersetze ins Englische: guten Morgen", Task.TRANSLATION),
        ("Traduis en anglais : bonjour", Task.TRANSLATION),
        ("good morning everyone, how are you all. Translate this into French.", Task.TRANSLATION),
        ("What is 17 * 23?", Task.MATHEMATICS),
        ("Solve the equation 2x + 3 = 9.", Task.MATHEMATICS),
        ("Ann has 3 apples, Bob has 5 and eats 2. How many are left?", Task.MATHEMATICS),
        ("What is $$\\int x dx$$?", Task.MATHEMATICS),
        ("What is the capital of France?", Task.CHAT),
        ("We met in 2019 at the lake.", Task.CHAT),
        ("", Task.CHAT),
    ],
)
def test_the_content_is_guessed_from_the_newest_message(text, task):
    """In several languages, by words and marks."""
    assert detect(a_request(text=text)) is task
    assert detect(replace(a_request(), input=Completion(text))) is task
    earlier = (Message(Role.USER, "Translate: dog"), Message(Role.ASSISTANT, "Hund"), Message(Role.USER, text))
    assert detect(replace(a_request(), input=Chat(earlier))) is task


def test_a_task_that_is_asked_for_beats_everything():
    """Any name will do."""
    request = a_request(text="2 + 2", tools=(TOOL,), limits={"task": "house"})
    assert kind(request) == Kind("house", TaskSource.ASKED)
    assert not kind(request).is_guess
    assert kind(a_request(text="2 + 2")) == Kind("mathematics", TaskSource.DETECTED)
    assert kind(a_request(text="2 + 2")).is_guess
    assert not kind(a_request(tools=(TOOL,))).is_guess


@given(st.text())
def test_detection_takes_any_text(text):
    """And always says the same of it."""
    assert detect(a_request(text=text)) is detect(a_request(text=text))


@pytest.mark.parametrize("filler", ["a", "(", "1 ", "how ", "```"[:1], "\\", "é "])
def test_detection_reads_no_more_of_a_megabyte_than_of_a_page(filler):
    """Linear and bounded: a hostile text costs at most some milliseconds, whatever it repeats."""
    request = a_request(text=filler * (1_000_000 // len(filler)))
    short = replace(request, input=Completion(request.input.messages[0].text[: LONG_CHARS - 10]))
    for asked in (request, short):
        started_s = time.perf_counter()
        detect(asked)
        assert time.perf_counter() - started_s < 0.05
