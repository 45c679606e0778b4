"""A daemon whose models load on first use, as its clients and its operator see it."""

import json

import psutil
from daemon_builders import config_text, daemon, until


def workers(box):
    return psutil.Process(box.process.pid).children()


def test_models_load_when_asked_for_and_leave_when_idle(tmp_path, model_path):
    """Ready without any worker; the first request loads and says how long; when idle the process is gone (A23)."""
    settings = 'load = "first_use"\nkeep_loaded_s = 1\nmin_loaded_s = 0\nkv_tokens = 512'
    with daemon(tmp_path, config_text(model=model_path, settings=settings)) as box:
        status, body = box.get("/health/ready")
        assert (status, json.loads(body)["models"]) == (200, {"small": "unloaded"})
        assert not workers(box)
        listed = json.loads(box.get("/v1/models")[1])["data"]
        assert {entry["edged"]["state"] for entry in listed} == {"unloaded"}
        assert 'edged_model_loaded{model="small"} 0.0' in box.get("/metrics")[1]
        status, _, answer = box.ask(max_tokens=2)
        assert status == 200
        assert answer["edged"]["timings"]["load_s"] > 0
        metrics = box.get("/metrics")[1]
        assert 'edged_model_load_seconds{model="small"} 0.0' not in metrics
        assert "edged_load_wait_seconds_count 1.0" in metrics
        until(lambda: not workers(box))
        assert json.loads(box.get("/health/ready")[1])["models"] == {"small": "unloaded"}
        assert box.ask(max_tokens=2)[0] == 200
        assert "Traceback" not in box.log


def test_a_model_without_its_file_is_not_called_ready(tmp_path):
    """Loading on first use is no excuse for a file that is not there."""
    text = config_text(model="/nowhere.gguf", settings='load = "first_use"')
    with daemon(tmp_path, text) as box:
        until(lambda: box.get("/health/ready")[0] == 503)
        assert "cannot be loaded" in box.log
