"""Which tokens of structured answers carry values."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.chat.grammar import plain_escapes
from edged.chat.values import value_places


def values(*pieces):
    return [pieces[place] for place in value_places([piece.encode() for piece in pieces])]


def test_keys_quotes_and_punctuation_are_form():
    """Only what the model decided counts."""
    assert values('{"', "city", '": "', "Paris", '", "', "n", '": ', "-2", "5", "}") == ["Paris", "-2", "5"]


def test_a_token_that_is_partly_value_counts():
    """Tokens do not end where values do."""
    assert values('{"a": "', 'x"}') == ['x"}']
    assert values('{"a": tr', "ue}") == ['{"a": tr', "ue}"]


def test_nested_values_and_lists_count():
    """Strings in arrays are values, strings before a colon are not."""
    assert values("[", '"a"', ", {", '"k"', ": [", '"b"', "]", ", ", '"l"', ": ", "null", "}]") == [
        '"a"',
        '"b"',
        "null",
    ]


def test_markup_around_calls_is_form():
    """The function's name was chosen: it is a value."""
    assert values(
        "<tool_call>", "\n", '{"name": "', "add", '", "arguments": {"', "a", '": ', "1", "}}", "</tool_call>"
    ) == [
        "add",
        "1",
    ]


def test_escapes_do_not_end_strings():
    """A quote behind a backslash is part of the value."""
    assert values('"', 'a\\"', "b", '"', ",") == ['a\\"', "b"]


@given(st.binary(max_size=40), st.lists(st.binary(max_size=5)))
def test_any_bytes_are_taken(first, others):
    """A scanner of answers that may be cut, or no JSON at all, never fails."""
    list(value_places([first, *others]))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    )
)
def test_by_single_bytes_exactly_the_values_are_marked(document):
    """Against a walk over the parsed document: the bytes marked are those of its scalars."""
    text = json.dumps(document)
    marked = "".join(text[place] for place in value_places([byte.encode() for byte in text]))

    def scalars(node):
        if isinstance(node, dict):
            return "".join(map(scalars, node.values()))
        if isinstance(node, list):
            return "".join(map(scalars, node))
        return json.dumps(node).strip('"') if not isinstance(node, str) else json.dumps(node)[1:-1]

    assert marked == scalars(document)


@pytest.mark.parametrize(
    ("gbnf", "plain"),
    [
        (r'root ::= "\u00e9"', 'root ::= "é"'),
        (r'root ::= "\U0001f600"', 'root ::= "😀"'),
        (r"root ::= [\x41-\x5A]", "root ::= [A-Z]"),
        (r'root ::= "\x22\x5c\x0a"', r'root ::= "\x22\x5c\x0a"'),
        (r'root ::= "\\u00e9"', r'root ::= "\\u00e9"'),
        (r'root ::= "\ud83d"', r'root ::= "\ud83d"'),
    ],
)
def test_numeric_escapes_of_gbnf_become_their_characters(gbnf, plain):
    """But for those that mean something unescaped."""
    assert plain_escapes(gbnf) == plain
