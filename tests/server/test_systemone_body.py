"""The numbers of an answer, as TypeSafe defines them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.server.systemone import choice_confidence, score_confidence


def test_confidence_is_that_of_llama_servers_own_example():
    """The probabilities of its README come with these."""
    assert choice_confidence([0.9998, 0.0001, 0.0001]) == pytest.approx(0.9997, abs=5e-5)
    assert score_confidence([0.0023, 0.116, 0.6753, 0.2064]) == pytest.approx(0.673, abs=5e-4)


@given(st.integers(2, 128), st.data())
def test_confidence_is_0_of_what_is_all_alike_and_1_of_what_is_certain(count, data):
    """And between for everything else."""
    certain = [0.0] * count
    certain[data.draw(st.integers(0, count - 1))] = 1.0
    assert choice_confidence([1 / count] * count) == pytest.approx(0, abs=1e-9)
    assert choice_confidence(certain) == score_confidence(certain) == pytest.approx(1)
    weights = data.draw(st.lists(st.floats(0.01, 1), min_size=count, max_size=count))
    some = [weight / sum(weights) for weight in weights]
    assert 0 <= choice_confidence(some) <= 1
    assert 0 <= score_confidence(some) <= 1
