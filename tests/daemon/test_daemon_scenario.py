"""The story a new user is told, with the real model, a real worker and a second server as the cloud."""

import json
import os
import signal

import pytest
from daemon_builders import config_text, daemon, next_event, rest_of, scripted_cloud

QUESTION = "What is the capital of France?"


def test_local_cloud_and_private_answers_are_counted_as_what_they_were(tmp_path, model_path):
    """Trusted: local. Distrusted: the upstream. Local only: never the upstream. The split counts all three."""
    with scripted_cloud() as cloud, daemon(tmp_path, config_text(model=model_path, cloud=cloud.base_url)) as box:
        box.wait_ready()
        ids = []

        status, headers, answer = box.ask(QUESTION, max_tokens=24)
        ids.append(headers["x-edged-request-id"])
        assert status == 200, answer
        assert (headers["x-edged-served-by"], headers["x-edged-reason"]) == ("local", "within_budget")
        assert 0 < float(headers["x-edged-confidence"]) <= 1
        assert answer["choices"][0]["message"]["content"].strip()
        assert answer["usage"]["completion_tokens"] > 0
        assert len(cloud.seen) == 0

        status, headers, answer = box.ask(QUESTION, max_tokens=24, edged={"min_confidence": 1.0})
        ids.append(headers["x-edged-request-id"])
        assert status == 200, answer
        assert (headers["x-edged-served-by"], headers["x-edged-reason"]) == ("cloud", "low_confidence")
        assert headers["x-edged-model"] == answer["model"] == "cloud/scripted-model"
        assert answer["choices"][0]["message"]["content"] == f"echo: {QUESTION}"
        assert len(cloud.seen) == 1
        cost_usd = answer["edged"]["cost_usd"]
        assert cost_usd > 0

        private = {"min_confidence": 1.0, "locality": "local_only"}
        status, headers, answer = box.ask(QUESTION, max_tokens=24, edged=private)
        ids.append(headers["x-edged-request-id"])
        assert status == 200, answer
        assert (headers["x-edged-served-by"], headers["x-edged-reason"]) == ("local", "private")
        assert len(cloud.seen) == 1

        split = box.split(3)
        assert (split["local"], split["cloud"], split["rejected"], split["cancelled"]) == (2, 1, 0, 0)
        assert split["by_reason"] == {"within_budget": 1, "low_confidence": 1, "private": 1}
        assert split["tokens"]["discarded"] > 0
        assert split["cost_usd"] == pytest.approx(cost_usd)
        told = box.command("explain", ids[1]).stdout
        assert "low_confidence" in told
        assert "cloud" in told
        assert "thrown away" in told
        assert f"{cost_usd:.6f}" in told or f"{cost_usd}" in told, told
        assert box.end() == 0


def test_a_stream_that_escalates_has_one_author(tmp_path, model_path):
    """What was held back locally is never seen; the last chunk before the end mark tells the whole story."""
    with scripted_cloud() as cloud, daemon(tmp_path, config_text(model=model_path, cloud=cloud.base_url)) as box:
        box.wait_ready()
        response = box.stream(QUESTION, max_tokens=40, edged={"min_confidence": 1.0})
        assert response.headers["x-edged-served-by"] == "cloud"
        *chunks, last, done = rest_of(response)
        assert done == "[DONE]"
        text = "".join(c["choices"][0]["delta"].get("content") or "" for c in [*chunks, last] if c["choices"])
        assert text == f"echo: {QUESTION}"
        assert [a["outcome"] for a in last["edged"]["attempts"]] == ["discarded", "served"]


def test_another_edged_may_be_the_cloud(tmp_path, model_path):
    """The upstream protocol is the one that edged speaks itself, errors included."""
    (tmp_path / "far").mkdir()
    (tmp_path / "near").mkdir()
    far_text = config_text(model=model_path).replace('name = "auto"', 'name = "scripted-model"')
    with daemon(tmp_path / "far", far_text) as far:
        far.wait_ready()
        near_text = config_text(cloud=f"http://127.0.0.1:{far.port}/v1")
        with daemon(tmp_path / "near", near_text) as near:
            status, headers, answer = near.ask(QUESTION, max_tokens=8)
            assert status == 200, answer
            assert headers["x-edged-served-by"] == "cloud"
            assert answer["choices"][0]["message"]["content"].strip()
            assert answer["usage"]["completion_tokens"] == 8
            response = near.stream(QUESTION, max_tokens=8)
            assert rest_of(response)[-1] == "[DONE]"
            assert far.end() == 0
            status, headers, answer = near.ask(QUESTION, max_tokens=8)
            assert status in {502, 503}, answer
            assert answer["error"]["code"] == "upstream_unavailable"


