"""What turns an answer's features into a probability of being right: a small file, applied with numpy.

A head belongs to one model file, template, sampler and task. It is fitted by ``fitting``, stored as JSON, and says
nothing once any of those changes.
"""

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edged.errors import EdgedError

FORMAT = 1
MAX_HEAD_BYTES = 1_048_576

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]


class HeadUnusable(EdgedError):
    """A stored head cannot be read, or was made for something else."""

    code = "head_unusable"


class HeadKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a head was made for: a change of any of these makes it stale. Hashes are hexadecimal sha256."""

    model_sha256: str
    template_sha256: str
    sampler: str
    task: str

    @property
    def id(self) -> str:
        """A short name for the file."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The chosen class, how likely it is right, and the probability of every class."""

    choice: int
    confidence: float
    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Multinomial logistic regression on standardised features, then a monotone map of its largest probability.

    Shapes: ``mean`` and ``scale`` (features), ``weights`` (classes, features), ``bias`` (classes); ``knots_x`` and
    ``knots_y`` are the corners of the monotone map, between them it is linear.
    """

    classes: tuple[str, ...]
    mean: Vector
    scale: Vector
    weights: Matrix
    bias: Vector
    knots_x: Vector
    knots_y: Vector

    def judge(self, features: Vector) -> Judgement:
        """Raises: HeadUnusable where the features have another shape than those it was fitted to."""
        if features.shape != self.mean.shape:
            raise HeadUnusable(f"the head knows {self.mean.size} features, not {features.size}")
        logits = self.weights @ ((features - self.mean) / self.scale) + self.bias
        probabilities = softmax(logits)
        choice = int(probabilities.argmax())
        confidence = float(np.interp(probabilities[choice], self.knots_x, self.knots_y))
        return Judgement(choice, confidence, tuple(map(float, probabilities)))


def rounded(head: Head) -> Head:
    """The head as it comes back from its file: a threshold is to be found with what will be used."""
    return Head(
        classes=head.classes,
        mean=_as_stored(head.mean, "<f4"),
        scale=_as_stored(head.scale, "<f4"),
        weights=_as_stored(head.weights, "<f2"),
        bias=_as_stored(head.bias, "<f4"),
        knots_x=_as_stored(head.knots_x, "<f4"),
        knots_y=_as_stored(head.knots_y, "<f4"),
    )


def softmax(logits: Vector) -> Vector:
    """Probabilities along the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), dtype=np.float64)


class _Stored(msgspec.Struct, kw_only=True):
    """The file. Arrays are little-endian float32 (weights: float16) in base64."""

    format: int
    key: HeadKey
    classes: tuple[str, ...]
    mean: str
    scale: str
    weights: str
    bias: str
    knots_x: str
    knots_y: str


def dump(head: Head, key: HeadKey) -> bytes:
    """The head as JSON. What it says after a round trip differs by rounding of the weights to 11 bits only."""
    stored = _Stored(
        format=FORMAT,
        key=key,
        classes=head.classes,
        mean=encoded(head.mean, "<f4"),
        scale=encoded(head.scale, "<f4"),
        weights=encoded(head.weights, "<f2"),
        bias=encoded(head.bias, "<f4"),
        knots_x=encoded(head.knots_x, "<f4"),
        knots_y=encoded(head.knots_y, "<f4"),
    )
    return msgspec.json.format(msgspec.json.encode(stored), indent=1)


def parse(data: bytes, key: HeadKey) -> Head:
    """Raises: HeadUnusable where the bytes are no head, or one made for another model, template, sampler or task."""
    if len(data) > MAX_HEAD_BYTES:
        raise HeadUnusable(f"a head of {len(data)} bytes is over the limit of {MAX_HEAD_BYTES}")
    try:
        stored = msgspec.json.decode(data, type=_Stored)
        head = _head(stored)
    except (msgspec.MsgspecError, ValueError) as exc:
        raise HeadUnusable(f"not a head: {exc}") from exc
    if stored.format != FORMAT:
        raise HeadUnusable(f"a head of format {stored.format}; this version reads {FORMAT}")
    if stored.key != key:
        changed = [name for name in key.__struct_fields__ if getattr(stored.key, name) != getattr(key, name)]
        raise HeadUnusable(f"stale: made for another {', '.join(changed)}")
    return head


def load(path: Path, key: HeadKey) -> Head:
    """Raises: HeadUnusable."""
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise HeadUnusable(f"{path.name}: {exc.strerror}") from exc
    return parse(data, key)


def _head(stored: _Stored) -> Head:
    classes, mean = stored.classes, decoded(stored.mean, "<f4")
    head = Head(
        classes=classes,
        mean=mean,
        scale=decoded(stored.scale, "<f4"),
        weights=decoded(stored.weights, "<f2").reshape(len(classes), mean.size),
        bias=decoded(stored.bias, "<f4"),
        knots_x=decoded(stored.knots_x, "<f4"),
        knots_y=decoded(stored.knots_y, "<f4"),
    )
    arrays = (head.mean, head.scale, head.weights, head.bias, head.knots_x, head.knots_y)
    if not all(np.isfinite(array).all() for array in arrays) or not (head.scale > 0).all():
        raise ValueError("a number is not finite, or a scale not positive")
    if head.scale.size != mean.size or head.bias.size != len(classes) or not 0 < head.knots_x.size == head.knots_y.size:
        raise ValueError("arrays of the wrong length")
    check_monotone(head.knots_x, head.knots_y)
    return head


def check_monotone(knots_x: Vector, knots_y: Vector) -> None:
    """Raises: ValueError where a corner of the map is no number, or lies below or before the one before it."""
    numbers = np.isfinite(knots_x).all() and np.isfinite(knots_y).all()
    if not numbers or (np.diff(knots_x) < 0).any() or (np.diff(knots_y) < 0).any():
        raise ValueError("the map is not monotone")


def encoded(array: Vector | Matrix, kind: str) -> str:
    """As base64 of numbers of this kind."""
    return base64.b64encode(array.astype(kind).tobytes()).decode("ascii")


def _as_stored(array: Vector | Matrix, kind: str) -> Vector | Matrix:
    return array.astype(kind).astype(np.float64)


def decoded(text: str, kind: str) -> Vector:
    """What ``encoded`` gave. Raises: ValueError."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype=kind).astype(np.float64)
