"""Typed decisions through the real daemon and the real model, with a scripted cloud behind it."""

import json
import sqlite3
import threading
from contextlib import closing

import openai
import psutil
import pytest
from daemon_builders import ROOT, a_chat, config_text, daemon, in_background, scripted_cloud, until

PATH = "/v1/systemone"
QUESTIONS = {
    "route": {
        "type": "choice",
        "instructions": "Which team should handle this?",
        "criteria": {"billing": None, "shipping": None, "technical": None},
    },
    "angry": {"type": "noul", "instructions": "Is the customer angry?"},
    "urgency": {
        "type": "score",
        "instructions": "How urgent is this?",
        "criteria": ["can wait", "this week", "today", "right now"],
    },
}
STATE = "Customer message: I was charged twice for my order last week and nobody has replied."
CLOUD = json.dumps({"route": "billing", "angry": True, "urgency": "2"})
HOME = {"edged": {"locality": "local_only"}}
AWAY = """
[[upstream]]
name = "gone"
base_url = "http://127.0.0.1:9/v1"
[[upstream.model]]
name = "m"
input_usd_per_mtok = 1.0
output_usd_per_mtok = 2.0
[[route]]
name = "away"
local = "small"
cloud = ["gone/m"]
[route.thresholds]
confidence = 1.0
ttft_s = 60
"""


@pytest.fixture(scope="module")
def cloud():
    with scripted_cloud() as up:
        yield up


@pytest.fixture(scope="module")
def box(tmp_path_factory, model_path, cloud):
    text = config_text(model=model_path, cloud=cloud.base_url, thresholds="queue = 100") + AWAY
    with daemon(tmp_path_factory.mktemp("box"), text) as running:
        running.wait_ready()
        yield running


def post(box, headers=None, **body):
    status, found, data = box.request("POST", PATH, json.dumps(body), headers)
    return status, found, json.loads(data)


def row(box, request_id, columns):
    """From the ledger, once it has been written."""

    def read():
        with closing(sqlite3.connect(f"file:{box.ledger}?mode=ro", uri=True)) as connection:
            return connection.execute(f"SELECT {columns} FROM requests WHERE id = '{request_id}'").fetchall()

    (found,) = until(read, within_s=10)
    return found


