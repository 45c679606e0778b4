"""The catalogue files and the names in them."""

import re
from pathlib import Path

import pytest

from edged.catalogue import find, load
from edged.catalogue.entries import load_directory
from edged.errors import CatalogueError

MODELS = Path(__file__).parents[2] / "models"
GOOD = (MODELS / "smollm2-135m-instruct.toml").read_text(encoding="utf-8")


def test_the_shipped_catalogue_is_valid_and_holds_the_starter_model() -> None:
    """Every shipped file passes its own validation; the starter model is the published one, byte for byte."""
    shipped = load_directory(MODELS)
    assert set(shipped) == {path.stem for path in MODELS.glob("*.toml")}
    starter = shipped["smollm2-135m-instruct"]
    assert (starter.bytes, starter.context_tokens) == (98_362_432, 8192)
    assert starter.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert starter.memory_bytes(16_384) == 98_362_432 + 16_384 * 23_040 + 170_000_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text + "\n[extra]\n", "extra: Extra inputs are not permitted"),
        (lambda text: re.sub(r"sha256 = .*", 'sha256 = "abc"', text), "sha256: "),
        (lambda text: re.sub(r"(?m)^sha256 = .*\n", "", text), "sha256: Field required"),
        (lambda text: re.sub(r"bytes = 98.*", "bytes = 0", text), "bytes: "),
        (lambda text: re.sub(r"sources = .*", "sources = []", text), "sources: "),
        (lambda text: re.sub(r"sources = .*", 'sources = ["ftp://x/y"]', text), r"sources\.0: unknown scheme 'ftp'"),
        (lambda text: re.sub(r'(?m)^name = ".*"', 'name = "../up"', text), "name: "),
        (lambda text: re.sub(r'(?m)^name = ".*"', 'name = "other"', text), 'name: "other" must equal'),
        (lambda text: text.replace("tools = false", ""), r"chat\.tools: Field required"),
        (lambda text: text + "=", "not valid TOML"),
    ],
)
def test_a_wrong_catalogue_file_names_the_file_and_the_key(tmp_path, change, message) -> None:
    """No key is ignored and none is guessed."""
    path = tmp_path / "smollm2-135m-instruct.toml"
    path.write_text(change(GOOD), encoding="utf-8")
    with pytest.raises(CatalogueError, match=f"smollm2-135m-instruct.toml: .*{message}"):
        load_directory(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "a/b",
        "%2e%2e",
        "nul\0byte",
        "",
        "\ud800",
        "x" * 10_000,
        "smollm2-135m-instruct.gguf",
    ],
)
def test_a_name_is_a_key_and_never_a_path(name) -> None:
    """Whatever is not a key of the table is unknown; the error stays short, printable and lists what there is."""
    with pytest.raises(CatalogueError, match="smollm2-135m-instruct") as caught:
        find(name, load())
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400
    caught.value.message.encode()


def test_an_operator_adds_entries_and_replaces_shipped_ones(tmp_path, monkeypatch) -> None:
    """$EDGED_CATALOGUE wins by name and leaves the other entries alone."""
    own = GOOD.replace("SmolLM2 135M Instruct, Q4_1", "From our own mirror")
    (tmp_path / "smollm2-135m-instruct.toml").write_text(own, encoding="utf-8")
    monkeypatch.setenv("EDGED_CATALOGUE", str(tmp_path))
    assert load()["smollm2-135m-instruct"].title == "From our own mirror"
    assert "gemma3-270m" in load()
    monkeypatch.setenv("EDGED_CATALOGUE", str(tmp_path / "gone"))
    with pytest.raises(CatalogueError, match="does not exist"):
        load()
