"""How far options must be read to know one from the others."""

from hypothesis import given
from hypothesis import strategies as st

from edged.engine.telling import told_apart


def test_options_are_read_until_they_are_told_apart():
    """One token where the first tells, all of one that another begins with, and one token more of that other."""
    assert told_apart([[1, 2, 3], [4, 5], [4, 6, 7], [8]]) == [[1], [4, 5], [4, 6], [8]]
    assert told_apart([[1], [1, 2, 3]]) == [[1], [1, 2]]
    assert told_apart([[1, 2], [1, 2]]) == [[1, 2], [1, 2]]
    assert told_apart([[5, 6]]) == [[5]]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=8, unique_by=tuple))
def test_different_options_stay_different_and_no_longer_than_they_were(options):
    """Whatever they share."""
    found = told_apart(options)
    assert len(set(map(tuple, found))) == len(options)
    for short, option in zip(found, options, strict=True):
        assert short == option[: len(short)]
        others = [other for other in options if other is not option]
        assert len(short) == 1 or any(other[: len(short) - 1] == short[:-1] for other in others)
