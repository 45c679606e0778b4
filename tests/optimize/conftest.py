"""What the tests of the optimizer share."""

import pytest
from optimize_builders import a_store, an_optimization

from edged.optimize import run


@pytest.fixture(autouse=True)
def _a_short_look_around(monkeypatch):
    """How busy the box is does not matter here."""
    monkeypatch.setattr(run, "_SAMPLE_S", 0.01)


@pytest.fixture
def store(tmp_path, model_path):
    return a_store(tmp_path / "models", model_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_path):
    """An optimization that ran to its end, once: its store and its report."""
    store = a_store(tmp_path_factory.mktemp("finished") / "models", model_path)
    return store, an_optimization(store).run()