def test_a_worker_killed_in_a_stream_costs_that_stream_alone(tmp_path, model_path):
    """kill -9: the stream ends with an error and the end mark, the daemon stays, the next request is answered."""
    with daemon(tmp_path, config_text(model=model_path, settings="max_output_tokens = 2000")) as box:
        box.wait_ready()
        pid = box.worker_pid
        response = box.stream("Tell a very long story.", max_tokens=1500, logit_bias={"2": -100})
        for _ in range(4):
            next_event(response)

        os.kill(pid, signal.SIGKILL)
        *_, error, done = rest_of(response)
        assert done == "[DONE]"
        assert error["error"]["code"] == "worker_lost"
        assert box.process.poll() is None
        box.wait_ready()
        assert box.worker_pid != pid
        status, _, answer = box.ask(QUESTION, max_tokens=8)
        assert status == 200, answer
        assert "Traceback" not in box.log
        assert "SIGKILL" in box.log
        split = box.split(2)
        assert split["local"] >= 1
        assert box.end() == 0


def test_a_worker_that_is_stopped_is_noticed_and_replaced(tmp_path, model_path):
    """SIGSTOP: no heartbeat, so the request fails within the limit and a new worker answers the next (A24)."""

    with daemon(tmp_path, config_text(model=model_path, settings="heartbeat_timeout_s = 1")) as box:
        box.wait_ready()
        pid = box.worker_pid
        response = box.stream("Tell a very long story.", max_tokens=1500, logit_bias={"2": -100})
        next_event(response)
        os.kill(pid, signal.SIGSTOP)
        *_, error, done = rest_of(response)
        assert (error["error"]["code"], done) == ("worker_lost", "[DONE]")
        box.wait_ready()
        status, _, answer = box.ask(QUESTION, max_tokens=8)
        assert status == 200, answer
        assert "silent" in box.log


def test_a_dead_worker_sends_requests_to_the_cloud(tmp_path, model_path):
    """While no worker answers, the route's cloud does, and says why."""

    with scripted_cloud() as cloud, daemon(tmp_path, config_text(model=model_path, cloud=cloud.base_url)) as box:
        box.wait_ready()
        os.kill(box.worker_pid, signal.SIGKILL)
        status, headers, answer = box.ask(QUESTION)
        assert status == 200, answer
        assert headers["x-edged-served-by"] in {"cloud", "local"}
        if headers["x-edged-served-by"] == "cloud":
            assert headers["x-edged-reason"] == "local_unavailable"


def test_a_model_file_that_is_missing_costs_the_model_alone(tmp_path, model_path):
    """Cloud routes are served, local ones get a clean 503, and the model comes up when its file does."""
    path = tmp_path / "later.gguf"
    with scripted_cloud() as cloud, daemon(tmp_path, config_text(model=path, cloud=cloud.base_url)) as box:
        status, headers, _ = box.ask(QUESTION)
        assert (status, headers["x-edged-reason"]) == (200, "local_unavailable")
        status, headers, answer = box.ask(QUESTION, edged={"locality": "local_only"})
        assert (status, answer["error"]["code"]) == (503, "not_ready")
        assert int(headers["Retry-After"]) >= 1
        assert str(tmp_path) not in json.dumps(answer)
        status, body = box.get("/health/ready")
        assert (status, json.loads(body)["models"]["small"]) == (200, "down")
        path.symlink_to(model_path)
        box.wait_ready()
        status, headers, _ = box.ask(QUESTION, max_tokens=8, edged={"locality": "local_only"})
        assert (status, headers["x-edged-served-by"]) == (200, "local")
        assert box.end() == 0
