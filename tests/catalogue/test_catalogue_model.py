"""The real starter model."""

import os
import shutil
from pathlib import Path

import pytest

from edged.catalogue import Pull, State, Store, find, load

ENTRY = find("smollm2-135m-instruct", load())


@pytest.fixture(scope="session")
def starter_model(tmp_path_factory) -> Path:
    """The starter model, from where it already is: $EDGED_TEST_MODEL, the models directory, else pulled for real."""
    if given := os.environ.get("EDGED_TEST_MODEL"):
        directory = tmp_path_factory.mktemp("models")
        shutil.copy(given, directory / f"{ENTRY.name}.gguf")
        return Store(directory).usable(ENTRY)
    if Store().status(ENTRY).state in (State.INSTALLED, State.UNVERIFIED):
        return Store().usable(ENTRY)
    return Pull(ENTRY, Store(tmp_path_factory.mktemp("models"))).run().path


@pytest.mark.model
def test_the_starter_model_is_what_the_catalogue_says(starter_model) -> None:
    """The published file has the promised size, digest and kind."""
    assert starter_model.stat().st_size == ENTRY.bytes
    assert Store(starter_model.parent).verify(ENTRY).state is State.INSTALLED
    assert starter_model.read_bytes()[:4] == b"GGUF"
