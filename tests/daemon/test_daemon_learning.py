"""The box learns a task from a scripted cloud: the real daemon, the real model, the real fit in its own process."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from daemon_builders import Box, config_text, daemon, scripted_cloud, until

from edged.testing.upstream import Reply, ScriptedUpstream, Seen

pytestmark = pytest.mark.timeout(240)

MARKER = "zebra4711"
TASK = """
name = "intent"
instructions = "What does this sentence ask for?"
input_word = "Sentence"
answer_word = "Intent"
[[option]]
name = "music"
[[option]]
name = "weather"
[[option]]
name = "restaurant"
[[example]]
input = "put on some jazz please"
answer = "music"
[[example]]
input = "will it snow in Oslo tonight"
answer = "weather"
[[example]]
input = "reserve a table for two"
answer = "restaurant"
[target]
max_error = {max_error}
[learn]
enabled = true
audit_share = {audit_share}
"""
SENTENCES = {
    "music": ("play {} by {}", "put on {} from {}", "I want to hear {} by {}", "start the song {} of {}"),
    "weather": ("will it rain in {} {}", "how warm is it in {} {}", "is there snow in {} {}", "forecast for {} {}"),
    "restaurant": ("book a table at {} for {}", "reserve seats in {} for {}", "get me dinner at {} for {}"),
}
FIRST = ("Harvest", "Oslo", "Lima", "Blue", "Mario", "Kyoto", "River", "Luna", "Paris", "Nora", "Dakar", "Ruby")
SECOND = ("today", "two", "Neil", "tomorrow", "five", "Nina", "tonight", "six", "Otis", "on Monday", "ten", "Aretha")


def a_sentence(rng: random.Random) -> tuple[str, str]:
    label = rng.choice(sorted(SENTENCES))
    return rng.choice(SENTENCES[label]).format(rng.choice(FIRST), rng.choice(SECOND)), label


def meant(text: str) -> str:
    """What a sentence asks for, as anybody would say who knows the list."""
    forms = {label: [form.partition("{}")[0] for form in found] for label, found in SENTENCES.items()}
    return next(label for label, starts in forms.items() if text.startswith(tuple(starts)))


def a_teacher(says: Callable[[str], str] = meant) -> Callable[[Seen], Reply]:
    def respond(seen: Seen) -> Reply:
        text = seen.body["messages"][-1]["content"].replace(f" {MARKER}", "")
        (key,) = seen.body["response_format"]["json_schema"]["schema"]["properties"]
        return Reply(text=json.dumps({key: says(text)}))

    return respond


def a_box(directory: Path, model: Path, cloud: ScriptedUpstream, *, max_error=0.1, audit_share=0.1, **environment):
    (directory / "tasks").mkdir(exist_ok=True)
    (directory / "tasks" / "intent.toml").write_text(TASK.format(max_error=max_error, audit_share=audit_share))
    text = config_text(model=model, cloud=cloud.base_url, settings="slots = 4")
    return daemon(directory, text.replace("threads = 1", "threads = 2"), **environment)


def ask(box: Box, text: str, **fields):
    """The answer to a sentence: what was chosen, and what edged says of it."""
    body = json.dumps({"model": "auto", "state": text, "task": "intent", **fields})
    status, _, found = box.request("POST", "/v1/systemone", body)
    assert status == 200, found
    document = json.loads(found)
    return document["answers"]["intent"]["choice"], document["edged"]["answers"]["intent"]


def known(box: Box):
    done = box.command("tasks", "intent", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["tasks"][0]


def state(directory: Path) -> Path:
    return directory / "state" / "edged" / "tasks" / "intent"


def asked(box: Box, count: int, *, rng: random.Random, suffix: str = ""):
    """So many sentences, four at a time: (the answer, what it should have been)."""
    items = [a_sentence(rng) for _ in range(count)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda item: ask(box, item[0] + suffix), items))
    return [(answer, label) for answer, (_, label) in zip(answers, items, strict=True)]


def shares(answers) -> tuple[float, float]:
    """(what the box answered of these itself, how much of that was wrong)"""
    local = [(chosen, label) for (chosen, told), label in answers if told["served_by"] == "local"]
    wrong = sum(chosen != label for chosen, label in local)
    return len(local) / len(answers), wrong / max(1, len(local))


@pytest.mark.model
def test_the_local_share_grows_with_traffic_while_errors_stay_low(tmp_path: Path, model_path: Path) -> None:
    """From nothing to most, on labels of the cloud alone; what was learnt outlives a kill, and no text is kept."""
    rng = random.Random(7)
    with scripted_cloud(respond=a_teacher()) as cloud:
        with a_box(tmp_path, model_path, cloud) as box:
            box.wait_ready()
            first = asked(box, 40, rng=rng, suffix=f" {MARKER}")
            assert shares(first)[0] == 0.0
            assert {told["certificate"].partition(":")[0] for (_, told), _ in first} == {"uncertified"}
            for _ in range(8):
                if known(box)["certified"]:
                    break
                asked(box, 50, rng=rng, suffix=f" {MARKER}")
                until(lambda: not is_fitting(box), within_s=60)
            found = known(box)
            assert found["certified"], found
            assert "disagreement with the cloud, confidence 90 %" in found["certificate"]
            last = asked(box, 60, rng=rng, suffix=f" {MARKER}")
            share, wrong = shares(last)
            assert share > 0.5
            assert wrong <= 0.1
            quarters = known(box)["local_share"]["by_quarter"]
            assert quarters[0]["local"] < quarters[-1]["local"]
            box.process.send_signal(signal.SIGKILL)
            box.process.wait()
        with a_box(tmp_path, model_path, cloud) as box:
            box.wait_ready()
            assert known(box)["version"] == found["version"]
            until(lambda: shares(asked(box, 8, rng=rng))[0] > 0)
            asked_of = next(told for (_, told), _ in asked(box, 1, rng=rng))
            assert asked_of["task"] == "intent"
            with_no_text(tmp_path)


def is_fitting(box: Box) -> bool:
    return "edged_task_fits_running 1" in box.get("/metrics")[1]


def with_no_text(directory: Path) -> None:
    kept = list(state(directory).iterdir())
    assert kept
    for path in kept:
        assert MARKER.encode() not in path.read_bytes()
        assert not path.name.startswith("observations") or path.stat().st_mode & 0o777 == 0o600


@pytest.mark.model
def test_what_stays_on_the_box_leaves_nothing_behind(tmp_path: Path, model_path: Path) -> None:
    """Of ``local_only`` requests no call is made and no byte is kept, however much the task would like to learn."""
    with scripted_cloud(respond=a_teacher()) as cloud, a_box(tmp_path, model_path, cloud, audit_share=1.0) as box:
        box.wait_ready()
        for _ in range(3):
            _, told = ask(box, f"play Blue by Otis {MARKER}", edged={"locality": "local_only"})
            assert (told["served_by"], told["task"]) == ("local", "intent")
        assert not cloud.seen
        assert box.end() == 0
    assert not state(tmp_path).exists() or not list(state(tmp_path).glob("observations*"))
    for path in (tmp_path / "state").rglob("*"):
        assert path.is_dir() or MARKER.encode() not in path.read_bytes(), path


@pytest.mark.model
def test_a_changed_model_file_is_seen(tmp_path: Path, model_path: Path) -> None:
    """The version stands as stale, with the reason, and nothing is served on its word."""
    from edged.calibration.shelf import Shelf

    model = tmp_path / "model.gguf"
    shutil.copy(model_path, model)
    with scripted_cloud(respond=a_teacher()) as cloud:
        with a_box(tmp_path, model, cloud) as box:
            box.wait_ready()
            Shelf(state(tmp_path).parent).put(a_free_pass(tmp_path, box, model))
            until(lambda: ask(box, "play Blue by Otis")[1]["served_by"] == "local", within_s=30)
            assert not known(box)["stale"]
            assert box.end() == 0
        with model.open("ab") as file:
            file.write(b"\0")
        with a_box(tmp_path, model, cloud) as box:
            box.wait_ready()
            until(lambda: "model_sha256" in box.log, within_s=30)
            found = known(box)
            assert found["stale"]
            assert found["problem"] == "stale: made for another model_sha256"
            _, told = ask(box, "play Blue by Otis")
            assert (told["served_by"], told["threshold"]) == ("cloud", None)
            assert "stale" in box.command("tasks").stdout


@pytest.mark.model
def test_audits_of_wrong_answers_take_the_promise_back(tmp_path: Path, model_path: Path) -> None:
    """Served locally, asked of the cloud behind the answer, found wrong too often: back to none, with the numbers."""
    from edged.calibration.shelf import Shelf

    teacher = a_teacher(lambda text: next(label for label in sorted(SENTENCES) if label != meant(text)))
    with scripted_cloud(respond=teacher) as cloud, a_box(tmp_path, model_path, cloud, audit_share=1.0) as box:
        box.wait_ready()
        Shelf(state(tmp_path).parent).put(a_free_pass(tmp_path, box, model_path))
        until(lambda: ask(box, "play Blue by Otis")[1]["served_by"] == "local", within_s=30)
        rng = random.Random(3)
        until(lambda: asked(box, 4, rng=rng) and known(box)["last_roll_back"], within_s=60)
        assert "audited local answers differed from the cloud's" in known(box)["last_roll_back"]["why"]
        until(lambda: ask(box, "play Blue by Otis")[1]["served_by"] == "cloud")
        assert "rolled back" in box.log
        assert "last rolled back" in box.command("tasks", "intent").stdout


def a_free_pass(directory: Path, box: Box, model: Path):
    """A certificate for whatever this model says of the task."""
    from edged import config
    from edged.calibration.artefact import Artefact, LabelSource, Level
    from edged.calibration.certificate import Certificate
    from edged.catalogue.store import digest_of
    from edged.dispatch.head_keys import head_key
    from edged.dispatch.tasks import local_model

    loaded = config.load(box.config)
    (task,) = config.load_tasks(config.tasks_directory(loaded, box.config), loaded)
    certificate = Certificate(threshold=0.0, alpha=0.1, delta=0.1, served=99, wrong=0, bound=0.05, coverage=1.0)
    return Artefact(
        key=head_key(task, local_model(task, loaded), digest_of(model)[0]),
        level=Level.ZERO_SHOT,
        source=LabelSource.CLOUD,
        threshold=0.0,
        certificate=certificate,
        labels=200,
        accuracy=1.0,
        auroc=None,
        ece=None,
        made_at="2026-11-25T00:00:00Z",
    )


@pytest.mark.model
def test_a_chat_with_the_options_as_its_schema_is_the_tasks(tmp_path: Path, model_path: Path) -> None:
    """Any OpenAI client reaches the task without naming it; the record says whose request it was."""
    schema = {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": {"enum": ["weather", "music", "restaurant"]}},
    }
    with scripted_cloud(default=Reply(text='"music"')) as cloud, a_box(tmp_path, model_path, cloud) as box:
        box.wait_ready()
        status, headers, document = box.ask("play Blue by Otis", response_format=schema)
        assert (status, headers["x-edged-served-by"]) == (200, "cloud")
        assert json.loads(document["choices"][0]["message"]["content"]) == "music"
        box.split(1)
        record = json.loads(box.command("tail", "--json").stdout.splitlines()[-1])
        assert (record["task"], record["task_source"]) == ("intent", "asked")
        until(lambda: known(box)["labels"]["cloud"] == 1)
        assert box.command("tasks", "intent", "--forget").stdout.startswith("forgotten")
        assert known(box)["labels"]["cloud"] == 0
        assert not (state(tmp_path) / "observations").exists()


def test_a_wrong_task_file_stops_the_start_with_its_name(tmp_path: Path) -> None:
    """As any mistake in the config does: status 78, and where to look."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "broken.toml").write_text('name = "x"\nroute = "nope"\n[target]\nmax_error = 0.1\n')
    with scripted_cloud() as cloud, daemon(tmp_path, config_text(cloud=cloud.base_url)) as box:
        assert box.process.wait(30) == os.EX_CONFIG
        assert 'broken.toml: route: "nope" does not exist (known: auto)' in box.log
        done = box.command("check")
        assert done.returncode == 1
        assert 'broken.toml: route: "nope" does not exist' in done.stdout
