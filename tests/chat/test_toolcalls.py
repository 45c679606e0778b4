"""From text to function calls (B13), however the text is cut."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.chat.toolcalls import ToolCallParser
from edged.chat.toolformats import GENERIC, HERMES, LLAMA, MISTRAL, written
from edged.core import ToolCall

FORMS = (HERMES, GENERIC, MISTRAL, LLAMA)
NAMES = ("get_weather", "add")


def parse(form, pieces):
    """(text, [(id, name, arguments)], every delta) of an answer in these pieces."""
    ids = itertools.count()
    parser = ToolCallParser(form, NAMES, new_id=lambda: f"id{next(ids)}")
    parts = [*map(parser.feed, pieces), parser.finish()]
    deltas = [delta for part in parts for delta in part.calls]
    calls = {}
    for delta in deltas:
        call = calls.setdefault(delta.index, [delta.id, delta.name, ""])
        call[2] += delta.arguments
    return "".join(part.text for part in parts), [tuple(call) for call in calls.values()], deltas


def call(name, arguments):
    return ToolCall("x", name, json.dumps(arguments))


def calls_text(form, *calls):
    """Calls in the family's form, as its grammar would have them."""
    first, *others = [f"{form.head}{c.name}{form.middle}{c.arguments}}}" for c in calls]
    return f"{form.opening}{form.lead}{first}" + "".join(form.between + other for other in others) + form.tail


PARIS = call("get_weather", {"city": "Paris"})
SUM = call("add", {"a": 1, "b": [2, {"c": "}</tool_call>]"}]})


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_calls_are_found_in_every_family(form):
    """One call and two calls, each with a stable index, its own id, its name and its arguments."""
    assert parse(form, [calls_text(form, PARIS)])[:2] == ("", [("id0", "get_weather", PARIS.arguments)])
    text, calls, _ = parse(form, [calls_text(form, PARIS, SUM)])
    assert text == ""
    assert calls == [("id0", "get_weather", PARIS.arguments), ("id1", "add", SUM.arguments)]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_plain_text_is_plain_text(form):
    """An answer without a call comes out as it went in."""
    for text in ("", "Hello.", "  two\n\nlines \n", '{"answer": 4}', "<tool", "[TOOL", "a < b", '{"na'):
        assert parse(form, [text])[:2] == (text, [])


@pytest.mark.parametrize("form", [HERMES, MISTRAL], ids=lambda form: form.name)
def test_text_before_a_call_is_kept_and_the_space_between_is_not(form):
    """What the model said first is said; the line break before the markup is part of the markup."""
    text, calls, _ = parse(form, ["Let me look.\n", calls_text(form, PARIS)])
    assert text == "Let me look."
    assert [name for _, name, _ in calls] == ["get_weather"]


def test_text_after_a_call_is_kept():
    """It is rare, and it is the model's."""
    text, calls, _ = parse(HERMES, [calls_text(HERMES, PARIS) + "\nDone."])
    assert text == "\nDone."
    assert len(calls) == 1


