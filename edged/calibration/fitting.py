"""Fitting a head to labelled features; needs the ``calibrate`` extra, never runs on the event loop."""

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.calibration import discriminant
from edged.calibration.heads import Head, Matrix, Vector, rounded, softmax
from edged.errors import ConfigError

FOLDS = 5
ISOTONIC_FROM = 1000
"""Below so many labels a logistic map of the log-odds is closer to the truth than a free monotone one."""

STRENGTHS = (0.03,)
"""What ``fit_best`` tries of logistic weights."""

_TEMPERS = tuple(1.5**step for step in range(-8, 3))
_SEED = 0
_BINARY = 2
_MAX_ITERATIONS = 2000
_PLATT_KNOTS = 33

Labels = NDArray[np.int64]


def fit(features: Matrix, labels: Sequence[int], classes: Sequence[str], *, strength: float) -> Head:
    """Fit weights on all items and the map on out-of-fold probabilities of the same items.

    ``features`` has shape (items, features); ``labels`` index ``classes``; ``strength`` is sklearn's C: the smaller,
    the more the weights are held back. A class without labels is never chosen.

    Raises: ConfigError where scikit-learn is missing; ValueError where fewer than two classes have labels.
    """
    known, scaled = np.asarray(labels, dtype=np.int64), _Scaled.of(features)
    weights, bias = _logistic(scaled.values, known, len(classes), strength)
    held_out = _held_out(scaled.values, known, len(classes), strength)
    return _head(scaled, weights, bias, held_out, known, classes)


def fit_best(features: Matrix, labels: Sequence[int], classes: Sequence[str]) -> tuple[Head, Matrix]:
    """Fit the kind of weights that foretells held-out labels best: logistic of some strength, or discriminant.

    Returns the head as it will come back from its file, and the probabilities (items, classes) by weights that have
    not seen the item. Raises: as ``fit``.
    """
    known, scaled = np.asarray(labels, dtype=np.int64), _Scaled.of(features)
    with _one_thread():
        kinds = _held_out_kinds(scaled.values, known, len(classes))
        final = _kinds(scaled.values, known, len(classes))
    best, held_out, warmth, most = 0, np.zeros((0, 0)), 1.0, -np.inf
    for kind, logits in enumerate(kinds):
        temper, found = _tempered(logits, known)
        if found > most:
            best, held_out, warmth, most = kind, softmax(logits * temper), temper, found
    weights, bias = final[best]
    return rounded(_head(scaled, weights * warmth, bias * warmth, held_out, known, classes)), held_out


@dataclass(frozen=True, slots=True)
class _Scaled:
    """Standardised features; a feature that never varies stays as it is."""

    values: Matrix
    mean: Vector
    scale: Vector

    @classmethod
    def of(cls, features: Matrix) -> "_Scaled":
        mean, scale = features.mean(axis=0), features.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        return cls((features - mean) / scale, mean, scale)


def _head(
    scaled: _Scaled, weights: Matrix, bias: Vector, held_out: Matrix, labels: Labels, classes: Sequence[str]
) -> Head:
    """The weights with the map that their held-out probabilities ask for."""
    knots_x, knots_y = monotone_map(held_out.max(axis=1), held_out.argmax(axis=1) == labels)
    return Head(
        classes=tuple(classes),
        mean=scaled.mean,
        scale=scaled.scale,
        weights=weights,
        bias=bias,
        knots_x=knots_x,
        knots_y=knots_y,
    )


def _kinds(scaled: Matrix, labels: Labels, classes: int) -> list[tuple[Matrix, Vector]]:
    """Weights and biases of every kind that is tried, always in the same order."""
    logistic = [_logistic(scaled, labels, classes, strength) for strength in STRENGTHS]
    return logistic + [found[1:] for found in discriminant.weights(scaled, labels, classes)]


def _held_out_kinds(scaled: Matrix, labels: Labels, classes: int) -> list[Matrix]:
    """Of each kind the logits (items, classes) by weights that have not seen the item."""
    kinds = len(STRENGTHS) + len(discriminant.SHRINKAGES)
    logits = [np.zeros((len(labels), classes)) for _ in range(kinds)]
    for fold, rest in folds(len(labels)):
        for place, (weights, bias) in enumerate(_kinds(scaled[rest], labels[rest], classes)):
            logits[place][fold] = scaled[fold] @ weights.T + bias
    return logits


