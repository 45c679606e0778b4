"""A calibration whose model fails: what is lost is asked again, what cannot be asked is left out, in words."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from calibrate_builders import FIVE_PERCENT, KEY

from edged.calibrate import run
from edged.calibrate.dataset import Dataset, Item
from edged.calibrate.results import Results
from edged.calibrate.run import Calibration, LabelsEnded, Plan
from edged.config import ModelConfig, TaskFile
from edged.errors import ConfigError, ContextOverflow, EngineError, WorkerLost

TASK = TaskFile.model_validate(
    {"name": "mood", "option": [{"name": "happy"}, {"name": "sad"}], "target": {"max_error": 0.1}}
)
ITEMS = tuple(Item(f"text {i}", ("happy", "sad")[i % 2], i + 1) for i in range(40))


class Faulty:
    """Answers right; ``faults`` holds the errors that come first, by input."""

    memory_bytes = 1_000_000

    def __init__(self, faults=None):
        self.faults = {text: list(errors) for text, errors in (faults or {}).items()}
        self.asked = []

    async def score(self, task, text):
        self.asked.append(text)
        if self.faults.get(text):
            raise self.faults[text].pop(0)
        place = int(text.split()[1]) % 2
        return ((-1.0 - 5 * place,), (-6.0 + 5 * place,)), None


class Quiet:
    def progress(self, stage, done, total):
        pass

    def note(self, text):
        pass


class Cloud:
    """Labels so many items, then no more."""

    def __init__(self, most):
        self.left = most

    async def option(self, task, text):
        if not self.left:
            raise LabelsEnded("today's cloud budget is spent")
        self.left -= 1
        return int(text.split()[1]) % 2


@pytest.fixture
def calibrate(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_PAUSE_S", 0.0)

    def calibrated(local, *, items=ITEMS, cloud=None):
        @asynccontextmanager
        async def loaded(model, locate):
            yield local

        monkeypatch.setattr(run, "loaded", loaded)
        model = ModelConfig(name="tiny", file=tmp_path / "tiny.gguf")
        plan = Plan(
            task=TASK,
            model=model,
            key=KEY,
            dataset=Dataset(items),
            target=FIVE_PERCENT,
            made_at="2026-01-01T00:00:00+00:00",
            locate=lambda: tmp_path,
            cloud=cloud,
        )
        results = Results(tmp_path / "results", KEY, form="plain")
        calibration = Calibration(plan, results, Quiet())
        try:
            return asyncio.run(calibration.run()), calibration.warnings
        finally:
            results.close()

    return calibrated


def test_an_item_whose_worker_died_is_asked_again(calibrate):
    """Twice; it counts like every other."""
    lost = WorkerLost("it died")
    local = Faulty({"text 3": [lost, lost]})
    found, warnings = calibrate(local)
    assert local.asked.count("text 3") == 3
    assert (found.artefact.labels, found.artefact.accuracy, warnings) == (40, 1.0, [])


def test_a_worker_that_dies_again_and_again_ends_it_and_what_was_asked_is_kept(calibrate):
    """The next run goes on from there."""
    first = Faulty({"text 3": [WorkerLost("it died")] * 3})
    with pytest.raises(EngineError, match="died 3 times at line 4: run it again to go on"):
        calibrate(first)
    second = Faulty()
    calibrate(second)
    assert "text 3" in second.asked
    assert len(second.asked) < len(ITEMS)


def test_an_item_that_does_not_fit_is_left_out_and_not_asked_again(calibrate):
    """Such requests escalate; nothing of them is certified."""
    found, warnings = calibrate(Faulty({"text 3": [ContextOverflow("too long")]}))
    assert found.artefact.labels == 39
    assert warnings == ["left out because they are too long for the model (such requests escalate): 1"]
    again = Faulty()
    calibrate(again)
    assert not again.asked


def test_labels_that_end_leave_what_there_is(calibrate):
    """Enough of them make an artefact; the local model is asked about those alone."""
    local = Faulty()
    found, warnings = calibrate(local, cloud=Cloud(30))
    assert found.artefact.labels == len(local.asked) == 30
    assert found.artefact.source == "cloud"
    assert warnings == ["the cloud gave no more labels: today's cloud budget is spent"]


def test_too_few_labels_of_the_cloud_are_refused_before_the_model_is_asked(calibrate):
    """It would be for nothing."""
    local = Faulty()
    with pytest.raises(ConfigError, match="19 labelled items are too few: at least 20 are needed"):
        calibrate(local, cloud=Cloud(19))
    assert not local.asked


def test_items_without_an_answer_are_said(calibrate):
    """Where the others have one."""
    items = (*ITEMS, Item("text 100", None, 101))
    _, warnings = calibrate(Faulty(), items=items)
    assert warnings == ["left out because they have no answer (--from-cloud asks for it): 1"]
