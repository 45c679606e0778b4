"""The numbers a generated answer is judged by."""

import itertools
import math
import random

import pytest

from edged.core import FinishReason, Token
from edged.routing import features as rows
from edged.routing.features import NAMES, features

_ODD = (0.0, -0.0, -1e-9, -0.7, -29.0, -31.0, -9999.0, -math.inf, math.inf, math.nan, 5.0, 1e300)
_PIECES = (b"", b"a", b" the", b'{"', b'"', b":", b"1", b"true", b"}", b"\xff\xfe", b"\\", b"\n")


def row(tokens: list[Token], **known: object) -> dict[str, float]:
    said = {"finish": FinishReason.STOP, "is_structured": False, "form_ok": True} | known
    return dict(zip(NAMES, features(tokens, **said), strict=True))  # type: ignore[arg-type]


def a_token(draw: random.Random) -> Token:
    """Anything a broken model or an odd one may say."""
    number = [*_ODD, None]
    return Token(
        piece=draw.choice(_PIECES),
        logprob=draw.choice(_ODD),
        margin=draw.choice(number),
        entropy=draw.choice(number),
        allowed=draw.choice(number),
    )


@pytest.mark.parametrize("seed", range(200))
def test_every_number_is_finite_whatever_the_tokens_hold(seed: int) -> None:
    """No NaN, no infinity, the same length: a head can always be asked."""
    draw = random.Random(seed)
    tokens = [a_token(draw) for _ in range(draw.choice((0, 1, 2, 7, 8, 9, 60)))]
    found = features(
        tokens,
        finish=draw.choice([None, *FinishReason]),
        is_structured=draw.random() < 0.5,
        form_ok=draw.random() < 0.5,
        end_margin=draw.choice([*_ODD, None]),
    )
    assert len(found) == len(NAMES)
    assert all(isinstance(value, float) and math.isfinite(value) for value in found)


@pytest.mark.parametrize("seed", range(100))
def test_what_is_claimed_of_prefixes_holds(seed: int) -> None:
    """The first token's numbers never change, extremes and sums go one way as an answer grows."""
    draw = random.Random(seed)
    plain = [
        Token(
            piece=draw.choice(_PIECES),
            logprob=-draw.expovariate(1),
            margin=draw.expovariate(1),
            entropy=draw.expovariate(1),
            allowed=draw.random(),
        )
        for _ in range(40)
    ]
    grown = [row(plain[:length]) for length in range(1, 41)]
    for before, after in itertools.pairwise(grown):
        assert all(before[name] == after[name] for name in rows.SAME_FOR_EVERY_PREFIX)
        assert all(before[name] >= after[name] for name in rows.NEVER_RISE)
        assert all(before[name] <= after[name] for name in rows.NEVER_FALL)


def test_missing_is_a_flag_and_no_value() -> None:
    """A certain token and an unknown one differ: log-probability 0 is certainty, not ignorance."""
    certain = row([Token(b"a", 0.0, 0.0, 0.0, allowed=0.0)], end_margin=0.0)
    unknown = row([Token(b"a", math.nan)])
    flags = ("no_logprobs", "no_margins", "no_entropies", "never_constrained", "no_end_margin")
    assert all(certain[flag] == 0 and unknown[flag] == 1 for flag in flags)
    assert row([])["no_logprobs"] == 1


def test_quantiles_windows_and_shares_are_those_of_the_answer() -> None:
    """By hand, for twelve tokens."""
    tokens = [Token(bytes([97 + i]), -0.1 * i, margin=float(i), entropy=0.1 * i) for i in range(12)]
    found = row(tokens)
    assert found["tokens"] == 12
    assert found["logprob_mean"] == pytest.approx(-0.55)
    assert found["logprob_sum"] == pytest.approx(-6.6)
    assert found["logprob_min"] == pytest.approx(-1.1)
    assert found["logprob_q10"] == pytest.approx(-1.0)
    assert found["logprob_q50"] == pytest.approx(-0.6)
    assert found["worst_window"] == found["last_window"] == pytest.approx(-0.75)
    assert found["unlikely_share"] == pytest.approx(5 / 12)
    assert (found["margin_min"], found["margin_mean"]) == (0, 5.5)
    assert (found["entropy_max"], found["entropy_q90"]) == (pytest.approx(1.1), pytest.approx(0.9))
    assert found["repeated_share"] == 0


def test_value_tokens_are_counted_in_structured_answers_alone() -> None:
    """Braces and keys were not the model's to choose; free text has no values."""
    pieces = (b'{"', b"a", b'": ', b"17", b"}")
    tokens = [Token(piece, logprob) for piece, logprob in zip(pieces, (-9.0, -9.0, -9.0, -0.5, -9.0), strict=True)]
    found = row(tokens, is_structured=True)
    assert found["value_mean"] == found["value_sum"] == found["value_min"] == -0.5
    assert found["no_values"] == 0
    assert row(tokens)["no_values"] == 1


def test_a_loop_shows() -> None:
    """The same four tokens over and over are repeats, all but their first round."""
    loop = [Token(piece, -0.1) for piece in (b"a", b"b", b"c", b"d") * 10]
    assert row(loop)["repeated_share"] == pytest.approx(1 - 4 / 37)


def test_how_an_answer_ended_is_in_the_row() -> None:
    """Cut for length, stopped, or not over."""
    assert [row([], finish=f)["stopped"] for f in (None, FinishReason.STOP, FinishReason.TOOL_CALLS)] == [0, 1, 1]
    assert [row([], finish=f)["cut"] for f in (None, FinishReason.STOP, FinishReason.LENGTH)] == [0, 0, 1]


def test_the_names_are_fixed() -> None:
    """Stored heads depend on names and order: a change of either needs a new version."""
    assert len(set(NAMES)) == len(NAMES) == 36
    assert rows.VERSION == 1
