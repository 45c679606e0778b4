"""What `edged calibrate`, or the box itself, found out about one task on one model: how its answers are to be judged.

A file of numbers, no text of any request. It holds for one model file, template, way of answering and task definition,
and says nothing once any of those changes.
"""

import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import msgspec
import numpy as np

from edged.calibration import heads
from edged.calibration.certificate import Certificate
from edged.calibration.heads import Head, HeadKey, HeadUnusable, Judgement, Vector, softmax
from edged.core.questions import plain_scores

FORMAT = 1
MAX_ARTEFACT_BYTES = heads.MAX_HEAD_BYTES + 262_144
MAX_KNOTS = 4096
MAX_TEXT_CHARACTERS = 2000

SCORED = "score"
"""``HeadKey.sampler`` of options scored as text."""

WRONG, RIGHT = 0, 1
ANSWER_CLASSES = ("wrong", "right")
"""The classes of a head that judges generated answers."""

_KNOTS = "<f4"
STATE_TYPE = "<f2"
"""How a hidden state comes from the engine: little-endian float16."""


class Level(StrEnum):
    """How much is made of what the model's pass gives: each level needs more labels than the one before."""

    ZERO_SHOT = "zero_shot"
    MAP = "map"
    FEATURES = "features"
    HIDDEN = "hidden"


class LabelSource(StrEnum):
    """Whose labels it was fitted and certified on. CLOUD: right means "agrees with the cloud", and is said as such."""

    GOLD = "gold"
    CLOUD = "cloud"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artefact:
    """How one model's answers to one task are judged, and from which confidence on they are served.

    ``prior`` is the usual sum of each option's log-probabilities (closed sets, ZERO_SHOT and MAP; None: compared by
    the mean per token). ``knots_x`` and ``knots_y`` are the corners of a monotone map of the zero-shot score (MAP).
    ``head``: one class per option; of generated answers ``ANSWER_CLASSES`` (FEATURES and HIDDEN). ``threshold`` None
    is uncertified: everything goes to the cloud. ``certificate`` is None then, and where a share was asked for.
    ``made_at`` is an ISO date and time, a label.
    """

    key: HeadKey
    level: Level
    source: LabelSource
    prior: tuple[float, ...] | None = None
    head: Head | None = None
    knots_x: Vector | None = None
    knots_y: Vector | None = None
    threshold: float | None
    certificate: Certificate | None
    labels: int
    accuracy: float
    auroc: float | None
    ece: float | None
    made_at: str
    note: str = ""

    @property
    def wants_state(self) -> bool:
        """Whether ``judge`` must be given the last prompt token's hidden state."""
        return self.level is Level.HIDDEN

    def judge(self, logprobs: Sequence[Sequence[float]], state: bytes | None = None) -> Judgement:
        """Compare options by the log-probabilities of their tokens. Raises: HeadUnusable for other shapes."""
        if self.head is not None:
            _check_count(len(logprobs), len(self.head.classes))
            return self.head.judge(option_features(logprobs, state if self.wants_state else None))
        if self.prior is not None:
            _check_count(len(logprobs), len(self.prior))
        plain = zero_shot(logprobs, self.prior)
        return Judgement(plain.choice, self.mapped(plain.confidence), plain.probabilities)

    def judge_answer(self, score: float, features: Vector | None = None) -> float:
        """How likely a generated answer is right, from its zero-shot score or its features.

        Raises: HeadUnusable where there is a head and no features, or features of another shape.
        """
        if self.head is None:
            return self.mapped(score)
        if features is None:
            raise HeadUnusable("the head wants the answer's features")
        judged = self.head.judge(features)
        return judged.confidence if judged.choice == RIGHT else 1 - judged.confidence

    def mapped(self, score: float) -> float:
        """The zero-shot score through the monotone map, where there is one."""
        if self.knots_x is None or self.knots_y is None:
            return score
        return float(np.interp(score, self.knots_x, self.knots_y))


def zero_shot(logprobs: Sequence[Sequence[float]], prior: Sequence[float] | None) -> Judgement:
    """Options by their sums less what they usually get, or by the mean per token where that is not known."""
    probabilities = softmax(np.array(plain_scores(logprobs, prior)))
    choice = int(probabilities.argmax())
    return Judgement(choice, float(probabilities[choice]), tuple(map(float, probabilities)))


def prior_of(items: Sequence[Sequence[Sequence[float]]]) -> tuple[float, ...]:
    """The usual sum of each option's log-probabilities, over items that need no label."""
    return tuple(map(float, np.mean([_sums(logprobs) for logprobs in items], axis=0)))


def option_features(logprobs: Sequence[Sequence[float]], state: bytes | None = None) -> Vector:
    """What a closed set's head sees: each option's sum, each one's mean per token, then the hidden state if given.

    Raises: HeadUnusable where the state is not a row of float16.
    """
    parts = [_sums(logprobs), np.array(plain_scores(logprobs, None))]
    if state is not None:
        try:
            parts.append(np.frombuffer(state, dtype=STATE_TYPE).astype(np.float64))
        except ValueError as exc:
            raise HeadUnusable(f"a hidden state of {len(state)} bytes is no row of float16") from exc
    return np.concatenate(parts)


def _sums(logprobs: Sequence[Sequence[float]]) -> Vector:
    return np.array([math.fsum(tokens) for tokens in logprobs], dtype=np.float64)


def _check_count(given: int, known: int) -> None:
    if given != known:
        raise HeadUnusable(f"made for {known} options, not {given}")


# -- the file ------------------------------------------------------------------------------------------------------


