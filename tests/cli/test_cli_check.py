"""``edged check`` says everything that is wrong, where, and never a secret."""

import argparse
import json
from pathlib import Path

import pytest

from edged.cli import check, effects

LOCAL = '[[model]]\nname = "m"\nfile = "{file}"\n'
CLOUD = """
[[upstream]]
name = "up"
base_url = "{url}"
api_key = "{key}"
[[upstream.model]]
name = "big"
input_usd_per_mtok = {price}
output_usd_per_mtok = 1
"""
ROUTE = '\n[[route]]\nname = "auto"\nlocal = "m"\ncloud = ["up/big"]\n'


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(60))
    return path


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Run ``edged check`` on a text; its exit status and what it printed."""

    def run(text: str | bytes, *flags: str) -> tuple[int, str]:
        path = tmp_path / "edged.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        status = main(["check", "--config", str(path), *flags])
        return status, capsys.readouterr().out.replace(str(path), "edged.toml")

    return run


def main(argv: list[str]) -> int:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, default=None)
    parser = argparse.ArgumentParser()
    check.add_parser(parser.add_subparsers(), common)
    args = parser.parse_args(argv)
    return args.func(args)


def cloud(*, url: str = "https://up.example/v1", key: str = "env:EDGED_TEST_KEY", price: float = 1) -> str:
    return CLOUD.format(url=url, key=key, price=price)


def test_a_good_config_with_a_budgeted_cloud_has_nothing_to_say(run, gguf, monkeypatch) -> None:
    """Exit status 0 and one line."""
    monkeypatch.setenv("EDGED_TEST_KEY", "sk-canary")
    text = LOCAL.format(file=gguf) + cloud() + ROUTE + "[route.budget]\nusd_per_day = 1\n"
    assert run(text) == (0, "edged.toml: 0 errors, 0 warnings\n")


def test_problems_are_printed_as_compilers_do(run) -> None:
    """PATH:LINE: error: KEY: MESSAGE, all of them, exit status 1."""
    status, out = run('[server]\nlisten = 5\n[[model]]\nname = "m"\nfile = "/x"\nslot = 0\nthreads = 0\n')
    assert status == 1
    assert out.splitlines() == [
        "edged.toml:2: error: server.listen: must be a string",
        'edged.toml:6: error: model[0].slot: unknown key; did you mean "slots"?',
        "edged.toml:7: error: model[0].threads: must be 'auto', or must be greater than or equal to 1",
        "edged.toml: 3 errors, 0 warnings",
    ]


def test_json_has_the_same_findings(run) -> None:
    """--json prints one object with line, key, severity and message."""
    status, out = run("[sever]\n", "--json")
    answer = json.loads(out)
    assert (status, answer["ok"], answer["errors"]) == (1, False, 2)
    assert {"line": 1, "key": "sever", "severity": "error", "message": 'unknown key; did you mean "server"?'} in answer[
        "problems"
    ]


def test_a_missing_model_names_the_command_that_fetches_it(run, tmp_path, monkeypatch) -> None:
    """A catalogue model that was not pulled is an error with the hint."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    status, out = run('[[model]]\nname = "m"\ncatalogue = "smollm2-135m-instruct"\n')
    assert status == 1
    assert "edged.toml:3: error: model[0].catalogue: " in out
    assert out.count("edged models pull smollm2-135m-instruct") == 1


def test_an_unknown_catalogue_name_lists_the_known_ones(run) -> None:
    """The error names what there is."""
    status, out = run('[[model]]\nname = "m"\ncatalogue = "nope"\n')
    assert status == 1
    assert "smollm2-135m-instruct" in out


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read: No such file"), (b"<html>", "is not a GGUF file")]
)
def test_a_model_file_must_be_one(run, tmp_path, content, message) -> None:
    """A path to nothing, or to something else, is an error at its line."""
    path = tmp_path / "own.gguf"
    if content is not None:
        path.write_bytes(content)
    status, out = run(LOCAL.format(file=path))
    assert status == 1
    assert f"edged.toml:3: error: model[0].file: {path}: {message}" in out


def test_an_unreadable_secret_is_an_error_and_no_secret_is_printed(run, gguf, tmp_path, monkeypatch) -> None:
    """References are named, never what is behind them."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setenv("EDGED_TEST_KEY", "sk-canary-env")
    secret = tmp_path / "key"
    secret.write_text("sk-canary-file", encoding="utf-8")
    secret.chmod(0o644)
    keys = f'[server]\napi_keys = ["env:EDGED_TEST_KEY", "env:EDGED_UNSET", "file:{secret}", "credential:web"]\n'
    status, out = run(keys + LOCAL.format(file=gguf))
    assert status == 1
    assert "edged.toml:2: error: server.api_keys[1]: the secret env:EDGED_UNSET is empty or not set" in out
    assert f"server.api_keys[2]: {secret} can be read by other users" in out
    assert "LoadCredential=web:FILE" in out
    assert "canary" not in out


def test_spending_that_nothing_stops_is_a_warning(run, gguf, monkeypatch) -> None:
    """No budget, a price of 0 and a key in clear text are pointed out; the config is still valid."""
    monkeypatch.setenv("EDGED_TEST_KEY", "sk-canary")
    status, out = run(LOCAL.format(file=gguf) + cloud(url="http://far.example:80/v1", price=0) + ROUTE)
    assert status == 0
    assert 'edged.toml:14: warning: route[0].budget: route "auto" may spend without limit' in out
    assert 'edged.toml:9: warning: upstream[0].model[0]: "big" has a price of 0' in out
    assert "clear text" in out


def test_a_provider_on_this_box_is_not_called_clear_text(run, gguf, monkeypatch) -> None:
    """Loopback http:// is fine."""
    monkeypatch.setenv("EDGED_TEST_KEY", "sk-canary")
    for host in ("localhost", "127.0.0.1:9", "[::1]:9", "[::1]"):
        assert "clear text" not in run(LOCAL.format(file=gguf) + cloud(url=f"http://{host}/v1") + ROUTE)[1]


