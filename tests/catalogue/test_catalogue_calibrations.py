"""What the catalogue says a model was measured to do: with provenance, for the very file it names."""

import json
import tomllib

import pytest

from edged import catalogue
from edged.catalogue.entries import load_directory
from edged.cli import main
from edged.errors import CatalogueError

NAME = "smollm2-135m-instruct"


def test_every_shipped_calibration_is_of_the_shipped_weights():
    """Other weights would make it a statement about another model."""
    entries = catalogue.load().values()
    assert any(entry.calibrations for entry in entries)
    for entry in entries:
        assert all(found.model_sha256 == entry.sha256 for found in entry.calibrations)


def test_show_prints_what_was_measured_and_on_what(capsys):
    """A sentence, the numbers, the data set, the date and the weights; and what holds here is another question."""
    assert main(["models", "show", NAME]) == 0
    printed = capsys.readouterr().out
    assert "SNIPS intents (7 classes, 340 labels): serves" in printed
    assert "SNIPS intents (7 classes, 100 labels): uncertified" in printed
    assert "what holds on this box: edged calibrate TASK" in printed
    assert main(["models", "show", NAME, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["calibrations"][0]["data_url"].startswith("https://")
    assert main(["models", "show", "nothing"]) == 1
    assert "no model 'nothing' in the catalogue" in capsys.readouterr().err


def test_the_list_says_how_many(capsys):
    """As a number in JSON."""
    assert main(["models", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows[NAME]["calibrated"] >= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("accuracy = 1.5", "calibration.0.accuracy: "),
        ('level = "best"', "calibration.0.level: "),
        ('date = "yesterday"', "calibration.0.date: "),
        ('model_sha256 = "12"', "calibration.0.model_sha256: "),
        ("luck = 1", "calibration.0.luck: "),
    ],
)
def test_a_calibration_that_is_wrong_names_file_and_key(tmp_path, change, message):
    """As every key of the catalogue."""
    path = catalogue.entries._shipped_directory() / f"{NAME}.toml"
    head, _, tail = path.read_text().partition("[[calibration]]")
    first = tail.partition("[[calibration]]")[0]
    key = change.partition(" ")[0]
    lines = [line for line in first.strip().splitlines() if not line.startswith(f"{key} =")]
    text = "\n".join([head, "[[calibration]]", *lines, change, ""])
    tomllib.loads(text)
    (tmp_path / path.name).write_text(text)
    with pytest.raises(CatalogueError, match=message):
        load_directory(tmp_path)
