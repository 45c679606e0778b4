"""One answered question as numbers, and the bytes it is kept as. No text, no name of who asked, no request's id.

A file is a run of frames: length, CRC-32, then the observation as msgpack. What a power cut leaves of the last frame is
recognised and ignored.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

MAX_FRAME_BYTES = 131_072
"""A hidden state of 32k numbers, and 255 options."""

_HEADER = struct.Struct("<II")
_MOST_TOKENS = 65_535


class Observation(msgspec.Struct, frozen=True, array_like=True):
    """What was seen of one question.

    ``key`` is the id of the ``HeadKey`` it was scored under: other weights or another definition give other numbers.
    ``sums`` and ``counts``: each option's sum of log-probabilities (float32) and number of tokens (uint16);
    ``hidden``: the prompt's last hidden state (float16). ``label`` is the cloud's option, None where it was not heard.
    ``is_unbiased``: the cloud was asked whatever the box thought of it, whoever served; ``is_local``: the box's
    ``choice`` was served. ``version`` is the artefact that judged, 0 for none. ``number`` counts a task's upwards.
    """

    at: float
    key: str
    sums: bytes
    counts: bytes
    hidden: bytes | None
    choice: int
    confidence: float
    label: int | None
    is_unbiased: bool
    is_local: bool
    version: int = 0
    number: int = 0

    @property
    def is_right(self) -> bool | None:
        """Whether the box said what the cloud said; None where the cloud was not heard."""
        return None if self.label is None else self.label == self.choice

    @property
    def logprobs(self) -> tuple[tuple[float, ...], ...]:
        """Tokens of each option with the sum and the mean that were seen; how it was spread over them is not kept."""
        sums = np.frombuffer(self.sums, dtype="<f4").tolist()
        counts = np.frombuffer(self.counts, dtype="<u2").tolist()
        return tuple((total / count,) * count for total, count in zip(sums, counts, strict=True))


def packed(logprobs: Sequence[Sequence[float]]) -> tuple[bytes, bytes]:
    """``sums`` and ``counts`` of an observation."""
    sums = np.array([sum(tokens) for tokens in logprobs], dtype="<f4")
    counts = np.array([min(len(tokens), _MOST_TOKENS) for tokens in logprobs], dtype="<u2")
    return sums.tobytes(), counts.tobytes()


def checked(state: bytes | None) -> bytes | None:
    """A hidden state of float16; None for what is no row of them, or is not finite: no infinity gets into a fit."""
    if not state or len(state) % 2:
        return None
    return state if np.isfinite(np.frombuffer(state, dtype="<f2")).all() else None


def frame(observation: Observation) -> bytes:
    payload = msgspec.msgpack.encode(observation)
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def frames(data: bytes) -> Iterator[tuple[int, Observation]]:
    """Each observation with the place behind it. Damaged frames are passed over; the first without an end ends it."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, crc = _HEADER.unpack_from(data, at)
        end = at + _HEADER.size + length
        if not 0 < length <= MAX_FRAME_BYTES or end > len(data):
            return
        payload = data[at + _HEADER.size : end]
        at = end
        if zlib.crc32(payload) == crc and (observation := _decoded(payload)) is not None:
            yield end, observation


def _decoded(payload: bytes) -> Observation | None:
    try:
        observation = msgspec.msgpack.decode(payload, type=Observation)
    except (msgspec.MsgspecError, RecursionError):
        return None
    options = len(observation.counts) // 2
    is_whole = len(observation.sums) == 4 * options and len(observation.counts) == 2 * options and options
    in_range = 0 <= observation.choice < options and (observation.label is None or 0 <= observation.label < options)
    return observation if is_whole and in_range and 0 not in np.frombuffer(observation.counts, "<u2") else None
