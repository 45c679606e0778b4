"""A short storm around a real daemon with the real model: no guarantee is broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def chaos(*arguments, **environment):
    command = [str(ROOT / "scripts" / "chaos"), *arguments]
    known = {**os.environ, "EDGED_PYTHON": sys.executable, **environment}
    return subprocess.run(command, env=known, capture_output=True, text=True, timeout=110, check=False)


@pytest.mark.model
def test_a_storm_breaks_no_guarantee(model_path):
    """Ten seconds under a fixed seed: requests, faults and kills by the dozen, 0 violations."""
    done = chaos("--seconds", "10", "--seed", "11", "--json", EDGED_TEST_MODEL=str(model_path))
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["violations_total"] == 0, report["details"]
    assert done.returncode == 0
    assert report["requests"] == report["records"] > 30
    assert report["upstream_calls"] > 10
    assert len(report["injected"]) > 8


@pytest.mark.parametrize("seconds", ["0", "1e9", "nan"])
def test_a_length_out_of_bounds_is_refused(seconds):
    """The message names the option and its limits."""
    done = chaos("--seconds", seconds)
    assert done.returncode == 2
    assert "--seconds" in done.stderr
    assert "between 1 and 86400" in done.stderr
