"""What a model will need in memory, what there is, and the refusal when the one exceeds the other.

Refusing costs an error with numbers; loading regardless costs the kernel's choice of a victim.

- **Weights** count in full and once. They are mapped, so their pages are page cache that the kernel may drop, and a
  model whose weights do not stay resident reads them from disk again for every token: useless, though not dead. What
  llama.cpp repacks for this CPU is a copy in its own memory, and then the mapped original is never touched again.
- **KV cells** are exact where every block keeps every cell, as the worker asks for; an upper bound with sliding windows
  or mixed recurrent blocks.
- **Compute buffers** are a fit to what llama.cpp 0.3.36's binding reports, with flash attention, plus a factor.
- **Process** is the interpreter, libraries and vocabulary: a fit to measured workers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from edged.engine.gguf import GgufFile, row_bytes
from edged.errors import OutOfMemory

RESERVE_BYTES = 32_000_000
"""Stays free: the daemon, and what else moves on the box while a model loads."""

_CELLS_MULTIPLE = 256
_F32_BYTES = 4
_MASK_BYTES = 2
_COMPUTE_FACTOR = 1.15
_PROCESS_BYTES = 58_000_000
_VOCAB_TOKEN_BYTES = 240
_NO_LIMIT_BYTES = 2**60


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """An estimate for one worker; see the module's text for how each part is counted."""

    model: str
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int
    process_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.kv_bytes + self.compute_bytes + self.process_bytes

    def __str__(self) -> str:
        parts = {
            "weights": self.weights_bytes,
            "KV": self.kv_bytes,
            "compute": self.compute_bytes,
            "process": self.process_bytes,
        }
        listed = ", ".join(f"{name} {_megabytes(size)}" for name, size in parts.items())
        return f"about {_megabytes(self.total_bytes)} MB ({listed})"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAvailable:
    """The smallest room among the machine and the control groups around us; ``limit_bytes`` is that group's limit."""

    bytes: int
    limit_bytes: int | None = None

    def __str__(self) -> str:
        limit = "" if self.limit_bytes is None else f" (cgroup limit {_megabytes(self.limit_bytes)})"
        return f"{_megabytes(self.bytes)} MB are available{limit}"


def check(needed: MemoryNeed, available: MemoryAvailable) -> None:
    """Refuse a load that does not fit. Raises: OutOfMemory with the numbers."""
    if needed.total_bytes + RESERVE_BYTES <= available.bytes:
        return
    raise OutOfMemory(
        f"model {needed.model} needs {needed}; {available}, {_megabytes(RESERVE_BYTES)} of them stay free. "
        "Fewer slots, a smaller context_tokens or kv_tokens need less"
    )


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.0f}"


# -- what a model needs ----------------------------------------------------------------------------------------------