class _Stored(msgspec.Struct, kw_only=True):
    """The file. ``head`` is a head's own file; the map's corners are little-endian float32 in base64."""

    format: int
    key: HeadKey
    level: Level
    source: LabelSource
    prior: tuple[float, ...] | None
    head: msgspec.Raw
    knots_x: str | None
    knots_y: str | None
    threshold: float | None
    certificate: Certificate | None
    labels: int
    accuracy: float
    auroc: float | None
    ece: float | None
    made_at: str
    note: str


def dump(artefact: Artefact) -> bytes:
    """The artefact as JSON. Weights are rounded: a threshold is to be found with what ``settled`` gives back.

    Raises: ValueError where it would not be read again: a number is not finite, a part is missing or too large.
    """
    _check_numbers(artefact)  # JSON has none that are not finite
    stored = _Stored(
        format=FORMAT,
        key=artefact.key,
        level=artefact.level,
        source=artefact.source,
        prior=artefact.prior,
        head=_NOTHING if artefact.head is None else msgspec.Raw(heads.dump(artefact.head, artefact.key)),
        knots_x=_text(artefact.knots_x),
        knots_y=_text(artefact.knots_y),
        **{name: getattr(artefact, name) for name in _PLAIN},
    )
    data = msgspec.json.format(msgspec.json.encode(stored), indent=1)
    try:
        read(data)
    except HeadUnusable as exc:
        raise ValueError(exc.message) from exc
    return data


_NOTHING = msgspec.Raw(b"null")
_PLAIN = ("threshold", "certificate", "labels", "accuracy", "auroc", "ece", "made_at", "note")


def settled(artefact: Artefact) -> Artefact:
    """The artefact as it will be when it comes back from its file. Raises: ValueError, as ``dump``."""
    return read(dump(artefact))


def parse(data: bytes, key: HeadKey) -> Artefact:
    """Raises: HeadUnusable where the bytes are no artefact, or one for another model, template, sampler or task."""
    artefact = read(data)
    if artefact.key != key:
        changed = [name for name in key.__struct_fields__ if getattr(artefact.key, name) != getattr(key, name)]
        raise HeadUnusable(f"stale: made for another {', '.join(changed)}")
    return artefact


def read(data: bytes) -> Artefact:
    """An artefact for whatever it was made. Raises: HeadUnusable where the bytes are none."""
    if len(data) > MAX_ARTEFACT_BYTES:
        raise HeadUnusable(f"an artefact of {len(data)} bytes is over the limit of {MAX_ARTEFACT_BYTES}")
    try:
        stored = msgspec.json.decode(data, type=_Stored)
        if stored.format != FORMAT:
            raise HeadUnusable(f"an artefact of format {stored.format}; this version reads {FORMAT}")
        return _checked(stored)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise HeadUnusable(f"not an artefact: {exc}") from exc


def _checked(stored: _Stored) -> Artefact:
    head = None if bytes(stored.head) == bytes(_NOTHING) else heads.parse(bytes(stored.head), stored.key)
    artefact = Artefact(
        key=stored.key,
        level=stored.level,
        source=stored.source,
        prior=stored.prior,
        head=head,
        knots_x=_array(stored.knots_x),
        knots_y=_array(stored.knots_y),
        **{name: getattr(stored, name) for name in _PLAIN},
    )
    _check_parts(artefact)
    _check_numbers(artefact)
    return artefact


def _check_parts(artefact: Artefact) -> None:
    """Each level has what it judges by, and nothing else."""
    has_head = artefact.head is not None
    if has_head != (artefact.level in (Level.FEATURES, Level.HIDDEN)):
        raise ValueError(f"the level {artefact.level} {'has no' if has_head else 'needs a'} head")
    x, y = artefact.knots_x, artefact.knots_y
    if (x is None) != (y is None) or (x is not None) != (artefact.level is Level.MAP):
        raise ValueError(f"the level {artefact.level} and its map do not go together")
    if artefact.certificate is not None and artefact.certificate.threshold != artefact.threshold:
        raise ValueError("the certificate is that of another threshold")
    if max(len(artefact.note), len(artefact.made_at)) > MAX_TEXT_CHARACTERS:
        raise ValueError(f"a text of more than {MAX_TEXT_CHARACTERS} characters")
    if x is None or y is None:
        return
    if not 0 < x.size == y.size <= MAX_KNOTS:
        raise ValueError(f"a map of {x.size} and {y.size} corners; there are 1 to {MAX_KNOTS}")
    heads.check_monotone(x, y)


def _check_numbers(artefact: Artefact) -> None:
    """Every share is one, every number is finite."""
    shares = [artefact.accuracy, artefact.auroc, artefact.ece]
    if (certified := artefact.certificate) is not None:
        shares += [certified.alpha, certified.delta, certified.bound, certified.coverage]
        if not 0 <= certified.wrong <= certified.served:
            raise ValueError(f"{certified.wrong} wrong of {certified.served} served is impossible")
    if not all(0 <= share <= 1 for share in shares if share is not None) or artefact.labels < 0:
        raise ValueError("a share is not within 0 and 1, or a count is negative")
    numbers = (*(artefact.prior or ()), 0.0 if artefact.threshold is None else artefact.threshold)
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a number is not finite")


def _text(array: Vector | None) -> str | None:
    return None if array is None else heads.encoded(array, _KNOTS)


def _array(text: str | None) -> Vector | None:
    if text is None:
        return None
    try:
        return heads.decoded(text, _KNOTS)
    except binascii.Error as exc:
        raise ValueError(f"a map that is no base64: {exc}") from exc
