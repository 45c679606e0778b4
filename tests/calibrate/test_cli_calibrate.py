"""``edged calibrate`` as a user runs it: on the real model, killed in the middle, and everything it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from calibrate_builders import write_rows, write_task

from edged.calibration.heads import HeadUnusable
from edged.calibration.shelf import Shelf
from edged.cli import main

KINDS = {
    "music": ("play", "some jazz|a song by Queen|my favourite album|the next track|a rock playlist|piano music"),
    "weather": (
        "will there be",
        "rain tomorrow|snow in Oslo|a storm tonight|sunshine at noon|fog on Monday|wind in June",
    ),
    "food": (
        "book a table",
        "at a pizza place|for two at a diner|in a sushi bar|at the steak house|for lunch|for dinner",
    ),
}
ROWS = [
    (f"{please}{start} {rest}", kind)
    for please in ("", "please ")
    for kind, (start, rests) in KINDS.items()
    for rest in rests.split("|")
]
SHOWN = [("put on a nice song", "music"), ("is it going to rain", "weather"), ("find me a restaurant", "food")]
EXAMPLES = "".join(f"\n[[example]]\ninput = {json.dumps(a)}\nanswer = {json.dumps(b)}\n" for a, b in SHOWN)


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setattr("os.nice", lambda _: None)  # this process has other tests to run
    return tmp_path / "state"


def calibrate(*arguments):
    return main(["calibrate", *map(str, arguments)])


# -- the real model --------------------------------------------------------------------------------------------------


@pytest.fixture
def box(tmp_path, state, model_path):
    """A config with the real model and a task of three easy kinds."""
    config = write_task(tmp_path, name="kind", rows=ROWS, options=tuple(KINDS))
    task = tmp_path / "tasks" / "kind.toml"
    task.write_text(task.read_text().replace("max_error = 0.05", "max_error = 0.3") + EXAMPLES)
    config.write_text(config.read_text().replace("/nowhere/tiny.gguf", str(model_path)))
    return config


def started(config, *arguments):
    command = [sys.executable, "-m", "edged", "calibrate", "kind", "--config", str(config), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.timeout(300)
def test_a_calibration_killed_in_the_middle_goes_on_where_it_was(box, state, capsys):
    """What was asked is not asked again; the whole gives an artefact, a report and one sentence."""
    with started(box) as process:
        while "asking the local model: 1" not in (line := process.stderr.readline()):
            assert line, "it ended too soon"
        family = [found := psutil.Process(process.pid), *found.children()]
        assert len(family) > 1
        assert all(member.nice() >= 10 for member in family)
        os.kill(process.pid, signal.SIGKILL)
    (kept,) = (state / "calibrate").glob("kind-*.jsonl")
    before = kept.read_bytes().rpartition(b"\n")[0]
    asked = before.count(b"\n")
    assert 10 <= asked < len(ROWS)

    with started(box, "--json") as process:
        output, said = process.communicate()
    assert process.returncode == 0, said
    assert f"going on: {asked} of {len(ROWS)} items were asked before" in said
    assert kept.read_bytes().startswith(before)
    assert kept.read_bytes().count(b"\n") == len(ROWS) + 1
    found = json.loads(output)
    assert (found["labels"], found["fitted"], found["certified_on"]) == (36, 18, 18)
    assert found["accuracy"] > 0.5
    assert re.match(r"serves \d+ % locally with at most 30 % error, confidence 90 %|uncertified", found["sentence"])
    assert Path(found["report"]).read_text().startswith("<!doctype html>")

    versions = Shelf(state / "tasks").versions("kind")
    assert [(version.number, version.is_current) for version in versions] == [(1, True)]
    artefact = versions[0].artefact
    assert artefact.key.model_sha256 == found["model_sha256"]
    assert artefact.note == found["sentence"]

    # A third run asks nothing, another target is judged from what is there, and the report goes where it is asked for.
    other = state / "other.html"
    assert calibrate("kind", "--config", box, "--cloud-share", 0.2, "--report", other) == 0
    printed = capsys.readouterr()
    assert "loading" not in printed.err
    assert re.search(r"kind: sends \d+ % to the cloud; \d+ of the \d+ it served in the test are wrong", printed.out)
    assert "artefact 2 of the task is used from now on" in printed.out
    assert other.read_text().startswith("<!doctype html>")
    current = Shelf(state / "tasks").current(artefact.key)
    assert current.certificate is None
    assert current.threshold is not None
    with pytest.raises(HeadUnusable, match="stale"):
        Shelf(state / "tasks").current(type(artefact.key)(**{**_fields(artefact.key), "model_sha256": "other"}))


@pytest.mark.timeout(300)
def test_generated_answers_are_compared_with_the_gold_ones(box, state, tmp_path, capsys):
    """A task without options: the answers' words; neither they nor the inputs are kept."""
    (tmp_path / "tasks" / "echo.toml").write_text(
        'name = "echo"\ninstructions = "Answer with one word."\n[target]\nmax_error = 0.3\n'
    )
    write_rows(tmp_path / "echo.jsonl", [(f"Say {word}.", word) for word in (f"word{i}" for i in range(20))])
    box.write_text(box.read_text().replace("[[route]]", "max_output_tokens = 8\n\n[[route]]"))
    assert calibrate("echo", "--config", box, "--data", tmp_path / "echo.jsonl", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["certified"] is False
    assert found["labels"] == 20
    assert {level["level"] for level in found["levels"]} == {"zero_shot", "map", "features"}
    (kept,) = (state / "calibrate").glob("echo-*.jsonl")
    assert "Say" not in kept.read_text()


def _fields(key):
    return {name: getattr(key, name) for name in key.__struct_fields__}


# -- what it refuses -------------------------------------------------------------------------------------------------

GOOD = [(f"text {i}", ("happy", "sad")[i % 2]) for i in range(30)]


def refusal(capsys, *arguments):
    assert calibrate(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if "items are left out" not in line]
    return line


def test_an_unknown_task_lists_the_known_ones(tmp_path, state, capsys):
    """And where there is none, where it looked."""
    config = write_task(tmp_path, rows=GOOD)
    assert refusal(capsys, "moods", "--config", config) == "edged: no task 'moods' (known: mood)"
    (tmp_path / "tasks" / "mood.toml").unlink()
    assert refusal(capsys, "mood", "--config", config).startswith("edged: no task 'mood' (known: no task file in ")


def test_a_broken_task_file_is_named_with_its_key(tmp_path, state, capsys):
    """Only where the task asked for is not among the good ones."""
    config = write_task(tmp_path, rows=GOOD)
    (tmp_path / "tasks" / "bad.toml").write_text('name = "bad"\n[target]\nmax_error = 2\n')
    assert "bad.toml: target.max_error: " in refusal(capsys, "bad", "--config", config)
    assert "bad.toml" not in refusal(capsys, "mood", "--config", config)


def test_data_that_cannot_be_used_is_refused_before_anything_is_loaded(tmp_path, state, capsys):
    """No data set; no such file; too few; one answer only; answers that are no options."""
    config = write_task(tmp_path)
    dataset = tmp_path / "tasks" / "mood.jsonl"
    assert "cannot be read: No such file" in refusal(capsys, "mood", "--config", config)
    task = tmp_path / "tasks" / "mood.toml"
    task.write_text(task.read_text().replace('dataset = "mood.jsonl"', ""))
    named = 'edged: the task "mood" names no dataset: give one with --data FILE'
    assert refusal(capsys, "mood", "--config", config) == named
    for rows, message in (
        (GOOD[:19], "edged: 19 labelled items are too few: at least 20 are needed"),
        ([(text, "sad") for text, _ in GOOD], 'every one of the 30 answers is "sad"'),
        ([(text, "glad") for text, _ in GOOD], "not among the task's 2 options (30 of 30 items)"),
    ):
        write_rows(dataset, rows)
        assert message in refusal(capsys, "mood", "--config", config, "--data", dataset)


def test_a_model_that_is_not_there_is_said(tmp_path, state, capsys):
    """By its name."""
    config = write_task(tmp_path, rows=GOOD)
    assert refusal(capsys, "mood", "--config", config) == "edged: the file of model 'tiny' does not exist"


def test_labels_from_the_cloud_need_a_daemon(tmp_path, state, capsys, model_path):
    """Its budgets and labels hold then; data without answers asks the cloud by itself."""
    config = write_task(tmp_path, rows=[(text, None) for text, _ in GOOD])
    config.write_text(
        '[server]\nlisten = "127.0.0.1:1"\n\n' + config.read_text().replace("/nowhere/tiny.gguf", str(model_path))
    )
    said = "edged: --from-cloud asks through the running daemon, whose budgets then hold; none answers at 127.0.0.1:1"
    assert refusal(capsys, "mood", "--config", config) == said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--max-error", "0"), "argument --max-error: must be above 0 and below 1, not 0"),
        (("--cloud-share", "1"), "argument --cloud-share: must be above 0 and below 1, not 1"),
        (("--confidence", "x"), "argument --confidence: must be a number, not x"),
        (("--limit", "0"), "argument --limit: must be at least 1, not 0"),
        (("--max-error", "0.1", "--cloud-share", "0.1"), "not allowed with argument"),
    ],
)
def test_a_number_out_of_range_is_refused_by_name(capsys, arguments, message):
    """Before anything is read."""
    with pytest.raises(SystemExit):
        calibrate("mood", *arguments)
    assert message in capsys.readouterr().err


def test_without_the_library_the_command_to_get_it_is_named(tmp_path, state, capsys, monkeypatch):
    """The base install has no scikit-learn."""
    config = write_task(tmp_path, rows=GOOD)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = 'edged: calibrating needs scikit-learn: pip install "edged[calibrate]"'
    assert refusal(capsys, "mood", "--config", config) == said
