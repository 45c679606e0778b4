"""The systemd unit keeps its promises: hardened, restarted, drained, and still able to run llama.cpp."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edged import config

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "edged.service"
needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def settings(key: str) -> list[str]:
    """Every value the unit assigns to ``key``."""
    return re.findall(rf"(?m)^{key}=(.*)$", UNIT.read_text(encoding="utf-8"))


@needs_analyze
def test_the_exposure_stays_at_most_one_and_a_half() -> None:
    """systemd's own judge gives the unit an exposure of 1.5 or less."""
    answer = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNIT)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    exposure = re.search(r"Overall exposure level for edged\.service: ([0-9.]+)", answer.stdout)
    assert exposure, answer.stderr
    assert float(exposure[1]) <= 1.5


@needs_analyze
def test_the_unit_has_no_line_that_systemd_rejects(tmp_path: Path) -> None:
    """systemd-analyze verify finds nothing but keys newer than the systemd at hand, which it ignores."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text(encoding="utf-8").replace("/opt/edged/bin/edged", "/bin/true"), encoding="utf-8")
    answer = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in answer.stderr.splitlines() if unit.name in line]
    assert [line for line in complaints if not re.search(r"RestartSteps|RestartMaxDelaySec", line)] == []


def test_a_drain_ends_before_systemd_loses_patience() -> None:
    """TimeoutStopSec is longer than the default drain."""
    assert float(settings("TimeoutStopSec")[0]) > config.ServerConfig().drain_s + 10


def test_a_wrong_config_is_not_restarted_and_anything_else_always_is() -> None:
    """Exit status 78 (EX_CONFIG) stops; other failures are retried for ever, with growing pauses."""
    assert settings("RestartPreventExitStatus") == ["78"]
    assert settings("StartLimitIntervalSec") == ["0"]
    assert settings("Restart") == ["on-failure"]


def test_memory_pressure_takes_a_worker_before_the_daemon() -> None:
    """The service survives an OOM kill in it, and the daemon's own score is below a worker's."""
    assert settings("OOMPolicy") == ["continue"]
    assert int(settings("OOMScoreAdjust")[0]) < 0


def test_the_unit_user_is_the_one_the_package_creates() -> None:
    """User=, sysusers and tmpfiles speak of the same user and directories."""
    (user,) = settings("User")
    assert re.search(rf"(?m)^u {user} .* /var/lib/{settings('StateDirectory')[0]} ", read("edged.sysusers.conf"))
    assert re.search(rf"(?m)^d /etc/edged +0750 root +{user} ", read("edged.tmpfiles.conf"))
    assert "--config /etc/edged/edged.toml" in settings("ExecStart")[0]


def read(name: str) -> str:
    return SYSTEMD.joinpath(name).read_text(encoding="utf-8")


def test_llama_cpp_calls_back_into_python_without_writable_code_pages() -> None:
    """MemoryDenyWriteExecute=yes holds: under the kernel's own stricter form a ctypes closure is made and called."""
    script = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(65, 1, 0, 0, 0) != 0:  # PR_SET_MDWE, Linux 6.3
    raise SystemExit(3)
import llama_cpp
seen = []
callback = llama_cpp.llama_log_callback(lambda level, text, data: seen.append(level))
callback(2, b"x", None)
raise SystemExit(0 if seen == [2] else 1)
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode == 3:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert answer.returncode == 0, answer.stderr
