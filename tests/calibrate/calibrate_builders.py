"""Small worlds to calibrate in."""

import json
import random

from edged.calibrate import outcome
from edged.calibrate.levels import Answered, Scored
from edged.calibrate.outcome import About, Target
from edged.calibrate.report import Provenance
from edged.calibration.artefact import LabelSource
from edged.calibration.heads import HeadKey

KEY = HeadKey(model_sha256="11", template_sha256="22", sampler="score/f16", task="mood@0123")
ABOUT = About(key=KEY, source=LabelSource.GOLD, made_at="2026-01-01T00:00:00+00:00")
OPTIONS = ("happy", "sad", "<b>angry</b>")
FIVE_PERCENT = Target(max_error=0.05, cloud_share=None, delta=0.1)
PROVENANCE = Provenance(
    task="mood",
    definition_sha256="ab" * 32,
    model="tiny",
    model_sha256="cd" * 32,
    data="mood.jsonl",
    made_at="2026-01-01T00:00:00+00:00",
    version=3,
    options=OPTIONS,
)


def scored(count, *, seed=0, skill=4.0, bias=3.0):
    """Items of three options: the right one scores higher by ``skill``, the first one is liked by ``bias`` whatever."""
    rng = random.Random(seed)
    items = []
    for _ in range(count):
        label = rng.randrange(3)
        sums = [rng.gauss(-10 + skill * (option == label) + bias * (option == 0), 1.0) for option in range(3)]
        items.append(Scored(tuple((total / 2, total / 2) for total in sums), None, label))
    return items


def answered(count, *, seed=0, accuracy=0.85, skill=0.15):
    """Generated answers whose score tells right from wrong by ``skill``."""
    rng = random.Random(seed)
    items = []
    for _ in range(count):
        right = rng.random() < accuracy
        items.append(Answered(min(0.99, max(0.0, rng.gauss(0.5 + skill * right, 0.1))), None, right))
    return items


def of_scored(fitting, certifying, target=FIVE_PERCENT):
    return outcome.of_scored(fitting, certifying, classes=OPTIONS, target=target, about=ABOUT)


def write_task(directory, *, name="mood", rows=None, extra="", options=OPTIONS[:2]):
    """A config, a task file and its dataset; returns the config's path."""
    tasks = directory / "tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    text = f'name = "{name}"\ndataset = "{name}.jsonl"\n{extra}\n[target]\nmax_error = 0.05\n'
    text += "".join(f"\n[[option]]\nname = {json.dumps(option)}\n" for option in options)
    (tasks / f"{name}.toml").write_text(text)
    if rows is not None:
        write_rows(tasks / f"{name}.jsonl", rows)
    config = directory / "edged.toml"
    config.write_text(
        '[[model]]\nname = "tiny"\nfile = "/nowhere/tiny.gguf"\n\n[[route]]\nname = "auto"\nlocal = "tiny"\n'
    )
    return config


def write_rows(path, rows):
    path.write_text("".join(json.dumps({"input": text, "answer": answer}) + "\n" for text, answer in rows))