def estimate(  # noqa: PLR0913 - what a context is made with
    model: str,
    file: GgufFile,
    *,
    pool_tokens: int,
    sequences: int,
    batch_tokens: int,
    cell_type: str = "f16",
    embeds: bool = False,
    output_rows: int = 0,
) -> MemoryNeed:
    """What a worker with this context will hold; the four after the file are what it is made with. Raises: KeyError.

    ``embeds``: every token of a batch is an output, and a model that is not causal computes no logits at all.
    Else at most ``output_rows`` tokens of a batch are outputs, at least one of each sequence.
    """
    outputs = (batch_tokens if file.causal else 0) if embeds else max(sequences, output_rows)
    cells = -(-pool_tokens // _CELLS_MULTIPLE) * _CELLS_MULTIPLE
    return MemoryNeed(
        model=model,
        weights_bytes=file.weights_bytes,
        kv_bytes=cells * cell_bytes(file, cell_type) + _recurrent_bytes(file, sequences),
        compute_bytes=_compute_bytes(file, cells=cells, outputs=outputs, batch_tokens=batch_tokens),
        process_bytes=_PROCESS_BYTES + _VOCAB_TOKEN_BYTES * file.vocab_tokens,
    )


def cell_bytes(file: GgufFile, cell_type: str = "f16") -> int:
    """Bytes one token takes in the KV pool, over all blocks. Raises: KeyError for an unknown type."""
    return sum(
        row_bytes(cell_type, heads * file.key_length) + row_bytes(cell_type, heads * file.value_length)
        for heads in file.kv_heads
    )


def _recurrent_bytes(file: GgufFile, sequences: int) -> int:
    return file.block_count * sequences * file.recurrent_values * _F32_BYTES


def _compute_bytes(file: GgufFile, *, cells: int, outputs: int, batch_tokens: int) -> int:
    """The graph's buffer, and the logits and hidden states handed out.

    The graph needs its attention masks (one more where windows slide) with the widest layer's activations, or else
    the logits: llama.cpp reuses the one's space for the other.
    """
    masks = 2 if file.sliding_window_tokens else 1
    heads_width = max(file.heads) * file.key_length
    activations = 2 * file.feed_forward_length + 4 * file.embedding_length + 3 * heads_width
    layers_bytes = batch_tokens * (masks * cells * _MASK_BYTES + activations * _F32_BYTES)
    logits_bytes = min(outputs, batch_tokens) * file.vocab_tokens * _F32_BYTES
    handed_out_bytes = outputs * (file.vocab_tokens + file.embedding_length) * _F32_BYTES
    return int(_COMPUTE_FACTOR * max(layers_bytes, logits_bytes)) + handed_out_bytes


# -- what there is ---------------------------------------------------------------------------------------------------


def available(
    *,
    mapped_bytes: int = 0,
    machine_bytes: int | None = None,
    proc: Path = Path("/proc"),
    cgroups: Path = Path("/sys/fs/cgroup"),
) -> MemoryAvailable:
    """The room for one more worker, in the machine and in every control group around this process.

    ``mapped_bytes`` are the weights of models already loaded: page cache, which the kernel counts as free although
    dropping it would make those models crawl. ``machine_bytes`` replaces the kernel's MemAvailable.
    """
    if machine_bytes is None:
        machine_bytes = int(psutil.virtual_memory().available)
    machine = MemoryAvailable(bytes=max(0, machine_bytes - mapped_bytes))
    rooms = [_room(group, mapped_bytes) for group in _own_groups(proc, cgroups)]
    return min([machine, *filter(None, rooms)], key=lambda room: room.bytes)


def _own_groups(proc: Path, cgroups: Path) -> Iterator[Path]:
    """This process's group and all above it: each may hold a limit. Containers often see only the mount's top."""
    yield from (cgroups, cgroups / "memory")
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        group = cgroups / "memory" if controllers else cgroups
        for part in Path(path).parts[1:]:
            if part == "..":  # above our namespace: not visible
                break
            group /= part
            yield group


def _room(group: Path, mapped_bytes: int) -> MemoryAvailable | None:
    """What a group's limit leaves, counting page cache that nobody maps as free; None without a limit.

    ``memory.high`` counts as a limit: above it the kernel slows the group down to reclaim.
    """
    limits = [_number(group / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes")]
    limit_bytes = min((limit for limit in limits if limit is not None), default=_NO_LIMIT_BYTES)
    used = [_number(group / name) for name in ("memory.current", "memory.usage_in_bytes")]
    used_bytes = next((value for value in used if value is not None), None)
    if limit_bytes >= _NO_LIMIT_BYTES or used_bytes is None:
        return None
    idle_bytes = max(0, _idle_cache_bytes(group) - mapped_bytes)
    return MemoryAvailable(bytes=max(0, limit_bytes - used_bytes + idle_bytes), limit_bytes=limit_bytes)


def _idle_cache_bytes(group: Path) -> int:
    """``inactive_file`` of cgroup v2, or v1's sum over the groups below."""
    fields = dict(line.split(" ", 1) for line in _text(group / "memory.stat").splitlines() if " " in line)
    value = fields.get("total_inactive_file") or fields.get("inactive_file") or "0"
    return int(value) if value.isdecimal() else 0


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
