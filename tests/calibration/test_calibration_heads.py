"""Heads: fitted to labels, honest about how right they are, and stale when what they were made for changes."""

import dataclasses
import json

import msgspec
import numpy as np
import pytest

from edged.calibration import fitting, heads
from edged.calibration.heads import HeadKey, HeadUnusable
from edged.calibration.metrics import auroc, ece
from edged.errors import ConfigError

CLASSES = ("a", "b", "c")
KEY = HeadKey(model_sha256="11", template_sha256="22", sampler="greedy", task="demo")


def a_world(items, *, seed=0, noise=1.2):
    """Three classes around three corners, some items hard to tell."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, items)
    corners = np.array([[2.0, 0, 0, 5], [0, 2.0, 0, 5], [0, 0, 2.0, 5]])
    return corners[labels] + rng.normal(0, noise, (items, 4)) * [1, 1, 1, 0], labels


@pytest.fixture(scope="module")
def head():
    return fitting.fit(*a_world(600), CLASSES, strength=1.0)


def judge_all(head, features):
    return [head.judge(row) for row in features]


def test_a_head_learns_what_its_labels_say(head):
    """On items it has not seen; a feature that never changes does no harm."""
    features, labels = a_world(500, seed=1)
    chosen = [judgement.choice for judgement in judge_all(head, features)]
    assert np.mean(chosen == labels) > 0.75


@pytest.mark.parametrize("items", [180, 1200], ids=["logistic map", "isotonic map"])
def test_its_confidence_is_how_often_it_is_right(items):
    """Calibrated out of fold, so that it does not believe its own memory; and it ranks right above wrong."""
    head = fitting.fit(*a_world(items, seed=3), CLASSES, strength=1.0)
    features, labels = a_world(2000, seed=2)
    judged = judge_all(head, features)
    right = [judgement.choice == label for judgement, label in zip(judged, labels, strict=True)]
    confidence = [judgement.confidence for judgement in judged]
    assert ece(confidence, right) < 0.08
    assert auroc(confidence, right) > 0.7


def test_probabilities_sum_to_one_and_the_choice_is_the_largest(head):
    """Whatever the features."""
    for judgement in judge_all(head, np.random.default_rng(5).normal(0, 100, (50, 4))):
        assert sum(judgement.probabilities) == pytest.approx(1)
        assert judgement.choice == int(np.argmax(judgement.probabilities))
        assert 0 <= judgement.confidence <= 1


def test_never_having_erred_is_not_certainty():
    """A handful of right answers says little."""
    features, labels = a_world(12, noise=0.01)
    head = fitting.fit(features, labels, CLASSES, strength=1.0)
    assert max(judgement.confidence for judgement in judge_all(head, features)) < 0.95


def test_a_class_without_labels_is_never_chosen():
    """Even with two classes left, where the library keeps one row of weights."""
    features, labels = a_world(200)
    for absent in ({2}, {0}):
        kept = ~np.isin(labels, list(absent))
        head = fitting.fit(features[kept], labels[kept], CLASSES, strength=1.0)
        judged = judge_all(head, features)
        assert absent.isdisjoint(judgement.choice for judgement in judged)
        right = [j.choice == label for j, label in zip(judged, labels, strict=True) if label not in absent]
        assert np.mean(right) > 0.7


def test_one_class_is_nothing_to_learn_from():
    """Said clearly."""
    with pytest.raises(ValueError, match="two classes"):
        fitting.fit(np.ones((5, 4)), [1] * 5, CLASSES, strength=1.0)


def test_a_head_comes_back_from_its_file_as_it_went(head, tmp_path):
    """Rounding aside; and the file is small."""
    data = heads.dump(head, KEY)
    (tmp_path / "head.json").write_bytes(data)
    again = heads.load(tmp_path / "head.json", KEY)
    for row in a_world(50, seed=7)[0]:
        before, after = head.judge(row), again.judge(row)
        assert after.choice == before.choice
        assert after.confidence == pytest.approx(before.confidence, abs=0.02)
    assert len(data) < 20_000


@pytest.mark.parametrize("field", ["model_sha256", "template_sha256", "sampler", "task"])
def test_a_head_made_for_something_else_is_stale(head, field):
    """And says what changed."""
    other = msgspec.structs.replace(KEY, **{field: "other"})
    with pytest.raises(HeadUnusable, match=f"stale.*{field}"):
        heads.parse(heads.dump(head, KEY), other)
    assert other.id != KEY.id


def test_a_file_that_is_no_head_is_refused(head):
    """Cut, wrong types, wrong shapes, numbers that are none: one clear error, nothing applied."""
    good = json.loads(heads.dump(head, KEY))
    nan = heads.encoded(np.array([np.nan] * 4), "<f4")
    bad = [b"", b"{}", b"[1]", heads.dump(head, KEY)[:-40], b"x" * (heads.MAX_HEAD_BYTES + 1)]
    changes = [{"bias": ""}, {"mean": nan}, {"weights": "AAAA"}, {"scale": "%%"}, {"format": 99}, {"classes": ["a"]}]
    bad += [json.dumps({**good, **change}).encode() for change in changes]
    for data in bad:
        with pytest.raises(HeadUnusable):
            heads.parse(data, KEY)


def test_features_of_another_shape_are_refused(head):
    """A head is no judge of what it was not fitted to."""
    with pytest.raises(HeadUnusable, match="4 features, not 3"):
        head.judge(np.zeros(3))


def test_a_missing_file_is_said(tmp_path):
    """By name, without its directory."""
    with pytest.raises(HeadUnusable, match=r"gone\.json"):
        heads.load(tmp_path / "gone.json", KEY)


def test_without_the_library_the_command_to_get_it_is_named(monkeypatch):
    """The base install has no scikit-learn."""

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(fitting.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"edged\[calibrate\]"):
        fitting.fit(*a_world(20), CLASSES, strength=1.0)


def test_a_head_is_frozen(head):
    """One judge, many threads."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        head.classes = ()
