"""Figures are what they say they are."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.bench.stats import Answer, Figures, Piece, medians, percentile, ratios, summarise


def an_answer(*times_s: float, tokens: int | None = None, characters: tuple[int, ...] = ()) -> Answer:
    sizes = characters or (4,) * len(times_s)
    pieces = tuple(Piece(at_s, size) for at_s, size in zip(times_s, sizes, strict=True))
    return Answer(pieces=pieces, total_s=max(times_s, default=0), completion_tokens=tokens or len(times_s))


def figures(**values: float) -> Figures:
    empty = dict.fromkeys(Figures.__dataclass_fields__)
    return Figures(**(empty | {"completion_tokens": 0, "prompt_tokens": 0, "errors": 0} | values))


@pytest.mark.parametrize(("q", "expected"), [(0, 1), (50, 2), (75, 3), (95, 4), (100, 4)])
def test_a_percentile_is_a_value_that_was_seen(q: float, expected: int) -> None:
    """Nearest rank: no invented value between two samples."""
    assert percentile([4, 1, 3, 2], q) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_covers_its_share(values: list[float], q: float) -> None:
    """At least q percent of the values are not above it."""
    bound = percentile(values, q)
    assert bound in values
    assert sum(value <= bound for value in values) >= len(values) * q / 100 - 1e-9


def test_no_values_have_no_percentile() -> None:
    """Nothing measured is not zero."""
    assert percentile([], 50) is None


def test_ttft_and_gaps_count_from_the_request() -> None:
    """TTFT is the first piece of text; ITL the pauses after it."""
    answer = an_answer(0.5, 0.6, 0.9)
    assert answer.ttft_s == 0.5
    assert answer.gaps_s == pytest.approx([0.1, 0.3])
    assert answer.decode_tps == pytest.approx(2 / 0.4)


def test_tokens_sent_at_once_in_the_first_piece_do_not_look_fast() -> None:
    """A server that holds 16 of 32 tokens back and then sends one each 0.1 s decodes 10 tok/s, not twice that."""
    times_s = tuple(1 + 0.1 * step for step in range(17))
    answer = an_answer(*times_s, tokens=32, characters=(64, *(4,) * 16))
    assert answer.decode_tps == pytest.approx(10)


def test_one_piece_has_no_rate() -> None:
    """A rate needs two points in time."""
    assert an_answer(0.5).decode_tps is None
    assert an_answer().decode_tps is None


def test_a_round_pools_gaps_and_counts_failures_apart() -> None:
    """Failed answers are errors and nothing else."""
    answers = [an_answer(1.0, 1.1, 1.4), an_answer(2.0, 2.2), Answer(error="HTTP 500")]
    result = summarise(answers, wall_s=2.5)
    assert (result.ttft_p50_s, result.ttft_p95_s) == (1.0, 2.0)
    assert result.itl_p50_s == pytest.approx(0.2)
    assert result.itl_max_s == pytest.approx(0.3)
    assert result.total_tps == pytest.approx(5 / 2.5)
    assert (result.completion_tokens, result.errors) == (5, 1)


def test_a_round_of_failures_has_no_figures() -> None:
    """Not zero, and no division by it."""
    result = summarise([Answer(error="refused")], wall_s=0.0)
    assert (result.ttft_p50_s, result.itl_max_s, result.decode_tps, result.total_tps, result.errors) == (*[None] * 4, 1)


def test_medians_ignore_rounds_without_a_value_and_add_errors_up() -> None:
    """One broken round does not hide, and does not distort."""
    result = medians([figures(decode_tps=10, errors=1), figures(), figures(decode_tps=30, errors=2)])
    assert (result["decode_tps"], result["ttft_p50_s"], result["errors"]) == (20, None, 3)


def test_ratios_are_taken_round_by_round() -> None:
    """A box that slows down meets both targets alike: the ratio stays."""
    base = [figures(decode_tps=100), figures(decode_tps=50), figures(decode_tps=10)]
    ours = [figures(decode_tps=110), figures(decode_tps=55), figures(decode_tps=12)]
    ratio = ratios(ours, base)["decode_tps"]
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.1, 1.1, 1.2))
    assert ratios(ours, base)["ttft_p50_s"] is None
