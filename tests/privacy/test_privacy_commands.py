"""What an operator is told of a config that cannot redact."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

LOCAL = '[[model]]\nname = "m"\nfile = "{file}"\n'
ROUTE = '[[route]]\nname = "auto"\nlocal = "m"\nlocality = "redact"\n'
KEY = '[[api_key]]\nname = "desk"\nkey = "env:EDGED_TEST_KEY"\nlocality = "redact"\n'


@pytest.fixture
def edged(tmp_path: Path):
    """Run the real command on a config, without a library where one is named."""

    def run(command: str, text: str, *, without: str = ""):
        model = tmp_path / "m.gguf"
        model.write_bytes(b"GGUF" + bytes(60))
        path = tmp_path / "edged.toml"
        path.write_text(text.format(file=model))
        hidden = tmp_path / "hidden"
        hidden.mkdir(exist_ok=True)
        if without:
            (hidden / f"{without}.py").write_text(f"raise ImportError(name={without!r})\n")
        paths = os.pathsep.join(filter(None, [str(hidden), os.environ.get("PYTHONPATH", "")]))
        env = {**os.environ, "PYTHONPATH": paths, "STATE_DIRECTORY": str(tmp_path), "EDGED_TEST_KEY": "k"}
        argv = [sys.executable, "-m", "edged", command, "--config", str(path)]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env, check=False)

    return run


@pytest.mark.parametrize("text", [LOCAL + ROUTE, LOCAL + KEY], ids=["route", "key"])
def test_a_label_that_needs_what_is_not_installed_stops_the_start(edged, text):
    """Status 78 and what to install; ``edged check`` says the same, as an error."""
    done = edged("serve", text, without="re2")
    assert done.returncode == os.EX_CONFIG, done.stderr
    assert 'pip install "edged[redact]"' in done.stderr
    assert "Traceback" not in done.stderr
    checked = edged("check", text, without="re2")
    assert checked.returncode == 1
    assert 'error: redact: redaction needs re2, which is not installed: pip install "edged[redact]"' in checked.stdout


def test_where_nobody_redacts_nothing_has_to_be_installed(edged):
    """The libraries are an extra."""
    assert "edged[redact]" not in edged("check", LOCAL, without="re2").stdout


def test_a_wrong_pattern_is_named_before_anybody_relies_on_it(edged):
    """Written is enough: no label has to use it yet."""
    text = LOCAL + '[redact.patterns]\nemployee_id = "E["\n'
    checked = edged("check", text)
    assert checked.returncode == 1
    assert "patterns.employee_id: not an RE2 expression" in checked.stdout
    assert edged("serve", text).returncode == os.EX_CONFIG


def test_a_site_only_route_without_a_site_is_refused_by_name(edged):
    """The route alone is to blame, so the config is."""
    up = '[[upstream]]\nname = "up"\nbase_url = "https://up.example"\n[[upstream.model]]\nname = "big"\n'
    up += 'input_usd_per_mtok = 1\noutput_usd_per_mtok = 1\n[[route]]\nname = "r"\ncloud = ["up/big"]\n'
    checked = edged("check", up + 'locality = "site_only"\n')
    assert checked.returncode == 1
    assert 'needs a local model or an upstream with trust = "site"' in checked.stdout
