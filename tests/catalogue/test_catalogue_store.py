"""What is said of the files on disk."""

import os

import pytest

from edged.catalogue import State, resolve
from edged.errors import CatalogueError


@pytest.fixture
def put(store, model):
    def write(entry, content=model):
        store.directory.mkdir(exist_ok=True)
        store.files(entry).final.write_bytes(content)
        return store.files(entry).final

    return write


def test_states_follow_the_disk(store, an_entry, put, model) -> None:
    """missing, partial, unverified, installed and corrupt are told apart without hashing."""
    entry = an_entry()
    assert store.status(entry).state is State.MISSING
    assert store.status(entry).bytes == 0
    store.directory.mkdir()
    store.files(entry).part.write_bytes(b"GGUF")
    assert store.status(entry).state is State.PARTIAL
    put(entry)
    assert store.status(entry).state is State.UNVERIFIED
    assert store.verify(entry).state is State.INSTALLED
    put(entry, model[:-1])
    assert store.status(entry).state is State.CORRUPT


def test_a_start_does_not_hash_what_was_verified(store, an_entry, put, monkeypatch) -> None:
    """While size and time are the measured ones, the file is not read again; a touched one is."""
    entry = an_entry()
    path = put(entry)
    store.verify(entry)
    reads = []
    monkeypatch.setattr(
        "edged.catalogue.store.digest_of", lambda path: reads.append(path) or (entry.sha256, path.stat())
    )
    assert store.usable(entry) == path
    assert not reads
    os.utime(path, ns=(1, 1))
    assert store.usable(entry) == path
    assert reads == [path]


def test_a_changed_byte_is_found_by_verify(store, an_entry, put, model) -> None:
    """The right size does not hide the wrong content, and the finding is remembered."""
    entry = an_entry()
    put(entry, model[:-1] + b"!")
    assert store.verify(entry).state is State.CORRUPT
    assert store.status(entry).state is State.CORRUPT


def test_a_new_digest_in_the_catalogue_unmakes_an_old_file(store, an_entry, put) -> None:
    """A record of another digest than the catalogue's is not "installed"."""
    put(an_entry())
    store.verify(an_entry())
    assert store.status(an_entry(sha256="0" * 64)).state is State.CORRUPT


@pytest.mark.parametrize("record", [b"", b"[]", b"{", b"[" * 60_000, b'{"sha256": 1}', b"\xff\xfe"])
def test_a_broken_record_only_costs_a_hash(store, an_entry, put, record) -> None:
    """Whatever lies where the record should be, the answer is "unverified", never a crash."""
    entry = an_entry()
    put(entry)
    store.files(entry).sidecar.write_bytes(record)
    assert store.status(entry).state is State.UNVERIFIED
    assert store.verify(entry).state is State.INSTALLED


def test_a_record_that_is_a_symlink_is_not_believed(store, an_entry, put, tmp_path) -> None:
    """Records are read in their own directory only, and replaced instead of written through."""
    entry = an_entry()
    put(entry)
    store.verify(entry)
    elsewhere = store.files(entry).sidecar.rename(tmp_path / "elsewhere.json")
    before = elsewhere.read_bytes()
    store.files(entry).sidecar.symlink_to(elsewhere)
    assert store.status(entry).state is State.UNVERIFIED
    store.verify(entry)
    assert elsewhere.read_bytes() == before
    assert not store.files(entry).sidecar.is_symlink()


@pytest.mark.parametrize(("content", "what"), [(None, "is not installed"), (b"GGUF", "is damaged on disk")])
def test_resolve_says_which_command_to_run(store, an_entry, put, content, what) -> None:
    """A model that cannot be used names the pull, and no path of this box."""
    entry = an_entry()
    if content is not None:
        put(entry, content)
    with pytest.raises(CatalogueError, match=f"{what}: run: edged models pull tiny") as caught:
        resolve("tiny", directory=store.directory, catalogue={"tiny": entry})
    assert str(store.directory) not in caught.value.message


def test_resolve_gives_the_path_of_a_verified_file(store, an_entry, put) -> None:
    """A file put there by hand is hashed once and used."""
    path = put(an_entry())
    assert resolve("tiny", directory=store.directory, catalogue={"tiny": an_entry()}) == path
    assert store.status(an_entry()).state is State.INSTALLED


def test_a_directory_in_the_models_place_is_not_a_model(store, an_entry) -> None:
    """Only a regular file counts."""
    store.files(an_entry()).final.mkdir(parents=True)
    assert store.status(an_entry()).state is State.MISSING


def test_remove_deletes_everything_of_one_model(store, an_entry, put, model) -> None:
    """The file, its record and the leftovers go; other models stay."""
    other = put(an_entry(name="other"))
    put(an_entry())
    store.verify(an_entry())
    store.files(an_entry()).part.write_bytes(b"GGUF")
    assert store.remove(an_entry()) == len(model) + 4
    assert sorted(path.name for path in store.directory.iterdir()) == [other.name, "tiny.gguf.lock"]
    assert store.remove(an_entry()) == 0


def test_remove_does_not_pull_the_rug_from_under_a_pull(store, an_entry, put) -> None:
    """A model that is being pulled is not removed."""
    put(an_entry())
    busy = "being pulled or optimized by another process"
    with store.lock(an_entry(), wait=True), pytest.raises(CatalogueError, match=busy):
        store.remove(an_entry())
