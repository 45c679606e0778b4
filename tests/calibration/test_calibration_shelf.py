"""The shelf: versions that survive crashes, readers that never see half a file, and the way back."""

import multiprocessing
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_calibration_artefact import KEY, an_artefact

from edged.calibration import shelf as shelves
from edged.calibration.heads import HeadUnusable
from edged.calibration.shelf import MOST_VERSIONS, Shelf


def put(shelf, labels):
    return shelf.put(an_artefact(labels=labels))


def test_what_was_put_last_is_in_use(tmp_path):
    """By number, for its own key alone; of a task that was never calibrated there is nothing."""
    shelf = Shelf(tmp_path / "tasks")
    assert shelf.current(KEY) is None
    assert shelf.versions("demo") == ()
    assert [put(shelf, 1), put(shelf, 2)] == [1, 2]
    assert shelf.current(KEY).labels == 2
    assert [(v.number, v.is_current, v.artefact.labels) for v in shelf.versions("demo")] == [
        (1, False, 1),
        (2, True, 2),
    ]


def test_at_most_five_versions_stay(tmp_path):
    """The oldest go; numbers are never used again."""
    shelf = Shelf(tmp_path)
    for labels in range(1, 9):
        put(shelf, labels)
    assert [v.number for v in shelf.versions("demo")] == [4, 5, 6, 7, 8]
    shelf.roll_back("demo", "audits")
    assert put(shelf, 9) == 9


def test_rolling_back_goes_to_the_one_before_and_never_forward_again(tmp_path):
    """Down to nothing, which is uncertified; each version keeps why it was withdrawn."""
    shelf = Shelf(tmp_path)
    assert shelf.roll_back("demo", "nothing there") is None
    for labels in (1, 2, 3):
        put(shelf, labels)
    assert shelf.roll_back("demo", "audits broke it") == 2
    assert put(shelf, 4) == 4
    assert shelf.roll_back("demo", "again") == 2
    assert shelf.current(KEY).labels == 2
    assert shelf.roll_back("demo", "and again") == 1
    assert shelf.roll_back("demo", "the last") is None
    assert shelf.current(KEY) is None
    assert [v.withdrawn for v in shelf.versions("demo")] == ["the last", "and again", "audits broke it", "again"]


@given(st.lists(st.sampled_from(["put", "back"]), max_size=30))
@settings(deadline=None, max_examples=12)
def test_whatever_the_order_the_version_in_use_is_the_newest_not_withdrawn(tmp_path_factory, steps):
    """A simple list is the model."""
    shelf, known, withdrawn = Shelf(tmp_path_factory.mktemp("shelf")), [], set()
    current, last = None, 0
    for step in steps:
        if step == "put":
            last += 1
            assert put(shelf, last) == last
            known, current = [*known, last][-MOST_VERSIONS:], last
        elif current is not None:
            withdrawn.add(current)
            current = max((n for n in known if n < current and n not in withdrawn), default=None)
            assert shelf.roll_back("demo", "why") == current
        found = shelf.current(KEY)
        assert (None if found is None else found.labels) == current
        assert [v.number for v in shelf.versions("demo")] == known


def test_a_stale_or_broken_version_is_said_and_not_used(tmp_path):
    """Another model; a cut file; one that is gone; a link; a broken ``current``. A new version mends all of it."""
    shelf = Shelf(tmp_path)
    put(shelf, 1)
    place = tmp_path / "demo"
    with pytest.raises(HeadUnusable, match="model_sha256"):
        shelf.current(msgspec.structs.replace(KEY, model_sha256="99"))
    (place / "0001.json").write_bytes((place / "0001.json").read_bytes()[:50])
    with pytest.raises(HeadUnusable, match="not an artefact"):
        shelf.current(KEY)
    assert "not an artefact" in shelf.versions("demo")[0].problem
    (place / "0001.json").unlink()
    with pytest.raises(HeadUnusable, match="version 1 is gone"):
        shelf.current(KEY)
    (place / "0001.json").symlink_to("/etc/passwd")
    with pytest.raises(HeadUnusable, match="cannot be read"):
        shelf.current(KEY)
    for broken in (b"", b"nonsense", b'{"number": "x"}', b'{"number": 1, "withdrawn": {"x": "y"}}', b"[" * 70_000):
        (place / "current").write_bytes(broken)
        with pytest.raises(HeadUnusable, match="current"):
            shelf.current(KEY)
    assert put(shelf, 2) == 2
    assert shelf.current(KEY).labels == 2


def test_a_crash_between_the_two_writes_leaves_the_old_one_in_use(tmp_path, monkeypatch):
    """The version is there, the name is not changed; the next one gets a number of its own."""
    shelf = Shelf(tmp_path)
    put(shelf, 1)
    whole = shelves.replace_file

    def dies(path, data):
        if path.name == "current":
            raise OSError("power cut")
        whole(path, data)

    monkeypatch.setattr(shelves, "replace_file", dies)
    with pytest.raises(OSError, match="power cut"):
        put(shelf, 2)
    monkeypatch.undo()
    assert shelf.current(KEY).labels == 1
    assert put(shelf, 3) == 3


def test_everything_is_synced_before_it_counts(tmp_path, monkeypatch):
    """Two files and their directory, in the order file, name, directory."""
    calls = []
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(Path(f"/proc/self/fd/{fd}").readlink()))
    put(Shelf(tmp_path), 1)
    names = [path.name for path in calls]
    assert names == ["0001.json.new", "demo", "current.new", "demo"]


@pytest.mark.parametrize("name", ["..", "a/b", "", ".hidden", "a" * 65])
def test_a_task_name_is_never_a_path(tmp_path, name):
    """Whatever a key says."""
    with pytest.raises(ValueError, match="name"):
        Shelf(tmp_path).versions(name)


def _writer(directory, rounds, done):
    shelf = Shelf(directory)
    for labels in range(rounds):
        put(shelf, labels)
    done.set()


def test_readers_never_see_half_a_version(tmp_path):
    """Two writers and a reader at once, in processes of their own: every read is whole, every number is used once."""
    put(Shelf(tmp_path), 0)
    fork = multiprocessing.get_context("spawn")
    events = [fork.Event(), fork.Event()]
    writers = [fork.Process(target=_writer, args=(tmp_path, 20, event)) for event in events]
    for writer in writers:
        writer.start()
    shelf, reads = Shelf(tmp_path), 0
    while not all(event.is_set() for event in events):
        assert shelf.current(KEY) is not None
        reads += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert reads > 0
    assert shelf.versions("demo")[-1].number == 41
