"""Keys and prompts show nowhere: not in the log at its loudest, the ledger, the metrics, an answer, or a command."""

import json
from pathlib import Path

import pytest
from daemon_builders import CHAT, UPSTREAM_MODEL, a_chat, config_text, daemon, next_event, rest_of, scripted_cloud

from edged.testing.upstream import Reply

CLOUD_KEY, CLIENT_KEY = "sk-canary-cloud-7f3a", "sk-canary-client-91bc"
PROMPT = "the password of the vault is canary-prompt-55d1"
CANARIES = (CLOUD_KEY, CLIENT_KEY, "canary-prompt-55d1")
SECRETS = {"EDGED_TEST_CLOUD_KEY": CLOUD_KEY, "EDGED_TEST_CLIENT_KEY": CLIENT_KEY}
ECHO = {"message": f"Incorrect API key provided: {CLOUD_KEY}", "code": "invalid_api_key"}
FAULTS = [
    Reply(status=401, error=ECHO),
    Reply(status=500, error=ECHO),
    Reply(status=400, error={**ECHO, "param": CLOUD_KEY}),
    Reply(error=ECHO),
    Reply(text="one two three", error=ECHO, error_after=3),
    Reply(status=502, body=f"<html>{CLOUD_KEY}</html>".encode(), content_type="text/html"),
    Reply(text="one two three", cut_at_byte=200, cut="reset"),
    Reply(drop="reset"),
]


def spoken_text(cloud, kind="openai"):
    text = config_text(model="/nowhere.gguf", cloud=cloud.base_url, server='api_keys = ["env:EDGED_TEST_CLIENT_KEY"]')
    return text.replace("base_url =", f'kind = "{kind}"\napi_key = "env:EDGED_TEST_CLOUD_KEY"\nbase_url =')


def one_upstream_each(cloud, kind):
    """An upstream for every call to come, since one that refuses its key is not asked again."""
    more = [
        f'[[upstream]]\nname = "cloud{n}"\nkind = "{kind}"\napi_key = "env:EDGED_TEST_CLOUD_KEY"\n'
        f'base_url = "{cloud.base_url}"\n{UPSTREAM_MODEL}'
        for n in range(2 * len(FAULTS))
    ]
    return "\n".join([spoken_text(cloud, kind), *more])


def found_in(where, text):
    return [(where, canary) for canary in CANARIES if canary in text]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_no_key_and_no_prompt_shows_anywhere(tmp_path, kind):
    """Upstreams that echo the key in every way, clients with wrong keys, at the debug level (E07, E14)."""
    header, value = {"openai": ("Authorization", f"Bearer {CLOUD_KEY}"), "anthropic": ("x-api-key", CLOUD_KEY)}[kind]
    leaks = []
    authorized = {"Authorization": f"Bearer {CLIENT_KEY}"}
    with scripted_cloud() as cloud, daemon(tmp_path, one_upstream_each(cloud, kind), **SECRETS) as box:
        for place, reply in enumerate(FAULTS):
            for stream in (False, True):
                cloud.reply(reply)
                body = json.dumps(a_chat(PROMPT, model=f"cloud{2 * place + stream}/scripted-model", stream=stream))
                status, headers, answer = box.request("POST", CHAT, body, authorized)
                shown = f"{headers}{answer.decode()}"
                leaks += found_in(f"answer {status} to {reply}", shown)
                assert str(tmp_path) not in shown
        assert len(cloud.seen) == 2 * len(FAULTS)
        assert {seen.headers[header] for seen in cloud.seen} == {value}
        for bad in (b"{", PROMPT.encode(), json.dumps(a_chat(PROMPT, temperature=9)).encode()):
            for headers in (authorized, {"Authorization": f"Bearer {CLIENT_KEY}x"}, {"x-api-key": CLIENT_KEY[:-1]}):
                _, found, answer = box.request("POST", CHAT, bad, headers)
                leaks += found_in("refusal", f"{found}{answer.decode()}")
        for path in ("/metrics", "/v1/models", "/health/ready", f"/{CLIENT_KEY[:4]}nowhere"):
            leaks += found_in(path, box.get(path, **authorized)[1])
        status, answer = box.get("/metrics", **authorized)
        assert status == 200
        for command in (["check"], ["split"], ["split", "--json"], ["tail", "-n", "50"]):
            done = box.command(*command)
            assert done.returncode == (1 if command == ["check"] else 0), done.stderr
            leaks += found_in(" ".join(command), done.stdout + done.stderr)
        assert box.end() == 0
        leaks += found_in("log", box.log)
        for file in Path(box.ledger).parent.glob("ledger.db*"):
            leaks += found_in(file.name, file.read_bytes().decode("latin-1"))
            assert file.stat().st_mode & 0o077 == 0
    assert leaks == []


def test_a_worker_is_given_no_secret(tmp_path, model_path):
    """Neither its arguments nor its environment hold a key; nor does the prompt of a local answer stay anywhere."""
    with scripted_cloud() as cloud:
        text = spoken_text(cloud).replace("/nowhere.gguf", str(model_path))
        with daemon(tmp_path, text, **SECRETS) as box:
            box.wait_ready()
            authorized = {"Authorization": f"Bearer {CLIENT_KEY}"}
            status, _, _ = box.ask(PROMPT, headers=authorized, model="small", max_tokens=4)
            assert status == 200
            process = Path(f"/proc/{box.worker_pid}")
            leaks = found_in("arguments", (process / "cmdline").read_text())
            leaks += found_in("environment", (process / "environ").read_text())
            assert box.end() == 0
            leaks += found_in("log", box.log)
            for file in box.ledger.parent.glob("ledger.db*"):
                leaks += found_in(file.name, file.read_bytes().decode("latin-1"))
            assert leaks == []


def test_a_client_never_hears_another_clients_words(tmp_path):
    """Errors of one stream name nothing of the other's (guarantee 6)."""
    with scripted_cloud() as cloud, daemon(tmp_path, config_text(cloud=cloud.base_url)) as box:
        cloud.reply(text="a b c", chunk_delay_s=0.05)
        stream = box.stream("my word is canary-one", model="cloud/scripted-model")
        next_event(stream)
        cloud.reply(status=500, error={"message": "canary-one is a bad word"})
        _, _, answer = box.ask("mine is another", model="cloud/scripted-model")
        assert "canary" not in json.dumps(answer)
        assert rest_of(stream)[-1] == "[DONE]"
