"""The real daemon with its only upstream away, and back again."""

import json
import time

from daemon_builders import config_text, daemon, scripted_cloud, until
from dead_ends import refused_port

from edged.testing.upstream import Reply


def test_a_box_without_a_model_says_when_it_is_offline_and_comes_back_by_itself(tmp_path):
    """503 at once with Retry-After; health, metrics and the log tell; seconds after the provider is there it answers,
    and no request was spent on finding out."""
    port = refused_port()
    with daemon(tmp_path, config_text(cloud=f"http://127.0.0.1:{port}/v1")) as box:
        ready = json.loads(box.get("/health/ready")[1])
        assert (ready["offline"], ready["upstreams"]) == (False, {"cloud/scripted-model": "closed"})
        assert box.ask()[0] == 502
        until(lambda: json.loads(box.get("/health/ready")[1])["offline"], within_s=10)
        began_s = time.monotonic()
        status, headers, document = box.ask()
        assert time.monotonic() - began_s < 1.0
        assert (status, document["error"]["code"]) == (503, "upstream_offline")
        assert 0 < int(headers["Retry-After"]) <= 5
        metrics = box.get("/metrics")[1]
        assert "edged_offline 1.0" in metrics
        assert 'edged_upstream_state{state="offline",upstream="cloud/scripted-model"} 1.0' in metrics
        with scripted_cloud(port=port, default=Reply(text="back")) as up:
            began_s = time.monotonic()
            until(lambda: not json.loads(box.get("/health/ready")[1])["offline"], within_s=10)
            assert time.monotonic() - began_s < 5.0
            assert not up.seen
            status, _, document = box.ask()
            assert (status, document["choices"][0]["message"]["content"]) == (200, "back")
        assert "edged_offline 0.0" in box.get("/metrics")[1]
        assert box.log.count("offline: no upstream") == 1
        assert box.log.count("online again after") == 1