ALPHABET = st.sampled_from('aé日😀"\\/{}[]<>\n\u2028 \x7f')
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(ALPHABET, max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(ALPHABET, max_size=4), inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(st.text(ALPHABET, max_size=6), VALUES, max_size=4)


@given(
    form=st.sampled_from(FORMS),
    given_arguments=st.lists(ARGUMENTS, min_size=1, max_size=3),
    ascii_only=st.booleans(),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_however_an_answer_is_cut_its_calls_are_the_same(form, given_arguments, ascii_only, cuts):
    """Any slicing gives the same calls; no delta cuts an escape; id and name come once; arguments join to the JSON."""
    calls = [ToolCall("x", NAMES[i % 2], json.dumps(a, ensure_ascii=ascii_only)) for i, a in enumerate(given_arguments)]
    text = calls_text(form, *calls)
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    said, found, deltas = parse(form, [text[start:end] for start, end in itertools.pairwise(edges)])
    assert said == ""
    assert [(name, arguments) for _, name, arguments in found] == [(c.name, c.arguments) for c in calls]
    assert [json.loads(arguments) for _, _, arguments in found] == given_arguments
    assert [d.index for d in deltas if d.id is not None] == list(range(len(calls)))
    assert all((d.id is None) == (d.name is None) for d in deltas)
    so_far = {}
    for delta in deltas:
        so_far[delta.index] = so_far.get(delta.index, "") + delta.arguments
        assert _is_at_a_boundary(so_far[delta.index])


def _is_at_a_boundary(arguments):
    """Whether no escape is open at the end: closing the string there gives a whole JSON string, surrogates paired."""
    inside = False
    at = 0
    while at < len(arguments):
        character = arguments[at]
        if inside and character == "\\":
            size = 6 if arguments[at + 1 : at + 2] == "u" else 2
            if len(arguments) < at + size:
                return False
            if arguments[at : at + 4].lower()[2:] in ("d8", "d9", "da", "db") and len(arguments) < at + 12:
                return False
            at += size
            continue
        inside = inside != (character == '"')
        at += 1
    return True


@given(text=st.text(st.sampled_from('<tol_ca>/{"nme: ,gu}[]TOLCS\n'), max_size=60), cuts=st.lists(st.integers(0, 60)))
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_no_text_is_lost_however_much_it_looks_like_a_call(form, text, cuts):
    """Text that never becomes a call comes out whole, sliced or not."""
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    said, calls, _ = parse(form, [text[start:end] for start, end in itertools.pairwise(edges)])
    assert not calls
    assert said == text


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>\nnot json\n</tool_call>",
        '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": "text"}\n</tool_call>',
        '<tool_call>\n{"arguments": {}, "name": "add"}\n</tool_call>',
        '<tool_call>{"name": "add"',
        "<tool_call>" + "x" * 1000,
    ],
)
def test_a_malformed_call_is_text(text):
    """A call of no declared function, or without an object of arguments, reaches the client as it was written."""
    said, calls, _ = parse(HERMES, list(text))
    assert (said, calls) == (text, [])


def test_a_call_cut_for_length_keeps_what_came():
    """The client sees the arguments up to the cut and the finish reason that says so."""
    said, calls, _ = parse(HERMES, ['<tool_call>\n{"name": "add", "arguments": {"a": "x\\u00'])
    assert said == ""
    assert calls == [("id0", "add", '{"a": "x\\u00')]


def test_a_call_whose_closing_markup_was_cut_is_whole():
    """Only its arguments matter."""
    assert parse(HERMES, ['<tool_call>\n{"name": "add", "arguments": {"a": 1}'])[1] == [("id0", "add", '{"a": 1}')]


@pytest.mark.parametrize("rest", ["\n<tool", "\n<tool_call>", '\n<tool_call>\n{"name": "get_'])
def test_a_second_call_that_was_cut_is_no_text(rest):
    """Behind a call the beginning of the next one is markup; behind text it would be text."""
    assert parse(HERMES, [calls_text(HERMES, PARIS) + rest])[:2] == ("", [("id0", "get_weather", PARIS.arguments)])
    assert parse(HERMES, [calls_text(HERMES, PARIS) + "\nSo" + rest])[0] == "\nSo" + rest


def test_bare_calls_are_only_looked_for_where_an_answer_begins():
    """JSON in the middle of an answer of a family without markup is text."""
    text = 'Sure: {"name": "add", "parameters": {}}'
    assert parse(LLAMA, [text])[:2] == (text, [])
    assert parse(LLAMA, ['\n{"type": "function", "name": "add", "parameters": {}}'])[1] == [("id0", "add", "{}")]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_what_is_written_into_a_prompt_is_read_back(form):
    """Earlier calls are shown to the model in the form it is to answer in."""
    assert parse(form, [written(form, PARIS)])[1] == [("id0", PARIS.name, PARIS.arguments)]