def test_the_answer_has_the_shape_of_llama_server(box):
    """Its README's own example, without a model: the same fields, no others but ``edged``."""
    status, headers, body = post(box, state=STATE, questions=QUESTIONS)
    assert status == 200
    assert set(body) == {"model", "answers", "usage", "edged"}
    assert body["model"] == "small"
    assert list(body["answers"]) == ["route", "angry", "urgency"]
    route, angry, urgency = body["answers"].values()
    assert list(route) == ["type", "choice", "probabilities", "confidence"]
    assert route["type"] == "choice"
    assert set(route["probabilities"]) == {"billing", "shipping", "technical"}
    assert route["choice"] == max(route["probabilities"], key=route["probabilities"].get)
    assert sum(route["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    top = max(route["probabilities"].values())
    assert route["confidence"] == pytest.approx((top - 1 / 3) / (1 - 1 / 3), abs=1e-5)
    assert list(angry) == ["type", "noul"]
    assert 0 < angry["noul"] < 1
    assert list(urgency) == ["type", "score", "legend", "probabilities", "confidence"]
    assert urgency["legend"] == {"0": "can wait", "1": "this week", "2": "today", "3": "right now"}
    expected = sum(int(level) * p for level, p in urgency["probabilities"].items())
    assert urgency["score"] == pytest.approx(expected, abs=1e-4)
    assert 0 <= urgency["confidence"] <= 1
    assert body["usage"]["output_tokens"] == 0
    assert body["usage"]["input_tokens"] > 60
    told = body["edged"]["answers"]
    assert {t["served_by"] for t in told.values()} == {"local"}
    assert told["route"]["confidence"] == pytest.approx(top, abs=1e-5)
    assert headers["x-edged-served-by"] == "local"
    assert headers["x-edged-reason"] == "within_budget"
    least = min(t["confidence"] for t in told.values())
    assert float(headers["x-edged-confidence"]) == pytest.approx(least, abs=1e-3)
    assert body["edged"]["request_id"] == headers["x-edged-request-id"]


def test_the_state_is_computed_once(box):
    """Its tokens are in the cache for all questions but the first, and for the next request."""
    state = f"A note about gardens. {'Roses need water in summer. ' * 30}"
    _, _, first = post(box, state=state, questions=QUESTIONS)
    (attempt,) = first["edged"]["attempts"]
    assert attempt["cached_tokens"] > 0.6 * attempt["prompt_tokens"]
    _, _, again = post(box, state=state, questions=QUESTIONS)
    assert again["edged"]["attempts"][0]["cached_tokens"] > attempt["cached_tokens"]


def test_what_is_doubtful_is_asked_of_the_cloud_and_marked(box, cloud):
    """One call for three questions; who served is said per answer, in the ledger and by explain."""
    cloud.reply(text=CLOUD)
    before = len(cloud.seen)
    status, headers, body = post(box, state=STATE, questions=QUESTIONS, edged={"min_confidence": 1.0})
    assert status == 200
    assert len(cloud.seen) == before + 1
    assert headers["x-edged-served-by"] == "cloud"
    assert headers["x-edged-reason"] == "low_confidence"
    assert body["model"] == "cloud/scripted-model"
    assert body["answers"]["route"] == {
        "type": "choice",
        "choice": "billing",
        "probabilities": {"billing": 1.0, "shipping": 0.0, "technical": 0.0},
        "confidence": 1.0,
    }
    assert (body["answers"]["angry"]["noul"], body["answers"]["urgency"]["score"]) == (1.0, 2.0)
    told = body["edged"]["answers"]["route"]
    assert (told["served_by"], told["reason"], told["method"]) == ("cloud", "low_confidence", "cloud")
    assert told["confidence"] < told["threshold"] == 1.0
    request_id = headers["x-edged-request-id"]
    found = row(box, request_id, "api, status, served_by, reason, confidence IS NOT NULL, cost_uusd > 0")
    assert found == ("systemone", "ok", "cloud", "low_confidence", 1, 1)
    story = box.command("explain", request_id).stdout
    assert "over systemone" in story
    assert "confidence" in story
    assert request_id in box.command("tail", "-n", "3").stdout
    metrics = box.get("/metrics")[1]
    assert 'edged_requests_total{reason="low_confidence",route="auto",served_by="cloud",status="ok"}' in metrics


def test_offline_the_box_answers_by_itself(box):
    """At once, marked."""
    status, headers, body = post(box, model="away", state=STATE, questions=QUESTIONS)
    assert status == 200
    assert headers["x-edged-served-by"] == "local"
    assert headers["x-edged-reason"] == "cloud_unavailable"
    assert {told["reason"] for told in body["edged"]["answers"].values()} == {"cloud_unavailable"}


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"state": None}, 400, "invalid_type", "state"),
        ({"questions": {"q": {"type": "choice"}}}, 400, "invalid_type", "questions.q.criteria"),
        ({"images": ["data:image/png;base64,AA"]}, 501, "unsupported_parameter", "images"),
        ({"model": "nobody"}, 404, "model_not_found", "model"),
        ({"state": "word " * 3_000}, 400, "context_length_exceeded", "state"),
        ({"questions": None, "task": "nobody"}, 400, "unknown_task", "task"),
    ],
)
def test_errors_name_the_field(box, changes, status, code, param):
    """In OpenAI's shape, as all errors here."""
    body = {"state": STATE, "questions": QUESTIONS, **HOME, **changes}
    found, headers, answer = post(box, **{key: value for key, value in body.items() if key == "state" or value})
    assert (found, answer["error"]["code"], answer["error"]["param"]) == (status, code, param)
    assert headers["x-edged-request-id"]


