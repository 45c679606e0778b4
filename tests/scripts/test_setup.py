"""``scripts/setup.sh``: installs what is missing, once per change of pyproject.toml."""

import hashlib
import os
import subprocess
import time

import pytest
from daemon_builders import ROOT

PIP = """#!/bin/sh
echo "pip $*" >> "{log}"
mkdir -p .venv/bin && : > .venv/bin/edged && chmod +x .venv/bin/edged
"""


@pytest.fixture
def clone(tmp_path):
    """A clone whose interpreter only notes what it was asked to install."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    venv = tmp_path / ".venv" / "bin"
    venv.mkdir(parents=True)
    python = venv / "python"
    python.write_text(PIP.format(log=tmp_path / "log"))
    python.chmod(0o755)
    return tmp_path


def set_up(clone, extras, **environment):
    script = f'set -euo pipefail; . "{ROOT}/scripts/setup.sh"; edged_setup "{extras}"'
    return subprocess.run(
        ["bash", "-c", script],
        cwd=clone,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def installs(clone):
    log = clone / "log"
    return [line.split()[-1] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize(
    ("wanted", "installed"),
    [
        (["", ""], ["."]),
        (["[test]", "[test]"], [".[test]"]),
        (["", "[test]"], [".", ".[test]"]),
        (["[test]", ""], [".[test]"]),
        (["[dev]", "[test]", ""], [".[dev]"]),
        (["[test]", "[dev]", "[test]"], [".[test]", ".[dev]"]),
    ],
)
def test_what_is_there_is_not_installed_again(clone, wanted, installed):
    """Extras that hold others count for them."""
    for extras in wanted:
        done = set_up(clone, extras)
        assert done.returncode == 0, done.stderr
    assert installs(clone) == installed


def test_a_changed_pyproject_is_installed_anew(clone):
    """The stamp is the file's digest."""
    set_up(clone, "[test]")
    (clone / "pyproject.toml").write_text("[project]\n# changed\n")
    set_up(clone, "[test]")
    assert installs(clone) == [".[test]", ".[test]"]
    digest = hashlib.sha256((clone / "pyproject.toml").read_bytes()).hexdigest()
    assert digest in (clone / ".venv" / ".edged-setup").read_text()


def test_an_install_that_fails_is_not_taken_for_done(clone):
    """The next run tries again."""
    python = clone / ".venv" / "bin" / "python"
    working = python.read_text()
    python.write_text("#!/bin/sh\nexit 3\n")
    assert set_up(clone, "").returncode != 0
    python.write_text(working)
    assert set_up(clone, "").returncode == 0
    assert installs(clone) == ["."]


def test_a_box_without_a_python_is_told_what_is_needed(tmp_path):
    """One sentence, and a failure, where no interpreter is new enough."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    for tool in ("bash", "sha256sum", "cut", "grep"):
        (bin_directory / tool).symlink_to(f"/usr/bin/{tool}")
    done = set_up(tmp_path, "", PATH=str(bin_directory))
    assert done.returncode != 0
    assert done.stderr.strip() == "edged needs Python 3.11 or newer"


def test_the_second_setup_is_quick(clone):
    """Nothing but a digest is computed."""
    set_up(clone, "[test]")
    began_s = time.monotonic()
    set_up(clone, "[test]")
    assert time.monotonic() - began_s < 2
