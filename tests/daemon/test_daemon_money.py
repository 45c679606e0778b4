"""The real daemon and its money: killed in the middle of a call, asked by named keys, shown to its operator."""

import json
import signal

from daemon_builders import CHAT, a_chat, config_text, daemon, in_background, scripted_cloud, until

from edged.testing import Reply

BUDGETS = """
[budget]
usd_per_day = 1.0

[[api_key]]
name = "kitchen"
key = "env:EDGED_TEST_KITCHEN"
usd_per_day = 0.0005

[[api_key]]
name = "porch"
key = "env:EDGED_TEST_PORCH"
routes = ["auto"]
"""
KITCHEN = {"Authorization": "Bearer sk-kitchen"}
PORCH = {"Authorization": "Bearer sk-porch"}
SECRETS = {"EDGED_TEST_KITCHEN": "sk-kitchen", "EDGED_TEST_PORCH": "sk-porch"}
USED = {"prompt_tokens": 100, "completion_tokens": 50}


def budgets_of(box):
    """Every budget by its scope and name."""
    status, _, body = box.request("GET", "/edged/budgets", headers=PORCH)
    assert status == 200
    return {(one["scope"], one["name"]): one for one in json.loads(body)["budgets"]}


def test_kill_9_in_the_middle_of_a_call_forgets_no_money(tmp_path) -> None:
    """The daemon that comes after counts the call in full, as an estimate, for its key and for everybody."""
    with scripted_cloud() as cloud:
        text = config_text(cloud=cloud.base_url) + BUDGETS
        cloud.reply(hang=True)
        with daemon(tmp_path, text, **SECRETS) as box:
            body = json.dumps(a_chat("Say something.", max_tokens=100))
            with in_background(lambda: _swallow(box, body)):
                until(lambda: cloud.seen)
                promised = budgets_of(box)["key", "kitchen"]["reserved_usd"]
                box.end(signal.SIGKILL)
        with daemon(tmp_path, text, **SECRETS) as box:
            found = budgets_of(box)
            for whose in (("key", "kitchen"), ("route", "auto"), ("all", "")):
                assert found[whose]["spent_usd"] == found[whose]["estimated_usd"] == promised > 0
                assert found[whose]["reserved_usd"] == 0
            assert found["key", "porch"]["spent_usd"] == 0
            assert "was cut off" in box.log


def _swallow(box, body):
    try:
        box.request("POST", CHAT, body, KITCHEN)
    except OSError:
        return


def test_a_named_key_spends_its_own_money_and_sees_its_own_models(tmp_path) -> None:
    """Then it hears 429 with Retry-After; its neighbour does not; metrics and ``edged split`` show why."""
    with scripted_cloud() as cloud:
        cloud.default = Reply(text="yes", usage=USED)
        with daemon(tmp_path, config_text(cloud=cloud.base_url) + BUDGETS, **SECRETS) as box:
            assert [box.ask(headers=KITCHEN, max_tokens=50)[0] for _ in range(3)] == [200, 200, 429]
            status, headers, document = box.ask(headers=KITCHEN, max_tokens=50)
            assert (status, document["error"]["code"]) == (429, "budget_exhausted")
            assert 0 < int(headers["Retry-After"]) <= 26 * 3600
            assert "the key 'kitchen'" in document["error"]["message"]
            assert box.ask(headers=PORCH, max_tokens=50)[0] == 200
            assert box.ask(headers=PORCH, model="cloud/scripted-model")[0] == 404
            models = json.loads(box.request("GET", "/v1/models", headers=PORCH)[2])
            assert [model["id"] for model in models["data"]] == ["auto"]
            metrics = box.get("/metrics", **PORCH)[1]
            assert 'edged_budget_spent_usd{name="kitchen",scope="key"} 0.0004' in metrics
            assert 'edged_budget_remaining_usd{name="",scope="all"} 0.9994' in metrics
            assert 'edged_budget_limit_usd{name="porch"' not in metrics
            shown = {one["name"]: one for one in box.split(6)["budgets"]["budgets"]}
            assert (shown["kitchen"]["spent_usd"], shown["kitchen"]["limit_usd"]) == (0.0004, 0.0005)
            assert "key kitchen" in box.command("split").stdout
            assert "sk-" not in box.log
