"""Which CPU this is, as far as the speed of a weight format depends on it."""

import platform
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_NAMES = ("model name", "cpu family", "model", "CPU implementer", "CPU architecture", "CPU part", "Hardware", "uarch")
_VECTOR_X86 = ("avx", "f16c", "fma", "amx", "sse4", "ssse3")
_VECTOR_ARM = ("asimd", "sve", "sme", "i8mm", "bf16", "neon")


def cpu_identity(cpuinfo: Path = _CPUINFO) -> str:
    """Equal on CPUs of one kind: architecture, model and vector instructions; other flags come with the kernel."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    fields = _first_cpu(text)
    names = [fields[name] for name in _NAMES if fields.get(name)]
    vector = _starting(fields.get("flags"), _VECTOR_X86) + _starting(fields.get("Features"), _VECTOR_ARM)
    return " ".join([platform.machine(), *names, *vector])


def _starting(flags: str | None, words: tuple[str, ...]) -> list[str]:
    return sorted(flag for flag in (flags or "").split() if flag.startswith(words))


def _first_cpu(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    return fields
