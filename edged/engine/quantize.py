"""Writing a model file in another weight format, with llama.cpp's own quantizer."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import llama_cpp.llama_cpp as llama

from edged.errors import EngineError

FORMATS = {
    "Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q6_K": llama.LLAMA_FTYPE_MOSTLY_Q6_K,
    "Q5_0": llama.LLAMA_FTYPE_MOSTLY_Q5_0,
    "Q4_K_M": llama.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
    "IQ4_NL": llama.LLAMA_FTYPE_MOSTLY_IQ4_NL,
}

_LOG_LEVEL_ERROR = 4
_MIB = 1024 * 1024
_SIZE = re.compile(r"quant size\s*=\s*([0-9.]+) MiB")
_FALLBACKS = re.compile(r"(\d+) of (\d+) tensor\(s\) required fallback")
_log_callback: object = None  # must outlive every call into llama.cpp


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a format would come to: the size of its weights, and of which share llama.cpp has to choose another.

    ``fallback_share`` counts tensors whose rows are no multiple of the format's block.
    """

    weight_bytes: int
    fallback_share: float


def foresee(source: Path, weight_format: str) -> Outlook:
    """Say what ``write`` would do, without writing. Raises: EngineError with llama.cpp's own words."""
    with _captured_log() as log:
        _quantize(source, source, weight_format, threads=1, dry_run=True, log=log)
    text = "".join(line for _, line in log)
    size, fallbacks = _SIZE.search(text), _FALLBACKS.search(text)
    return Outlook(
        weight_bytes=int(float(size[1]) * _MIB) if size else source.stat().st_size,
        fallback_share=int(fallbacks[1]) / int(fallbacks[2]) if fallbacks else 0.0,
    )


def write(source: Path, target: Path, weight_format: str, *, threads: int) -> None:
    """Write ``source`` in another format, whatever format it has. Raises: EngineError with llama.cpp's own words."""
    with _captured_log() as log:
        _quantize(source, target, weight_format, threads=threads, dry_run=False, log=log)


def _quantize(
    source: Path, target: Path, weight_format: str, *, threads: int, dry_run: bool, log: list[tuple[int, str]]
) -> None:
    params = llama.llama_model_quantize_default_params()
    params.ftype = FORMATS[weight_format]
    params.allow_requantize = True
    params.nthread = threads
    params.dry_run = dry_run
    if llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), params):
        said = next((line.strip() for level, line in reversed(log) if level == _LOG_LEVEL_ERROR), "no reason given")
        raise EngineError(f"llama.cpp cannot write {weight_format}: {said}")


@contextmanager
def _captured_log() -> Iterator[list[tuple[int, str]]]:
    """Collect what llama.cpp says, with its level; the callback stays set and goes on into the same list."""
    global _log_callback  # noqa: PLW0603 - llama.cpp has one log callback per process
    lines: list[tuple[int, str]] = []

    def callback(level: int, text: bytes | None, _user: object) -> None:
        if text:
            lines.append((level, text.decode("utf-8", "replace")))

    _log_callback = llama.llama_log_callback(callback)
    llama.llama_log_set(_log_callback, None)
    yield lines
