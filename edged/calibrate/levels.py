"""Which level to use: each is cross-validated on the fitting half alone, and must win beyond its noise.

The rule, from the lowest level to the highest: MAP replaces the zero-shot score where its Brier score is better (it
changes no ranking), FEATURES and HIDDEN replace whatever stands where their area under the risk-coverage curve is
better. "Better" is a paired bootstrap over the items whose 95 % interval lies above zero. The strength of a head is the
one with the best held-out log-likelihood.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edged.calibration import fitting, heads, metrics
from edged.calibration.artefact import ANSWER_CLASSES, RIGHT, Level, option_features, prior_of, zero_shot
from edged.calibration.heads import Matrix, Vector

STRENGTHS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RESAMPLES = 1000
FEWEST_WRONG = 2
"""With fewer errors, or right answers, among the items nothing can be said of a map."""

_SEED = 0
_LOW_PERCENT = 2.5
_CODED = 4 / 3 * 2
"""Bytes of the file per weight: float16 in base64."""

Rights = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Scored:
    """What the model said of one item of a closed set; ``label`` is the right option's place."""

    logprobs: tuple[tuple[float, ...], ...]
    state: bytes | None
    label: int


@dataclass(frozen=True, slots=True)
class Answered:
    """What was seen of one generated answer. ``score`` is its zero-shot score."""

    score: float
    features: tuple[float, ...] | None
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One level as cross-validation saw it; ``problem`` says why it could not be tried.

    ``gain`` is the improvement over the level that stood, with the lower end of its 95 % interval.
    """

    level: Level
    used: bool = False
    accuracy: float | None = None
    auroc: float | None = None
    aurc: float | None = None
    brier: float | None = None
    ece: float | None = None
    gain: float | None = None
    gain_low: float | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The level to use, what an artefact of it consists of, and everything that was tried.

    ``scores`` and ``right`` are those of the level in cross-validation, item by item.
    """

    level: Level
    parts: dict[str, Any]
    tried: tuple[Tried, ...]
    scores: Vector
    right: Rights


@dataclass(frozen=True, slots=True)
class _Level:
    """One level: its held-out confidence and ranking of the items, and how to make it from all of them."""

    level: Level
    scores: Vector
    right: Rights
    ranks: Vector
    parts: Callable[[], dict[str, Any]]


def choose_scored(items: Sequence[Scored], classes: Sequence[str]) -> Choice:
    """The level for a closed set. Raises: ConfigError where scikit-learn is missing."""
    base = _best_plain(items)
    tries: list[_Level | Tried] = [base, _map(base)]
    labels = [item.label for item in items]
    plain = np.array([option_features(item.logprobs) for item in items])
    tries.append(_head(Level.FEATURES, plain, labels, classes))
    if all(item.state is not None for item in items):
        whole = np.array([option_features(item.logprobs, item.state) for item in items])
        tries.append(_head(Level.HIDDEN, whole, labels, classes))
    else:
        tries.append(Tried(level=Level.HIDDEN, problem="the model gave no hidden state"))
    return _climb(base, tries)


def choose_answered(items: Sequence[Answered]) -> Choice:
    """The level for generated answers. Raises: ConfigError where scikit-learn is missing."""
    right = np.array([item.right for item in items])
    scores = np.array([item.score for item in items])
    base = _Level(Level.ZERO_SHOT, scores, right, scores, dict)
    tries: list[_Level | Tried] = [base, _map(base)]
    if all(item.features is not None for item in items):
        features = np.array([item.features for item in items], dtype=np.float64)
        tries.append(_answer_head(features, right))
    else:
        tries.append(Tried(level=Level.FEATURES, problem="the answers have no features"))
    return _climb(base, tries)


# -- the rule ------------------------------------------------------------------------------------------------------


def _climb(base: _Level, tries: Sequence[_Level | Tried]) -> Choice:
    """From the lowest level to the highest; ``base`` stands until something beats it."""
    standing, told = base, []
    for found in tries:
        if isinstance(found, Tried):
            told.append(found)
            continue
        seen = _seen(found)
        if found is not base:
            gain, low = _gain(standing, found)
            seen = replace(seen, gain=gain, gain_low=low)
            standing = found if low > 0 else standing
        told.append(seen)
    tried = tuple(replace(seen, used=seen.level is standing.level) for seen in told)
    parts = standing.parts()
    return Choice(level=standing.level, parts=parts, tried=tried, scores=standing.scores, right=standing.right)


def _seen(found: _Level) -> Tried:
    scores, right = found.scores.tolist(), found.right.tolist()
    return Tried(
        level=found.level,
        accuracy=float(found.right.mean()),
        auroc=metrics.auroc(found.ranks.tolist(), right),
        aurc=_aurc(found.ranks, found.right),
        brier=metrics.brier(scores, right),
        ece=metrics.ece(scores, right),
    )


