"""Redaction in the real daemon: what the provider, the client, the log and the ledger get to see."""

import json

import pytest
from daemon_builders import CHAT, config_text, daemon, scripted_cloud

KEY = "sk-frontdesk"
MAIL = "anna.mueller@example.com"
SECTIONS = """
[[api_key]]
name = "frontdesk"
key = "env:EDGED_TEST_CLIENT_KEY"
locality = "redact"
[redact.patterns]
employee_id = "E[0-9]{6}"
"""
CALLER = {"Authorization": f"Bearer {KEY}"}
TEXT = f"Mail {MAIL} about E123456, not <EMAIL_1>."


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_the_provider_sees_placeholders_and_nobody_else_does(tmp_path, kind):
    """An API key's label holds over the wire, whole and streamed, at the loudest log, with texts kept."""
    with scripted_cloud() as cloud:
        text = config_text(cloud=cloud.base_url).replace("base_url =", f'kind = "{kind}"\nbase_url =')
        text += SECTIONS + "[ledger]\nstore_text = true\n"
        with daemon(tmp_path, text, EDGED_TEST_CLIENT_KEY=KEY) as box:
            body = {"model": "auto", "messages": [{"role": "user", "content": TEXT}]}
            status, _, answer = box.request("POST", CHAT, json.dumps(body), CALLER)
            whole = json.loads(answer)
            assert (status, whole["choices"][0]["message"]["content"]) == (200, f"echo: {TEXT}")
            assert whole["edged"]["redacted"] == {"email": 1, "employee_id": 1}
            assert whole["edged"]["locality"] == "redact"
            _, _, answer = box.request("POST", CHAT, json.dumps({**body, "stream": True}), CALLER)
            events = [json.loads(line[6:]) for line in answer.decode().splitlines() if line.startswith("data: {")]
            said = "".join(c["delta"].get("content") or "" for e in events for c in e.get("choices", ()))
            assert said == f"echo: {TEXT}"
            box.split(2)
            told = box.command("explain", whole["edged"]["request_id"]).stdout
            assert "hidden from the cloud: 1 email, 1 employee_id" in told
            assert MAIL not in told
            log = box.log
        wire = [json.dumps(seen.body) for seen in cloud.seen]
        assert len(wire) == 2
        for sent in wire:
            assert "Mail <EMAIL_2> about <EMPLOYEE_ID_1>, not <EMAIL_1>." in sent
            assert MAIL not in sent
        kept = b"".join(path.read_bytes() for path in tmp_path.rglob("ledger.db*"))
        assert MAIL.encode() not in kept
        assert MAIL not in log
