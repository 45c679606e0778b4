"""The answer with values in place of placeholders, however the stream is cut."""

import itertools
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from privacy_builders import MAIL, a_detector, redacted, restore

from edged.core import Chunk, FinishReason, OutputFormat, OutputKind, ToolCallDelta, Usage
from edged.privacy.restore import AnswerRestorer, in_json

RESULT = redacted(text=f"{MAIL} b@example.com")
MANY = redacted(text=" ".join(f"u{i}@example.com" for i in range(1, 13)))


@pytest.mark.parametrize(
    ("spelt", "is_ours"),
    [
        ("<EMAIL_1>", True),
        ("<email_1>", True),
        ("<Email_1>", True),
        ("&lt;EMAIL_1&gt;", True),
        (r"\<EMAIL\_1\>", True),
        (r"\u003cEMAIL_1\u003e", True),
        ("EMAIL_1", True),
        ("EMAIL_1.", True),
        ("**EMAIL_1**", True),
        ("<EMAIL_9>", False),
        ("<PHONE_1>", False),
        ("email_1", False),
        ("MY_EMAIL_1", False),
        ("EMAIL_1x", False),
        ("EMAIL_12", False),
        ("<EMAIL_1", True),
        ("a < EMAIL", False),
        ("EMAIL_", False),
    ],
)
def test_which_spellings_are_taken_for_a_placeholder(spelt, is_ours):
    """Brackets in any case and escape; without them only the exact capitals, by themselves."""
    answer = restore(RESULT, f"say {spelt} now")
    assert (MAIL in answer) is is_ours
    if not is_ours:
        assert answer == f"say {spelt} now"


PIECES = st.lists(
    st.sampled_from(
        ["<EMAIL_1>", "<EMAIL_2>", "<email_1>", "EMAIL_1", "<EMAIL_12>", "<", ">", "EMA", "EMAIL_", "&lt;", "\\", "_1"]  # noqa: RUF005 - two lines
        + [" ", "x", "é", "\n", "1", "E", "EMAIL_1EMAIL_2", r"\<EMAIL\_1\>", "&lt;EMAIL_2&gt;", "<<EMAIL_1>>"]
    ),
    max_size=12,
)


@given(pieces=PIECES, cuts=st.lists(st.integers(0, 200)))
@example(pieces=["EMAIL_1EMAIL_2"], cuts=[8])
def test_slicing_changes_nothing(pieces, cuts):
    """A placeholder split over chunks comes out as it does whole; nothing is lost, doubled or put in another order."""
    text = "".join(pieces)
    edges = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    slices = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert restore(MANY, *slices) == restore(MANY, text)
    assert restore(MANY, *text) == restore(MANY, text)


@given(st.text(alphabet=st.characters(exclude_characters="<&\\")))
def test_text_without_placeholders_passes_unchanged(text):
    """No other text is touched, whatever its signs."""
    assert "EMAIL_" in text or restore(RESULT, *text) == text


def test_no_more_is_held_back_than_may_become_a_placeholder():
    """The rest of a chunk goes on at once; a tail that is refuted goes with the next."""
    restorer = AnswerRestorer(RESULT.vault, RESULT.request)
    assert restorer.feed(Chunk(text="Dear <EMA")).text == "Dear "
    assert restorer.feed(Chunk(text="IL_1>, hello")).text == f"{MAIL}, hello"
    assert restorer.feed(Chunk(text=" a < b <E")).text == " a < b "
    assert restorer.feed(Chunk(text="M>")).text == "<EM>"


def test_the_last_chunk_brings_what_was_held_and_keeps_what_it_carried():
    """Finish reason and usage stay on it."""
    restorer = AnswerRestorer(RESULT.vault, RESULT.request)
    usage = Usage(prompt_tokens=3)
    assert restorer.feed(Chunk(text="by EMAIL_1")).text == "by "
    last = restorer.feed(Chunk(finish=FinishReason.STOP, usage=usage))
    assert (last.text, last.finish, last.usage) == (MAIL, FinishReason.STOP, usage)


def test_what_is_held_when_an_answer_breaks_off_is_not_lost():
    """Without a finish the tail comes out at the end."""
    restorer = AnswerRestorer(RESULT.vault, RESULT.request)
    restorer.feed(Chunk(text="by <EMAIL"))
    assert [chunk.text for chunk in restorer.flush()] == ["<EMAIL"]


def test_choices_and_calls_are_restored_apart():
    """A placeholder is never joined from two texts."""
    restorer = AnswerRestorer(RESULT.vault, RESULT.request)
    assert restorer.feed(Chunk(choice=0, text="<EMAIL")).text == ""
    assert restorer.feed(Chunk(choice=1, text="_1>")).text == "_1>"
    delta = restorer.feed(Chunk(tool_calls=(ToolCallDelta(0, "c", "EMAIL_1", '{"to": "<EMA'),))).tool_calls[0]
    assert (delta.name, delta.arguments) == (MAIL, '{"to": "')
    assert restorer.feed(Chunk(choice=0, text="_2>")).text == "b@example.com"
    rest = restorer.feed(Chunk(tool_calls=(ToolCallDelta(0, arguments='IL_1>"}'),))).tool_calls[0]
    assert json.loads(delta.arguments + rest.arguments) == {"to": MAIL}


def test_a_call_that_ends_in_a_placeholder_is_flushed_with_its_choice():
    """Half a placeholder at the end of arguments is sent as it came."""
    restorer = AnswerRestorer(RESULT.vault, RESULT.request)
    restorer.feed(Chunk(tool_calls=(ToolCallDelta(0, "c", "f", "EMAIL_1"),)))
    last = restorer.feed(Chunk(finish=FinishReason.TOOL_CALLS))
    assert last.tool_calls == (ToolCallDelta(0, arguments=MAIL),)


def test_values_are_escaped_where_json_stands_around_them():
    """A value with quotes and line breaks breaks no arguments and no JSON answer."""
    odd = 'o"\\\n'
    detector = a_detector(patterns={"odd": r'o"\\\n'})
    result = redacted(text=odd, detector=detector, output=OutputFormat(OutputKind.JSON_OBJECT))
    assert json.loads(restore(result, '{"a": "<ODD_1>"}', escape=in_json)) == {"a": odd}
    restorer = AnswerRestorer(result.vault, result.request)
    assert json.loads(restorer.feed(Chunk(text='{"a": "<ODD_1>"}', finish=FinishReason.STOP)).text) == {"a": odd}


def test_an_answer_to_a_request_without_personal_data_is_not_touched():
    """No value, no work, no waiting."""
    result = redacted(text="hello")
    chunk = Chunk(text="<EMAIL_1> <EMA")
    assert AnswerRestorer(result.vault, result.request).feed(chunk) is chunk


@pytest.mark.parametrize("kind", ["employee_id", "aa"])
def test_an_operators_kind_is_restored_too(kind):
    """Underscores inside a kind may come back escaped as well."""
    result = redacted(text="E123456", detector=a_detector(patterns={kind: "E[0-9]{6}"}))
    token = f"{kind.upper()}_1"
    for spelt in (f"<{token}>", f"<{token.lower()}>", "<" + token.replace("_", "\\_") + ">", token):
        assert restore(result, *spelt) == "E123456"
