"""Artefacts: what they say survives their file, and nothing broken or stale is ever applied."""

import dataclasses
import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.calibration import artefact as artefacts
from edged.calibration import fitting
from edged.calibration.artefact import Artefact, LabelSource, Level, dump, option_features, parse, read, settled
from edged.calibration.certificate import Certificate
from edged.calibration.heads import HeadKey, HeadUnusable

KEY = HeadKey(model_sha256="11", template_sha256="22", sampler="score", task="demo@0123")
OPTIONS = ("a", "b", "c")
LOGPROBS = ((-1.0, -0.5), (-2.0,), (-0.25, -4.0, -1.0))


def an_artefact(**changes):
    plain = {
        "key": KEY,
        "level": Level.ZERO_SHOT,
        "source": LabelSource.GOLD,
        "prior": (-1.0, -2.0, -3.0),
        "threshold": None,
        "certificate": None,
        "labels": 100,
        "accuracy": 0.5,
        "auroc": None,
        "ece": None,
        "made_at": "2026-01-01T00:00:00+00:00",
    }
    return Artefact(**{**plain, **changes})


def a_certificate(threshold=0.5, **changes):
    plain = {"alpha": 0.1, "delta": 0.1, "served": 80, "wrong": 2, "bound": 0.08, "coverage": 0.8}
    return Certificate(**{"threshold": threshold, **plain, **changes})


@pytest.fixture(scope="module")
def head():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    return fitting.fit(np.eye(3)[labels].repeat(2, axis=1) + rng.normal(0, 0.5, (120, 6)), labels, OPTIONS, strength=1)


shares = st.floats(0, 1)
finite = st.floats(-1e6, 1e6)


@st.composite
def plain_artefacts(draw):
    level = draw(st.sampled_from([Level.ZERO_SHOT, Level.MAP]))
    corners = draw(st.lists(st.tuples(shares, shares), min_size=1, max_size=8)) if level is Level.MAP else None
    threshold = draw(st.none() | finite)
    certificate = None if threshold is None or draw(st.booleans()) else a_certificate(threshold)
    return an_artefact(
        level=level,
        source=draw(st.sampled_from(LabelSource)),
        prior=draw(st.none() | st.lists(finite, min_size=3, max_size=3).map(tuple)),
        knots_x=None if corners is None else np.sort([x for x, _ in corners]),
        knots_y=None if corners is None else np.sort([y for _, y in corners]),
        threshold=threshold,
        certificate=certificate,
        labels=draw(st.integers(0, 10**6)),
        accuracy=draw(shares),
        auroc=draw(st.none() | shares),
        ece=draw(st.none() | shares),
        note=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=50)),
    )


@given(plain_artefacts())
@settings(deadline=None, max_examples=40)
def test_an_artefact_comes_back_from_its_file_as_it_went(before):
    """Everything but the last digits of a map; and what came back goes and comes exactly."""
    once = parse(dump(before), KEY)
    for name in ("key", "level", "source", "prior", "threshold", "certificate", "labels", "accuracy", "note"):
        assert getattr(once, name) == getattr(before, name)
    assert once.judge(LOGPROBS).confidence == pytest.approx(before.judge(LOGPROBS).confidence, abs=1e-5)
    assert dump(once) == dump(before)


def test_a_head_comes_back_with_its_artefact_and_judges_the_same_ever_after(head):
    """``settled`` is what a threshold is found with."""
    once = settled(an_artefact(level=Level.FEATURES, head=head, prior=None))
    assert settled(once).judge(LOGPROBS) == once.judge(LOGPROBS)
    assert once.judge(LOGPROBS).choice == head.judge(option_features(LOGPROBS)).choice
    assert not once.wants_state


def test_the_hidden_state_is_a_row_of_float16_behind_the_scores():
    """Three sums, three means, then the state."""
    state = np.array([1.5, -2.0], dtype="<f2").tobytes()
    assert option_features(LOGPROBS, state) == pytest.approx([-1.5, -2.0, -5.25, -0.75, -2.0, -1.75, 1.5, -2.0])
    with pytest.raises(HeadUnusable, match="3 bytes is no row of float16"):
        option_features(LOGPROBS, b"abc")