def test_a_provider_that_no_route_uses_is_a_warning(run, gguf, monkeypatch) -> None:
    """Uncommenting a provider without the route's cloud line changes nothing for "auto"."""
    monkeypatch.setenv("EDGED_TEST_KEY", "sk-canary")
    assert 'no route has "up/..." in its cloud list' in run(LOCAL.format(file=gguf) + cloud())[1]


def test_a_config_without_cloud_or_routes_says_so(run, gguf) -> None:
    """Warnings about the file as a whole have no line."""
    out = run(LOCAL.format(file=gguf))[1]
    assert "edged.toml: warning: no [[upstream]]" in out
    assert "edged.toml: warning: no [[route]]" in out


def test_listening_beyond_loopback_is_a_warning(run, gguf, monkeypatch) -> None:
    """It needs a key, and is still worth a line."""
    monkeypatch.setenv("EDGED_TEST_KEY", "sk-canary")
    text = '[server]\nlisten = "0.0.0.0:8080"\napi_keys = ["env:EDGED_TEST_KEY"]\n' + LOCAL.format(file=gguf)
    assert "edged.toml:2: warning: server.listen: 0.0.0.0:8080 is beyond loopback" in run(text)[1]


def test_more_memory_or_threads_than_the_box_has_is_a_warning(run, gguf, monkeypatch) -> None:
    """The numbers are in the message, before anything is loaded."""
    monkeypatch.setattr(effects.psutil, "virtual_memory", type("Memory", (), {"available": 10}))
    out = run(LOCAL.format(file=gguf) + "threads = 256\n")[1]
    assert "edged.toml:1: warning: model: the models need about 0.0 GiB" in out
    assert "edged.toml:4: warning: model[0].threads: 256 threads on" in out


def test_a_context_beyond_the_training_is_a_warning(run) -> None:
    """The catalogue knows what the model was trained on."""
    out = run('[[model]]\nname = "m"\ncatalogue = "smollm2-135m-instruct"\ncontext_tokens = 100_000\n')[1]
    assert "edged.toml:4: warning: model[0].context_tokens: 100000 is beyond the 8192 tokens" in out


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = \x00", b"[[", b"", b"\x1b[31m = 1", b'"\\u001b" = 1'])
def test_no_file_makes_it_crash_or_steers_the_terminal(run, content) -> None:
    """Whatever is in the file, the answer is lines of text and exit status 1."""
    status, out = run(content)
    assert status == 1
    assert "\x1b" not in out


def test_a_missing_file_is_one_line(tmp_path, capsys) -> None:
    """No traceback."""
    assert main(["check", "--config", str(tmp_path / "none.toml")]) == 1
    assert "none.toml: error: cannot be read: No such file or directory" in capsys.readouterr().out


def test_old_prices_are_a_warning_with_their_age(run, gguf, monkeypatch) -> None:
    """At the line of their date, beyond the days the config says; without a date nothing is said."""
    monkeypatch.setenv("EDGED_TEST_KEY", "sk-canary")
    priced = (
        LOCAL.format(file=gguf) + cloud() + "prices_as_of = 2025-01-01\n" + ROUTE + "[route.budget]\nusd_per_day = 1\n"
    )
    status, out = run(priced)
    assert status == 0
    assert "edged.toml:13: warning: upstream[0].model[0].prices_as_of: read " in out
    assert run(priced + "[budget]\nprices_stale_after_days = 3650\n") == (0, "edged.toml: 0 errors, 0 warnings\n")


def test_a_budget_of_everybody_is_a_limit_for_every_route(run, gguf, monkeypatch) -> None:
    """Then a route without one of its own cannot spend without limit."""
    monkeypatch.setenv("EDGED_TEST_KEY", "sk-canary")
    text = LOCAL.format(file=gguf) + cloud() + ROUTE + "[budget]\nusd_per_day = 1\n"
    assert run(text) == (0, "edged.toml: 0 errors, 0 warnings\n")


def test_named_keys_are_looked_at_too(run, gguf, monkeypatch) -> None:
    """A secret that is not there, a name used twice, a route that does not exist."""
    monkeypatch.delenv("EDGED_UNSET", raising=False)
    key = '[[api_key]]\nname = "kitchen"\nkey = "env:EDGED_UNSET"\n'
    assert "edged.toml:6: error: api_key[0].key: the secret env:EDGED_UNSET" in run(LOCAL.format(file=gguf) + key)[1]
    out = run(LOCAL.format(file=gguf) + key + key + 'routes = ["m", "nowhere"]\n')[1]
    assert 'edged.toml:8: error: api_key[1].name: the name "kitchen" is used twice' in out
    assert 'edged.toml:10: error: api_key[1].routes: "nowhere" does not exist' in out
