"""edged tasks: what is known, in one sentence and as JSON; what is taken back and what is forgotten."""

import hashlib
import json
from pathlib import Path

import pytest

from edged.calibration.artefact import Artefact, LabelSource, Level
from edged.calibration.certificate import Certificate
from edged.calibration.shelf import Shelf
from edged.cli import main, task_effects
from edged.cli import tasks as command
from edged.config import load, load_tasks, tasks_directory
from edged.core import Reason, Record, Status, Target
from edged.dispatch.head_keys import head_key
from edged.dispatch.tasks import local_model
from edged.learning.observations import Observation, packed
from edged.learning.store import Store as Observations
from edged.ledger.store import Store

CONFIG = """
[[model]]
name = "small"
file = "{file}"
[[upstream]]
name = "up"
base_url = "https://up.example/v1"
[[upstream.model]]
name = "big"
input_usd_per_mtok = 1
output_usd_per_mtok = 1
[[route]]
name = "auto"
local = "small"
cloud = ["up/big"]
budget = {{ usd_per_day = 1.0 }}
"""
TASK = """
name = "intent"
[[option]]
name = "music"
[[option]]
name = "weather"
[target]
max_error = 0.05
[learn]
enabled = true
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config with one task, and the test's own state directory."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    (tmp_path / "small.gguf").write_bytes(b"GGUF" + bytes(60))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "intent.toml").write_text(TASK)
    path = tmp_path / "edged.toml"
    path.write_text(CONFIG.format(file=tmp_path / "small.gguf"))
    return path


@pytest.fixture
def edged(config: Path, capsys: pytest.CaptureFixture[str]):
    """Run a command; its exit status, and what it said on either stream."""

    def run(*arguments: str) -> tuple[int, str]:
        status = main([*arguments, "--config", str(config)])
        said = capsys.readouterr()
        return status, said.out + said.err

    return run


def key_of(config: Path):
    loaded = load(config)
    (task,) = load_tasks(tasks_directory(loaded, config), loaded)
    model = local_model(task, loaded)
    return head_key(task, model, hashlib.sha256(model.file.read_bytes()).hexdigest())


def put(config: Path, *, source=LabelSource.CLOUD, threshold: float | None = 0.7) -> int:
    found = Certificate(threshold=threshold or 0, alpha=0.05, delta=0.1, served=245, wrong=3, bound=0.04, coverage=0.72)
    artefact = Artefact(
        key=key_of(config),
        level=Level.ZERO_SHOT,
        source=source,
        threshold=threshold,
        certificate=None if threshold is None else found,
        labels=340,
        accuracy=0.97,
        auroc=None,
        ece=None,
        made_at="2026-11-25T12:00:00Z",
        note="" if threshold is not None else "this model cannot do this task",
    )
    return Shelf(config.parent / "state" / "tasks").put(artefact)


def observe(config: Path, *, cloud: int = 0, unbiased: int = 0, unlabelled: int = 0, outdated: int = 0) -> None:
    sums, counts = packed([[-1.0], [-2.0]])
    usual = {"at": 1e9, "sums": sums, "counts": counts, "hidden": None, "choice": 0, "confidence": 0.5}

    def one(key: str, label: int | None, *, is_unbiased: bool = False) -> Observation:
        return Observation(key=key, label=label, is_unbiased=is_unbiased, is_local=False, **usual)

    key = key_of(config).id
    seen = [one(key, 0, is_unbiased=number < unbiased) for number in range(cloud)]
    seen += [one(key, None)] * unlabelled + [one("old", 0)] * outdated
    store = Observations(config.parent / "state" / "tasks" / "intent")
    store.append(seen)
    store.close()


def answer(config: Path, *targets: Target) -> None:
    usual = {"received_at": 1_790_000_000.0, "api": "systemone", "model": "auto", "route": "auto", "status": Status.OK}
    records = [
        Record(id=f"r{number}", served_by=target, reason=Reason.WITHIN_BUDGET, task="intent", **usual)
        for number, target in enumerate(targets)
    ]
    store = Store(config.parent / "state" / "ledger.db")
    store.write(records)
    store.close()


def as_json(edged) -> dict:
    status, said = edged("tasks", "--json")
    assert status == 0, said
    return json.loads(said)["tasks"][0]


def test_a_task_nobody_measured_says_so(edged) -> None:
    """With what follows from it."""
    status, said = edged("tasks")
    assert status == 0
    assert "intent: uncertified: nothing was measured yet; everything goes to the cloud" in said


def test_the_promise_is_one_plain_sentence(config, edged) -> None:
    """What is served, how wrong at most, how sure, from how many labels, and whose."""
    put(config)
    told = "serves 72 % locally with at most 5 % disagreement with the cloud, confidence 90 %, from 340 labels"
    assert told in edged("tasks")[1]
    put(config, source=LabelSource.GOLD)
    assert "with at most 5 % error, confidence 90 %, from 340 labels" in edged("tasks", "intent")[1]
    put(config, threshold=None)
    assert "uncertified: this model cannot do this task; everything goes to the cloud" in edged("tasks")[1]


def test_labels_are_told_by_what_they_are_good_for(config, edged) -> None:
    """The unbiased sample apart, and what other weights saw."""
    observe(config, cloud=5, unbiased=2, unlabelled=3, outdated=4)
    found = as_json(edged)["labels"]
    assert {name: found[name] for name in ("cloud", "unbiased", "unlabelled", "outdated")} == {
        "cloud": 5,
        "unbiased": 2,
        "unlabelled": 3,
        "outdated": 4,
    }
    assert (
        "labels: 5 from the cloud, 2 of them the unbiased sample; 3 answers without, 4 outdated"
        in edged("tasks", "intent")[1]
    )


def test_the_local_share_is_told_by_day_and_by_quarters(config, edged) -> None:
    """From the ledger, so that nothing has to be believed."""
    cloud, local = Target.CLOUD, Target.LOCAL
    answer(config, cloud, cloud, cloud, local, local, cloud, local, local)
    found = as_json(edged)["local_share"]
    assert found["by_day"] == [{"day": "2026-09-21", "requests": 8, "local": 4}]
    assert [(one["requests"], one["local"]) for one in found["by_quarter"]] == [(2, 0), (2, 1), (2, 1), (2, 2)]
    assert "0 % -> 50 % -> 50 % -> 100 %" in edged("tasks")[1]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda config: (config.parent / "small.gguf").write_bytes(b"GGUF another"), "model_sha256"),
        (lambda config: (config.parent / "tasks" / "intent.toml").write_text('instructions = "?"\n' + TASK), "task"),
    ],
)
def test_what_was_made_for_something_else_is_stale_and_says_for_what(config, edged, change, what) -> None:
    """Shown in the list, and why in the detail."""
    put(config)
    change(config)
    found = as_json(edged)
    assert found["stale"]
    assert what in found["problem"]
    assert not found["certified"]
    assert "1 stale" in edged("tasks")[1]
    assert "version 1 is not used: stale: made for another" in edged("tasks", "intent")[1]


def test_a_model_that_is_not_there_is_no_crash(config, edged) -> None:
    """The other numbers are shown all the same."""
    observe(config, cloud=2)
    (config.parent / "small.gguf").unlink()
    assert "uncertified: the model's file cannot be read" in edged("tasks")[1]


def test_a_version_is_taken_back_by_hand(config, edged) -> None:
    """The one before it is in use; then none is, and the last roll-back is told."""
    put(config)
    put(config)
    assert edged("tasks", "intent", "--roll-back")[1] == "version 2 is taken back; version 1 is in use\n"
    assert as_json(edged)["version"] == 1
    assert edged("tasks", "intent", "--roll-back")[1] == "version 1 is taken back; the task is uncertified\n"
    assert as_json(edged)["last_roll_back"]["why"] == "taken back by hand"
    assert "uncertified: its last version was taken back: taken back by hand" in edged("tasks")[1]
    status, said = edged("tasks", "intent", "--roll-back")
    assert (status, said) == (1, 'edged: the task "intent" has no version in use\n')


def test_what_was_learnt_is_forgotten_and_what_was_measured_stays(config, edged) -> None:
    """Not a byte of what came of requests; also once the task file is gone."""
    put(config, source=LabelSource.GOLD)
    put(config)
    observe(config, cloud=5)
    directory = config.parent / "state" / "tasks" / "intent"
    assert edged("tasks", "intent", "--forget") == (0, "forgotten: all observations, and 1 versions fitted on them\n")
    assert (as_json(edged)["version"], as_json(edged)["source"]) == (1, "gold")
    assert not [path for path in directory.iterdir() if path.name.startswith(("observations", "0002", "progress"))]
    observe(config, cloud=1)
    (config.parent / "tasks" / "intent.toml").unlink()
    assert edged("tasks", "intent", "--forget")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("nope",), 'the task "nope" does not exist (known: intent)'),
        (("--forget",), "say which task"),
        (("nope", "--forget"), 'nothing was learnt of the task "nope"'),
        (("../../etc", "--forget"), "cannot be forgotten"),
    ],
)
def test_a_wrong_name_is_one_readable_line(edged, arguments, told) -> None:
    """And status 1."""
    status, said = edged("tasks", *arguments)
    assert status == 1
    assert told in said
    assert len(said.splitlines()) == 1


def test_without_the_extra_it_says_what_to_install(edged, monkeypatch) -> None:
    """Labels are kept; the check warns as well."""
    monkeypatch.setattr(command, "can_fit", lambda: False)
    monkeypatch.setattr(task_effects, "can_fit", lambda: False)
    assert 'pip install "edged[calibrate]"' in edged("tasks", "intent")[1]
    assert 'to fit needs: pip install "edged[calibrate]"' in edged("check")[1]


def test_check_names_the_tasks_and_what_may_surprise(config, edged) -> None:
    """A route without a cloud to learn from, schemas alike, a data set that is not there."""
    (config.parent / "tasks" / "mood.toml").write_text('dataset = "gone.jsonl"\n' + TASK.replace("intent", "mood"))
    status, said = edged("check")
    assert status == 0
    assert "tasks: intent, mood\n" in said
    assert 'task "intent": has the same schema as mood: it serves only requests that name it' in said
    assert "gone.jsonl is not a file" in said
    config.write_text(config.read_text().replace('cloud = ["up/big"]', "cloud = []"))
    assert 'learn.enabled: the route "auto" has no cloud to learn from' in edged("check")[1]
    (config.parent / "tasks" / "mood.toml").write_text("name = 1")
    status, said = edged("check", "--json")
    assert (status, json.loads(said)["tasks"]) == (1, ["intent"])
    assert any("mood.toml: name:" in problem["message"] for problem in json.loads(said)["problems"])


def test_what_cannot_be_read_is_one_readable_line(config, edged) -> None:
    """Another program's link in the place of the observations."""
    directory = config.parent / "state" / "tasks" / "intent"
    directory.mkdir(parents=True)
    (directory / "observations").symlink_to("/etc/hostname")
    status, said = edged("tasks")
    assert status == 1
    assert "what was learnt cannot be read" in said
