"""Which CPU this is, as far as the speed of a weight format depends on it."""

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_NAMES = ("model name", "cpu family", "model", "CPU implementer", "CPU architecture", "CPU part", "Hardware", "uarch")
_VECTOR = (
    *("avx", "f16c", "fma", "amx", "sse4", "ssse3", "vnni"),  # x86
    *("asimd", "sve", "sme", "i8mm", "bf16", "neon"),  # Arm
)


def cpu_identity(cpuinfo: Path = _CPUINFO) -> str:
    """Equal on CPUs of one kind: architecture, model and vector instructions; other flags come with the kernel."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields = _first_cpu(text)
    names = [fields[name] for name in _NAMES if fields.get(name)]
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    vector = sorted(flag for flag in flags if any(word in flag for word in _VECTOR))
    return " ".join([platform.machine(), *names, *vector])


def _first_cpu(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields
