"""Forgetting: what came of requests is deleted, what came of a data set of one's own stays."""

import contextlib
from pathlib import Path

from edged.calibration.artefact import LabelSource
from edged.calibration.shelf import Shelf
from edged.learning import journal, memory, store
from edged.learning.journal import Event

_WHY = "forgotten on request"


def forget(tasks_directory: Path, task: str) -> int | None:
    """Delete a task's observations and the versions fitted on them, whose number is returned; None: there was nothing.

    A daemon that runs begins anew with the next observation. Raises: OSError; ValueError where that is no task's name.
    """
    shelf = Shelf(tasks_directory)
    versions = shelf.versions(task)
    learnt = [
        version for version in versions if version.artefact is None or version.artefact.source is LabelSource.CLOUD
    ]
    directory = tasks_directory / task
    if not directory.is_dir():
        return None
    current = next((version for version in versions if version.is_current), None)
    while current is not None and current in learnt:
        number = shelf.roll_back(task, _WHY)
        current = next((version for version in versions if version.number == number), None)
    for version in learnt:
        version.path.unlink(missing_ok=True)
    found = store.forget(directory)
    memory.forget(directory)
    with contextlib.suppress(FileNotFoundError):
        (directory / journal.FILE_NAME).unlink()
        found = True
    if not found and not learnt:
        return None
    journal.note(directory, Event(at=journal.now(), what="forgotten", why=_WHY))
    return len(learnt)
