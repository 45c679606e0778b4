"""Observations of a made-up task, whose right answers stand out more or less."""

import random
import struct

from edged.calibration.artefact import Artefact, LabelSource, Level
from edged.calibration.certificate import Certificate
from edged.calibration.heads import HeadKey
from edged.config import TaskFile
from edged.learning.observations import Observation, checked, packed

KEY = HeadKey(model_sha256="m" * 64, template_sha256="t" * 64, sampler="score/f16", task="intent@0123456789abcdef")
OPTIONS = ("PlayMusic", "GetWeather", "BookTable")


def a_state(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}e", *numbers)


def an_observation(**fields) -> Observation:
    """One that was escalated, and on which cloud and box agree."""
    sums, counts = packed(fields.pop("logprobs", [[-1.0, -0.5], [-3.0], [-4.0]]))
    hidden = checked(fields.pop("state", a_state(0.5, -1.0)))
    defaults = {"at": 1e9, "key": KEY.id, "choice": 0, "confidence": 0.6, "label": 0}
    return Observation(
        sums=sums,
        counts=counts,
        hidden=hidden,
        **{**defaults, "is_unbiased": False, "is_local": False, **fields},
    )


def a_task(*, max_error: float = 0.1, max_labels: int = 5_000, **fields) -> TaskFile:
    document = {
        "name": "intent",
        "option": [{"name": name} for name in OPTIONS],
        "target": {"max_error": max_error},
        "learn": {"enabled": True, "max_labels": max_labels},
    }
    return TaskFile.model_validate(document | fields)


def an_artefact(*, source: str = "cloud", threshold: float | None = 0.5, **fields) -> Artefact:
    """Certified by 200 answers without an error."""
    certificate = Certificate(
        threshold=threshold or 0.5, alpha=0.1, delta=0.1, served=200, wrong=0, bound=0.02, coverage=0.8
    )
    defaults = {"key": KEY, "level": Level.ZERO_SHOT, "labels": 400, "accuracy": 0.9, "made_at": "2026-11-01T00:00:00Z"}
    return Artefact(
        source=LabelSource(source),
        threshold=threshold,
        certificate=certificate if threshold is not None else None,
        auroc=None,
        ece=None,
        **defaults | fields,
    )


def a_stream(
    count: int, *, seed: int = 0, noise: float = 0.6, dimensions: int = 8, unbiased: float = 0.05, centres=None
):
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
            is_unbiased=rng.random() < unbiased,
        )
