"""Which file a model's name stands for once there is an optimized one."""

import hashlib
import json
import os

import pytest

from edged import catalogue
from edged.catalogue import Entry, Fit, Store, in_use, optimized
from edged.catalogue.machine import cpu_identity
from edged.errors import CatalogueError

PUBLISHED = b"GGUF published"
BETTER = b"GGUF optimized"


@pytest.fixture
def box(tmp_path):
    """An installed model with an optimized file beside it."""
    entry = Entry.model_validate(
        {
            "name": "tiny",
            "title": "A tiny model",
            "sources": ["file:///nowhere/tiny.gguf"],
            "bytes": len(PUBLISHED),
            "sha256": hashlib.sha256(PUBLISHED).hexdigest(),
            "licence": "Apache-2.0",
            "licence_url": "https://licence.example/",
            "context_tokens": 2048,
            "memory": {"kv_bytes_per_token": 10, "runtime_bytes": 1000},
            "chat": {"template": "none", "tools": False},
        }
    )
    store = Store(tmp_path)
    store.files(entry).final.write_bytes(PUBLISHED)
    install(store, entry)
    return store, entry


def install(store, entry, weight_format="Q8_0"):
    part = store.files(entry).optimized_part(weight_format)
    part.write_bytes(BETTER)
    return optimized.install(store, entry, part, weight_format=weight_format, record={"measured": {"speed": 2}})


def resolved(store, entry):
    return catalogue.resolve(entry.name, directory=store.directory, catalogue={entry.name: entry})


def change_record(store, entry, **fields):
    path = store.files(entry).optimized_record
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_optimized_file_stands_in_for_the_published_one(box):
    """The name resolves to it, its own digest is the one in use, and the provenance says what it was made from."""
    store, entry = box
    assert resolved(store, entry).read_bytes() == BETTER
    weights = in_use(store, entry)
    assert (weights.weight_format, weights.fit) == ("Q8_0", Fit.USED)
    assert weights.sha256 == hashlib.sha256(BETTER).hexdigest() != entry.sha256
    record = json.loads(store.files(entry).optimized_record.read_text())
    assert record.items() >= {"source_sha256": entry.sha256, "cpu": cpu_identity(), "measured": {"speed": 2}}.items()


@pytest.mark.parametrize(
    ("fields", "fit"),
    [
        ({"source_sha256": "0" * 64}, Fit.OTHER_SOURCE),
        ({"cpu": "another cpu"}, Fit.OTHER_CPU),
        ({"bytes": 1}, Fit.DAMAGED),
        ({"sha256": "0" * 64, "mtime_ns": 0}, Fit.DAMAGED),
        ({"format": "Q4_0"}, Fit.DAMAGED),
        ({"format": "../../etc/passwd"}, Fit.NONE),
        ({"format": 5}, Fit.NONE),
        ({"sha256": None}, Fit.NONE),
    ],
)
def test_provenance_that_does_not_match_means_the_published_file(box, fields, fit):
    """Another source, another CPU, another file than was measured, or a record that is none."""
    store, entry = box
    change_record(store, entry, **fields)
    weights = in_use(store, entry)
    assert (weights.fit, weights.sha256) == (fit, entry.sha256)
    assert resolved(store, entry) == store.files(entry).final


def test_a_changed_byte_is_noticed_and_the_published_file_used(box):
    """A new modification time means hashing again; the record alone vouches for nothing."""
    store, entry = box
    path = store.files(entry).optimized("Q8_0")
    path.write_bytes(BETTER[:-1] + b"!")
    os.utime(path, ns=(0, 1))
    assert resolved(store, entry).read_bytes() == PUBLISHED
    assert optimized.damaged(store, entry).weight_format == "Q8_0"


def test_a_touched_but_whole_file_is_hashed_once(box):
    """A copy or a restore gives a new time: the digest is checked and the new time remembered."""
    store, entry = box
    path = store.files(entry).optimized("Q8_0")
    os.utime(path, ns=(0, 12_345))
    assert resolved(store, entry) == path
    assert json.loads(store.files(entry).optimized_record.read_text())["mtime_ns"] == 12_345
    assert optimized.damaged(store, entry) is None


def test_without_the_published_file_nothing_resolves(box):
    """The optimized file is an offspring, not a replacement: the catalogue's promise is about the published one."""
    store, entry = box
    store.files(entry).final.unlink()
    with pytest.raises(CatalogueError, match="edged models pull tiny"):
        resolved(store, entry)


def test_a_new_choice_replaces_the_old_one(box):
    """One optimized file at most."""
    store, entry = box
    install(store, entry, "IQ4_NL")
    assert resolved(store, entry).name == "tiny.IQ4_NL.gguf"
    assert {path.name for path in store.directory.glob("*.gguf")} == {"tiny.gguf", "tiny.IQ4_NL.gguf"}


def test_revert_and_remove_leave_nothing_of_it(box):
    """Revert frees the optimized file; remove takes the published one, the record and the state too."""
    store, entry = box
    assert optimized.revert(store, entry) == len(BETTER)
    assert resolved(store, entry).read_bytes() == PUBLISHED
    install(store, entry)
    store.files(entry).optimizing.write_text("{}")
    assert store.remove(entry) == len(PUBLISHED) + len(BETTER)
    assert [path.name for path in store.directory.iterdir()] == ["tiny.gguf.lock"]


def test_a_model_whose_name_begins_alike_keeps_its_files(box):
    """Only NAME.FORMAT.gguf is NAME's: formats are upper case, names are not."""
    store, entry = box
    others = [store.directory / name for name in ("tiny.v2.gguf", "tiny.v2.Q8_0.gguf", "tiny-b.Q8_0.gguf")]
    for path in others:
        path.write_bytes(b"GGUF other")
    optimized.revert(store, entry)
    assert all(path.exists() for path in others)


CPUINFO = """processor\t: 0
model name\t: Some CPU
flags\t\t: fpu {flags}

processor\t: 1
model name\t: Some CPU
flags\t\t: fpu {flags}
"""


@pytest.mark.parametrize(
    ("flags", "same"),
    [("fma avx2", True), ("avx2 fma rrsba smep sme", True), ("avx2 fma avx512f", False), ("avx2", False)],
)
def test_a_cpu_is_known_by_what_makes_formats_fast(tmp_path, flags, same):
    """Vector instructions count; flags that come with a kernel or a mitigation do not, nor does their order."""
    (tmp_path / "a").write_text(CPUINFO.format(flags="avx2 fma"))
    (tmp_path / "b").write_text(CPUINFO.format(flags=flags))
    assert (cpu_identity(tmp_path / "a") == cpu_identity(tmp_path / "b")) is same


def test_a_box_without_cpuinfo_still_has_an_identity(tmp_path):
    assert cpu_identity(tmp_path / "nothing")