def _gain(standing: _Level, new: _Level) -> tuple[float, float]:
    """How much smaller the loss becomes, and the lower end of its 95 % interval over resampled items."""
    random = np.random.default_rng(_SEED)
    count = len(new.scores)
    ranks = new.level is not Level.MAP

    def loss(level: _Level, places: NDArray[np.int64]) -> float:
        right = level.right[places]
        return _aurc(level.ranks[places], right) if ranks else _brier(level.scores[places], right)

    def gain(places: NDArray[np.int64]) -> float:
        return loss(standing, places) - loss(new, places)

    gains = [gain(random.integers(0, count, count)) for _ in range(RESAMPLES)]
    return gain(np.arange(count)), float(np.percentile(gains, _LOW_PERCENT))


def _aurc(ranks: Vector, right: Rights) -> float:
    wrong = ~right[np.argsort(-ranks, kind="stable")]
    return float((np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean())


def _brier(scores: Vector, right: Rights) -> float:
    return float(((scores - right) ** 2).mean())


# -- the levels ----------------------------------------------------------------------------------------------------


def _best_plain(items: Sequence[Scored]) -> _Level:
    """The zero-shot score with the options' usual sums taken off, or without: whichever ranks better here."""
    usual = prior_of([item.logprobs for item in items])
    with_prior = _plain(items, usual)
    plain = _plain(items, None)
    return plain if _aurc(plain.ranks, plain.right) < _aurc(with_prior.ranks, with_prior.right) else with_prior


def _plain(items: Sequence[Scored], prior: tuple[float, ...] | None) -> _Level:
    """The prior needs no label, so no fold is held out for it."""
    judged = [zero_shot(item.logprobs, prior) for item in items]
    right = np.array([judgement.choice == item.label for judgement, item in zip(judged, items, strict=True)])
    scores = np.array([judgement.confidence for judgement in judged])
    return _Level(Level.ZERO_SHOT, scores, right, scores, lambda: {"prior": prior})


def _map(base: _Level) -> _Level | Tried:
    if (problem := _one_sided(base.right)) is not None:
        return Tried(level=Level.MAP, problem=problem)

    def parts() -> dict[str, Any]:
        knots_x, knots_y = fitting.monotone_map(base.scores, base.right)
        return {**base.parts(), "knots_x": knots_x, "knots_y": knots_y}

    return _Level(Level.MAP, _cross_mapped(base.scores, base.right), base.right, base.ranks, parts)


def _head(level: Level, features: Matrix, labels: Sequence[int], classes: Sequence[str]) -> _Level | Tried:
    needed = int(_CODED * (features.shape[1] + 4) * (len(classes) + 4))
    if needed > heads.MAX_HEAD_BYTES:
        return Tried(level=level, problem=f"a head of {needed} bytes is over the limit of {heads.MAX_HEAD_BYTES}")
    try:
        strength, probabilities = _strongest(features, labels, len(classes))
    except ValueError as exc:
        return Tried(level=level, problem=str(exc))
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == np.asarray(labels)

    def parts() -> dict[str, Any]:
        return {"head": fitting.fit(features, labels, classes, strength=strength)}

    return _Level(level, _cross_mapped(top, right), right, top, parts)


def _answer_head(features: Matrix, right: Rights) -> _Level | Tried:
    if (problem := _one_sided(right)) is not None:
        return Tried(level=Level.FEATURES, problem=problem)
    labels = right.astype(np.int64).tolist()
    try:
        strength, probabilities = _strongest(features, labels, len(ANSWER_CLASSES))
    except ValueError as exc:
        return Tried(level=Level.FEATURES, problem=str(exc))

    def parts() -> dict[str, Any]:
        return {"head": fitting.fit(features, labels, ANSWER_CLASSES, strength=strength)}

    scores = probabilities[:, RIGHT]
    return _Level(Level.FEATURES, scores, right, scores, parts)


def _strongest(features: Matrix, labels: Sequence[int], classes: int) -> tuple[float, Matrix]:
    """The strength whose held-out probabilities fit the labels best, and those probabilities."""
    best: tuple[float, float, Matrix] | None = None
    for strength in STRENGTHS:
        probabilities = fitting.cross_validated(features, labels, classes, strength=strength)
        said = probabilities[np.arange(len(labels)), np.asarray(labels)]
        likelihood = float(np.log(np.maximum(said, 1e-9)).mean())
        if best is None or likelihood > best[0]:
            best = (likelihood, strength, probabilities)
    assert best is not None
    return best[1], best[2]


def _cross_mapped(scores: Vector, right: Rights) -> Vector:
    """Each score through a map that was fitted without its fold."""
    mapped = np.zeros(len(scores))
    for fold, rest in fitting.folds(len(scores)):
        knots_x, knots_y = fitting.monotone_map(scores[rest], right[rest])
        mapped[fold] = np.interp(scores[fold], knots_x, knots_y)
    return mapped


def _one_sided(right: Rights) -> str | None:
    wrong = int((~right).sum())
    if min(wrong, len(right) - wrong) >= FEWEST_WRONG:
        return None
    return f"{wrong} of {len(right)} answers are wrong: there is nothing to tell apart"


def vector(features: Sequence[float]) -> Vector:
    return np.array(features, dtype=np.float64)
