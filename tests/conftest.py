"""Fixtures of all tests."""

from pathlib import Path

import pytest
from model_file import model_file


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The real starter model; a test that uses it is marked ``model``."""
    return model_file()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "model_path" in getattr(item, "fixturenames", ()):
            item.add_marker("model")
