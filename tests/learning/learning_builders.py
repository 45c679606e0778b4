"""Observations of a made-up task, whose right answers stand out more or less."""

import random
import struct

from edged.calibration.heads import HeadKey
from edged.learning.observations import Observation, halved, packed

KEY = HeadKey(model_sha256="m" * 64, template_sha256="t" * 64, sampler="score/f16", task="intent@0123456789abcdef")
OPTIONS = ("PlayMusic", "GetWeather", "BookTable")


def a_state(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def an_observation(**fields) -> Observation:
    """One that was escalated, and on which cloud and box agree."""
    sums, counts = packed(fields.pop("logprobs", [[-1.0, -0.5], [-3.0], [-4.0]]))
    hidden = halved(fields.pop("state", a_state(0.5, -1.0)))
    defaults = {"at": 1e9, "key": KEY.id, "choice": 0, "confidence": 0.6, "label": 0}
    return Observation(
        sums=sums,
        counts=counts,
        hidden=hidden,
        **{**defaults, "is_audited": False, "is_local": False, **fields},
    )


def a_stream(count: int, *, seed: int = 0, noise: float = 0.6, dimensions: int = 8):
    """Observations whose hidden state says the label, but for the noise; the model's own choice is often right."""
    rng = random.Random(seed)
    centres = [[rng.gauss(0, 1) for _ in range(dimensions)] for _ in OPTIONS]
    for number in range(count):
        label = rng.randrange(len(OPTIONS))
        state = a_state(*(rng.gauss(centre, noise) for centre in centres[label]))
        sums = [rng.gauss(-4 + (2 if place == label else 0), 1.5) for place in range(len(OPTIONS))]
        choice = max(range(len(OPTIONS)), key=lambda place: sums[place])
        yield an_observation(
            at=1e9 + number,
            logprobs=[[total] for total in sums],
            state=state,
            choice=choice,
            confidence=0.5,
            label=label,
            is_audited=rng.random() < 0.05,
        )