def test_options_are_compared_by_their_sums_less_what_is_usual():
    """Without a prior by their means, as where nothing is known of them."""
    assert an_artefact(prior=(-1.5, -2.0, -10.0)).judge(LOGPROBS).choice == 2
    assert an_artefact(prior=None).judge(LOGPROBS).choice == 0
    with pytest.raises(HeadUnusable, match="3 options, not 2"):
        an_artefact().judge(LOGPROBS[:2])


def test_a_generated_answer_is_judged_by_its_score_or_its_features():
    """A head says how likely "right" is, whichever class it chose."""
    rng = np.random.default_rng(0)
    right = rng.integers(0, 2, 200)
    features = right[:, None] + rng.normal(0, 0.4, (200, 1))
    judge = settled(
        an_artefact(
            level=Level.FEATURES, prior=None, head=fitting.fit(features, right, artefacts.ANSWER_CLASSES, strength=1)
        )
    )
    assert judge.judge_answer(0.0, np.array([1.2])) > 0.8
    assert judge.judge_answer(0.0, np.array([-0.2])) < 0.2
    with pytest.raises(HeadUnusable, match="features"):
        judge.judge_answer(0.7)
    assert an_artefact().judge_answer(0.7) == 0.7


@pytest.mark.parametrize("field", ["model_sha256", "template_sha256", "sampler", "task"])
def test_an_artefact_made_for_something_else_is_stale(field):
    """And says what changed."""
    with pytest.raises(HeadUnusable, match=f"stale: made for another {field}"):
        parse(dump(an_artefact()), msgspec.structs.replace(KEY, **{field: "other"}))


def hostile(head):
    """Every way a file can be wrong."""
    good = json.loads(dump(an_artefact(level=Level.MAP, knots_x=np.array([0.0, 1.0]), knots_y=np.array([0.2, 0.9]))))
    falling = artefacts._text(np.array([1.0, 0.0]))
    nan = artefacts._text(np.array([np.nan, 1.0]))
    certificate = dataclasses.asdict(a_certificate())
    with_head = json.loads(dump(an_artefact(level=Level.FEATURES, head=head, prior=None)))
    yield from (b"", b"{}", b"[1]", b"\xff\xfe", b"[" * 100_000, json.dumps(good).encode()[:-30])
    yield b" " * (artefacts.MAX_ARTEFACT_BYTES + 1)
    for change in (
        {"format": 2},
        {"level": "zero_shot"},
        {"level": "features"},
        {"level": "L9"},
        {"knots_x": None},
        {"knots_x": "AAAA"},
        {"knots_x": "%%"},
        {"knots_x": "A"},
        {"knots_x": falling},
        {"knots_y": falling},
        {"knots_y": nan},
        {"knots_y": ""},
        {"prior": [1.0, None]},
        {"prior": "abc"},
        {"accuracy": 1.5},
        {"labels": -1},
        {"threshold": "high"},
        {"threshold": 0.4, "certificate": certificate},
        {"threshold": 0.5, "certificate": {**certificate, "wrong": 81}},
        {"threshold": 0.5, "certificate": {**certificate, "alpha": -1}},
        {"note": "x" * 3000},
        {"key": {"task": "demo"}},
    ):
        yield json.dumps({**good, **change}).encode()
    for change in ({"head": None}, {"head": {**with_head["head"], "mean": ""}}, {"head": 3}):
        yield json.dumps({**with_head, **change}).encode()


def test_a_file_that_is_no_artefact_is_refused(head):
    """Cut, oversized, of another format, with wrong shapes or numbers that are none: one clear error."""
    for data in hostile(head):
        with pytest.raises(HeadUnusable):
            read(data)


def test_an_artefact_that_would_not_be_read_again_is_not_written():
    """NaN, a certificate of another threshold, a level without its parts."""
    for wrong in (
        an_artefact(prior=(float("nan"), 0.0, 0.0)),
        an_artefact(threshold=float("inf")),
        an_artefact(threshold=0.7, certificate=a_certificate(0.5)),
        an_artefact(level=Level.HIDDEN),
    ):
        with pytest.raises(ValueError, match=r"."):
            dump(wrong)