def test_many_at_once_get_answers_about_their_own_state(box):
    """Twelve clients, two rounds; prompts share cells and steps, and nothing of what is in them."""
    words = ["apple", "river", "candle", "mountain"]
    shown = [{"state": f"the word {word} again: {word}", "answer": word} for word in words * 2]
    question = {"type": "choice", "criteria": dict.fromkeys(words), "examples": shown}
    found = {}

    def ask(i):
        state = f"the word {words[i % 4]} again: {words[i % 4]}"
        answers = [post(box, state=state, questions={"q": question}, **HOME) for _ in range(2)]
        found[i] = [(status, body["answers"]["q"]["choice"]) for status, _, body in answers]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == {i: [(200, words[i % 4])] * 2 for i in range(12)}


MANY = {
    f"q{i}": {"type": "noul", "instructions": f"Is {i} a number that is spoken of? {'Really? ' * 30}"}
    for i in range(64)
}


def test_a_client_that_leaves_ends_its_work(box):
    """Its scoring is over within a step, cancelled on the record; the next client is served."""
    connection = box.connection()
    connection.request("POST", PATH, json.dumps({"state": "word " * 300, "questions": MANY, **HOME}))
    until(lambda: "edged_in_flight_requests 1.0" in box.get("/metrics")[1], within_s=20)
    connection.close()
    until(lambda: "edged_in_flight_requests 0.0" in box.get("/metrics")[1], within_s=20)
    assert 'served_by="none",status="cancelled"' in box.get("/metrics")[1]
    assert post(box, state=STATE, questions=QUESTIONS, **HOME)[0] == 200


def test_chat_completions_answer_out_of_a_closed_set(box):
    """The official client: whole and streamed, an enum and a boolean, usage and finish as ever."""
    schema = {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["green", "red"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "colour", "strict": True, "schema": schema}}
    asked = {**a_chat("What colour is grass?"), "response_format": form}
    with openai.OpenAI(base_url=f"http://127.0.0.1:{box.port}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(**asked)
        assert json.loads(whole.choices[0].message.content) == {"colour": "green"}
        assert whole.choices[0].finish_reason == "stop"
        assert 0 < whole.usage.completion_tokens < 5
        assert 0.5 < whole.edged["confidence"] < 1
        events = list(client.chat.completions.create(**asked, stream=True))
        assert "".join(e.choices[0].delta.content or "" for e in events) == whole.choices[0].message.content
        assert events[-1].choices[0].finish_reason == "stop"
        form["json_schema"]["schema"] = {"type": "boolean"}
        truth = client.chat.completions.create(**asked)
        assert truth.choices[0].message.content in ("true", "false")
        logged = client.chat.completions.create(**asked, logprobs=True)
        assert logged.choices[0].logprobs.content


def test_a_worker_killed_while_it_scores_is_escalated_or_a_clear_error(box, cloud):
    """With a cloud it answers all of them, at home the client hears ``worker_lost``; the next one is served again."""
    answers = json.dumps(dict.fromkeys(MANY, True))

    def killed(**more):
        with in_background(post, box, state="word " * 300, questions=MANY, **more) as result:
            until(lambda: "edged_in_flight_requests 1.0" in box.get("/metrics")[1], within_s=20)
            psutil.Process(box.worker_pid).kill()
            found = result()
        box.wait_ready()
        return found

    status, headers, body = killed(**HOME)
    assert (status, body["error"]["code"]) == (503, "worker_lost")
    cloud.reply(text=answers)
    status, headers, body = killed()
    assert (status, headers["x-edged-served-by"], headers["x-edged-reason"]) == (200, "cloud", "local_unavailable")
    assert body["answers"]["q7"] == {"type": "noul", "noul": 1.0}
    assert post(box, state=STATE, questions=QUESTIONS, **HOME)[0] == 200


def test_the_examples_of_the_documentation_work(box, cloud, capsys):
    """The Python of docs/decisions.md as it stands there, and the body of its curl command."""
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    python = text.partition("```python\n")[2].partition("```")[0]
    cloud.reply(text=json.dumps({"intent": "GetWeather"}))
    exec(python.replace("127.0.0.1:8080", f"127.0.0.1:{box.port}"), {})
    assert capsys.readouterr().out.split()[1] in ("local", "cloud")
    body = json.loads(text.partition("-d '")[2].partition("'\n")[0])
    status, _, answer = post(box, **body, **HOME)
    assert (status, list(answer["answers"])) == (200, ["route", "angry", "urgency"])