def _tempered(logits: Matrix, labels: Labels) -> tuple[float, float]:
    """The factor that makes the logits foretell the labels best, and how well they do then."""
    tried = [(factor, log_likelihood(softmax(logits * factor), labels)) for factor in _TEMPERS]
    return max(tried, key=lambda pair: pair[1])


def log_likelihood(probabilities: Matrix, labels: Sequence[int] | Labels) -> float:
    """Mean log-probability of the labels; certainty is not taken at its word."""
    own = probabilities[np.arange(len(labels)), np.asarray(labels)]
    return float(np.log(np.clip(own, 1e-6, 1.0)).mean())


def cross_validated(features: Matrix, labels: Sequence[int], classes: int, *, strength: float) -> Matrix:
    """Each item's probability of every class (items, classes), by weights fitted without the item's fold.

    Raises: as ``fit``.
    """
    return _held_out(_Scaled.of(features).values, np.asarray(labels, dtype=np.int64), classes, strength)


def monotone_map(scores: Vector, right: NDArray[np.bool_]) -> tuple[Vector, Vector]:
    """Corners of the map from score to the share of right answers: isotonic with many items, logistic with few."""
    if right.all() or not right.any():
        share = (right.sum() + 1) / (len(right) + 2)  # Laplace: certainty needs more than never having erred
        return np.array([0.0]), np.array([share])
    if len(scores) < ISOTONIC_FROM:
        return _platt(scores, right)
    isotonic = _sklearn("isotonic").IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(scores, right)
    return np.asarray(isotonic.X_thresholds_, dtype=np.float64), np.asarray(isotonic.y_thresholds_, dtype=np.float64)


def _platt(scores: Vector, right: NDArray[np.bool_]) -> tuple[Vector, Vector]:
    """Logistic regression on the score's own log-odds (Platt, 1999), tabulated where the scores are."""
    odds = _log_odds(scores)
    model = _sklearn("linear_model").LogisticRegression(C=1.0)
    with _one_thread():
        model.fit(odds.reshape(-1, 1), right)
    corners = np.linspace(odds.min(), odds.max(), _PLATT_KNOTS)
    values = model.predict_proba(corners.reshape(-1, 1))[:, 1]
    return 1 / (1 + np.exp(-corners)), np.maximum.accumulate(values)


def _log_odds(probabilities: Vector) -> Vector:
    clipped = np.clip(probabilities, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)), dtype=np.float64)


def _logistic(features: Matrix, labels: Labels, classes: int, strength: float) -> tuple[Matrix, Vector]:
    present = np.unique(labels)
    if len(present) < _BINARY:
        raise ValueError("a head needs labels of at least two classes")
    model = _sklearn("linear_model").LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS)
    with _one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: the head is judged by cross-validation anyway
        model.fit(features, labels)
    weights, bias = np.zeros((classes, features.shape[1])), np.full(classes, -np.inf)
    if len(present) == _BINARY:  # sklearn keeps one row for two classes
        weights[present[1]], bias[present[0]], bias[present[1]] = model.coef_[0], 0.0, model.intercept_[0]
    else:
        weights[present], bias[present] = model.coef_, model.intercept_
    return weights, np.where(np.isfinite(bias), bias, discriminant.NEVER)


def _held_out(features: Matrix, labels: Labels, classes: int, strength: float) -> Matrix:
    probabilities = np.zeros((len(labels), classes))
    for fold, rest in folds(len(labels)):
        weights, bias = _logistic(features[rest], labels[rest], classes, strength)
        probabilities[fold] = softmax(features[fold] @ weights.T + bias)
    return probabilities


def _one_thread() -> AbstractContextManager[Any]:
    """On matrices of this size threads wait for each other longer than they compute, and others want the cores."""
    limits: AbstractContextManager[Any] = importlib.import_module("threadpoolctl").threadpool_limits(1)
    return limits


def folds(count: int) -> Iterator[tuple[Labels, Labels]]:
    """Each fold's places, and the places of all others."""
    order = np.random.default_rng(_SEED).permutation(count)
    for fold in np.array_split(order, min(FOLDS, count)):
        yield fold, np.setdiff1d(order, fold)


def _sklearn(module: str) -> Any:
    """A module of the optional library, which has no types."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as exc:
        raise ConfigError('fitting a head needs scikit-learn: pip install "edged[calibrate]"') from exc
