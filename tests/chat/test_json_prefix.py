"""A text is given up as JSON at the first character that no JSON text has there, and never before."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.chat.json_prefix import JsonPrefix

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def possible(text):
    return JsonPrefix().feed(text)


@settings(deadline=None)
@given(value=values, indent=st.none() | st.integers(0, 2), plain=st.booleans(), size=st.integers(1, 7))
def test_every_beginning_of_json_is_possible(value, indent, plain, size):
    """Whatever its form and however it is cut."""
    text = json.dumps(value, indent=indent, ensure_ascii=plain)
    prefix = JsonPrefix()
    assert all(prefix.feed(text[start : start + size]) for start in range(0, len(text), size))


@given(st.text(alphabet='{}[]":,\\ \n0123456789.eE+-truefalsnINy/u', max_size=12))
def test_whatever_python_reads_is_possible(text):
    """What is given up is refused by json.loads, with anything behind it."""
    try:
        json.loads(text)
    except ValueError:
        return
    assert possible(text)


BROKEN = (
    "Sure",
    "```json",
    "{a",
    "{,",
    "[,",
    "[1 2",
    "[1,]",
    "{} x",
    '{"a" 1',
    '{"a":,',
    '"\\x',
    '"\n',
    '"\\u12g',
    "]",
)
BROKEN_SCALARS = ("[}", "trux", "1.2.3 ", "01 ", "{1", "nul,", "tru]", "{]")


@pytest.mark.parametrize("text", [*BROKEN, *BROKEN_SCALARS])
def test_what_can_never_become_json_is_given_up(text):
    """No continuation helps."""
    assert not possible(text)
    assert not possible(text + '"}]')
