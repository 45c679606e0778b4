"""Where the tests' real model comes from."""

import os
from pathlib import Path

from edged.catalogue import Pull, State, Store, find, load

NAME = "smollm2-135m-instruct"


def model_file() -> Path:
    """The starter model: $EDGED_TEST_MODEL, else the models directory, else pulled into it as a user would."""
    if given := os.environ.get("EDGED_TEST_MODEL"):
        return Path(given)
    entry, store = find(NAME, load()), Store()
    if store.status(entry).state in (State.INSTALLED, State.UNVERIFIED):
        return store.usable(entry)
    return Pull(entry, store).run().path
