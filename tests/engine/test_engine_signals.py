"""Signals of the unmodified distribution, against float64."""

import math

import numpy as np
import pytest

from edged.engine.signals import SignalReader


def reference(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x = x - x.max()
    return x - np.log(np.exp(x).sum())


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("vocab", [2, 257, 49_152])
def test_signals_are_those_of_the_softmax(seed: int, vocab: int) -> None:
    """Log-probability, margin, entropy and the top tokens agree with a float64 log-softmax."""
    draw = np.random.default_rng(seed)
    logits = (draw.standard_normal(vocab) * draw.uniform(0.1, 8) + draw.uniform(-30, 30)).astype(np.float32)
    before = logits.copy()
    chosen = int(draw.integers(vocab))
    top = min(5, vocab)
    signal = SignalReader(vocab).read(logits, chosen, top=top)
    logprobs = reference(logits)
    ranked = np.sort(logprobs)[::-1]
    assert np.array_equal(logits, before), "the logits are left as they were: sampling reads them next"
    assert signal.logprob == pytest.approx(logprobs[chosen], abs=2e-3)
    assert signal.margin == pytest.approx(ranked[0] - ranked[1], abs=1e-4)
    assert signal.entropy == pytest.approx(-(np.exp(logprobs) * logprobs).sum(), abs=2e-3)
    assert [value for _, value in signal.top] == pytest.approx(list(ranked[:top]), abs=2e-3)
    assert len({token for token, _ in signal.top}) == top


def test_a_masked_vocabulary_gives_finite_numbers() -> None:
    """Tokens at -inf have no probability, and no signal becomes NaN or infinite: it has to be a JSON number."""
    logits = np.full(100, -np.inf, dtype=np.float32)
    logits[[3, 4]] = [1.0, 1.0]
    reader = SignalReader(100)
    signal = reader.read(logits, 3, top=4)
    assert signal.entropy == pytest.approx(math.log(2), abs=1e-5)
    assert signal.logprob == pytest.approx(-math.log(2), abs=1e-5)
    assert signal.margin == 0
    assert [token for token, _ in signal.top] == [3, 4], "a masked token is no candidate"
    assert reader.read(logits, 50).logprob == -9999


def test_a_certain_token_has_no_entropy() -> None:
    """One possible token: log-probability and entropy 0, the margin capped."""
    logits = np.full(8, -np.inf, dtype=np.float32)
    logits[0] = 5
    signal = SignalReader(8).read(logits, 0, top=3)
    assert (signal.logprob, signal.entropy, signal.margin, signal.top) == (0, 0, 9999, ((0, 0.0),))
    assert logits[0] == 5


def test_extreme_logits_do_not_overflow() -> None:
    """Large logits of either sign are shifted before exp."""
    logits = np.array([3e4, 3e4 - 1, -3e4], dtype=np.float32)
    signal = SignalReader(3).read(logits, 1, top=3)
    assert signal.logprob == pytest.approx(reference(logits)[1], abs=2e-2)
    assert math.isfinite(signal.entropy)


def test_more_candidates_than_tokens_are_all_tokens() -> None:
    """top is bounded by the vocabulary."""
    assert len(SignalReader(3).read(np.zeros(3, dtype=np.float32), 0, top=20).top) == 3


def test_a_reader_carries_nothing_over() -> None:
    """The buffer is reused, the numbers are not."""
    reader, draw = SignalReader(64), np.random.default_rng(1)
    rows = [draw.standard_normal(64).astype(np.float32) for _ in range(5)]
    together = [reader.read(row, 7, top=3) for row in rows]
    assert together == [SignalReader(64).read(row, 7, top=3) for row in rows]


@pytest.mark.parametrize(
    "broken", [[math.nan] * 4, [1.0, math.nan, 2.0, 3.0], [-math.inf] * 4, [math.inf, 1.0, 1.0, 1.0]]
)
def test_broken_logits_are_no_confidence(broken: list[float]) -> None:
    """A model that computes NaN is not trusted, and its numbers never reach a client's JSON."""
    signal = SignalReader(4).read(np.array(broken, dtype=np.float32), 1, top=2)
    assert (signal.logprob, signal.margin, signal.entropy, signal.top) == (-9999, 0, 0, ())
