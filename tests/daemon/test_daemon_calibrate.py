"""Labels from the cloud, beside a running daemon: through its budgets, its labels and its ledger."""

import json
import re

import pytest
from daemon_builders import config_text, daemon, scripted_cloud

from edged.cli import main
from edged.testing.upstream import Reply, last_words

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

TASK = """
name = "weather"
dataset = "weather.jsonl"
[target]
max_error = 0.3
[[option]]
name = "sunny"
[[option]]
name = "rainy"
"""
INPUTS = [f"{text} {number}" for number in range(12) for text in ("blue sky, day", "wet umbrella, day")]
FIRST_USE = 'load = "first_use"'


def says_what_it_sees(seen):
    answer = "sunny" if "blue" in last_words(seen.body) else "rainy"
    return Reply(text=json.dumps({"answer": answer}))


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "own"))
    monkeypatch.setattr("os.nice", lambda _: None)  # this process has other tests to run


def calibrate(directory, box, text, *arguments):
    """With the daemon's own config, its real port in it."""
    tasks = directory / "tasks"
    tasks.mkdir(exist_ok=True)
    (tasks / "weather.toml").write_text(TASK)
    (tasks / "weather.jsonl").write_text("".join(json.dumps({"input": line}) + "\n" for line in INPUTS))
    config = directory / "with-port.toml"
    config.write_text(text.replace("127.0.0.1:0", f"127.0.0.1:{box.port}"))
    return main(["calibrate", "weather", "--config", str(config), *arguments])


def test_the_clouds_answers_are_labels_that_say_they_agree(tmp_path, state, model_path, capsys):
    """Each input is asked once, by way of the daemon, which records it; a second run asks nobody."""
    with scripted_cloud(respond=says_what_it_sees) as cloud:
        text = config_text(model=model_path, cloud=cloud.base_url, settings=FIRST_USE)
        with daemon(tmp_path, text) as box:
            assert calibrate(tmp_path, box, text, "--json") == 0
            found = json.loads(capsys.readouterr().out)
            assert (found["source"], found["labels"]) == ("cloud", len(INPUTS))
            assert "cloud" in found["sentence"]
            asked = [seen.body["messages"][-1]["content"] for seen in cloud.seen]
            assert sorted(asked) == sorted(INPUTS)
            assert box.split(len(INPUTS))["requests"] == len(INPUTS)
            assert calibrate(tmp_path, box, text, "--json") == 0
            assert len(cloud.seen) == len(INPUTS)


def test_a_budget_that_is_spent_ends_the_asking(tmp_path, state, model_path, capsys):
    """What was labelled by then is kept; too little of it is said."""
    with scripted_cloud(respond=says_what_it_sees) as cloud:
        route = "[route.budget]\nusd_per_day = 0\n"
        text = config_text(model=model_path, cloud=cloud.base_url, settings=FIRST_USE)
        text = text.replace("[route.thresholds]", route + "[route.thresholds]")
        with daemon(tmp_path, text) as box:
            assert calibrate(tmp_path, box, text) == 1
            said = capsys.readouterr().err
            assert re.search(r"the cloud gave no more labels: .* today's cloud budget of", said)
            assert "0 labelled items are too few" in said
            assert "loading" not in said
            assert not cloud.seen


def test_a_route_that_keeps_requests_here_gets_no_label_from_the_cloud(tmp_path, state, model_path, capsys):
    """``local_only`` holds for calibrating as for everything else."""
    with scripted_cloud(respond=says_what_it_sees) as cloud:
        text = config_text(model=model_path, cloud=cloud.base_url, settings=FIRST_USE, route='locality = "local_only"')
        with daemon(tmp_path, text) as box:
            assert calibrate(tmp_path, box, text) == 1
            assert "the cloud gave no more labels: " in capsys.readouterr().err
            assert not cloud.seen
