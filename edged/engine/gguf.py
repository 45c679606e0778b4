"""A bounded look into a model file before any worker maps it.

llama.cpp trusts much of what a GGUF file claims: a crafted or cut file can make it allocate without end, read outside
the file or abort. So the header is checked here first (``gguf_header`` holds the limits), and every tensor must lie
inside the file. The file is read, never mapped: one that is cut while mapped would end this process. What llama.cpp
refuses itself (overlapping tensors, nested arrays, doubled names) is refused here too, with a reason. GGUF 2 and 3.
"""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

from edged.engine.gguf_header import MAX_LAYERS, Header, Metadata, read_metadata, refused, shown

MAX_KEYS = 16_384
MAX_TENSORS = 65_536
MAX_TENSOR_NAME_BYTES = 63
MAX_DIMENSIONS = 4
MAX_ALIGNMENT_BYTES = 65_536
TIME_LIMIT_S = 10.0

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_DEFAULT_ALIGNMENT_BYTES = 32
_LEAST_KEY_BYTES = 14
_LEAST_TENSOR_BYTES = 32
_I32_MAX = 2**31 - 1
_ENCODERS = ("t5encoder", "gemma-embedding")

TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}
"""By ggml_type: name, values per block, bytes per block. A test compares it with the llama.cpp we load."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """All tensors of one format together."""

    name: str
    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """What a checked model file says of itself. ``heads`` and ``kv_heads`` have one entry per block.

    ``feed_forward_length`` is the widest layer one token passes; ``recurrent_values`` counts what one recurrent block
    keeps per sequence (0: attention only). ``causal``: a token attends to those before it, not to all.
    """

    version: int
    size_bytes: int
    alignment_bytes: int
    architecture: str
    name: str | None
    file_type: int | None
    has_chat_template: bool
    vocab_tokens: int
    context_tokens: int
    block_count: int
    embedding_length: int
    feed_forward_length: int
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    key_length: int
    value_length: int
    sliding_window_tokens: int
    recurrent_values: int
    causal: bool
    types: tuple[TensorType, ...]

    @property
    def weights_bytes(self) -> int:
        return sum(kind.bytes for kind in self.types)

    @property
    def tensor_count(self) -> int:
        return sum(kind.tensors for kind in self.types)


def inspect(path: Path, *, time_limit_s: float = TIME_LIMIT_S) -> GgufFile:
    """Check a model file's header and extents. Blocks while it reads: call it off the event loop.

    Raises: ModelFileRejected; the message names what is wrong and the limit, never the path.
    """
    deadline_s = time.monotonic() + time_limit_s
    try:
        with _opened(path) as file:
            before = os.fstat(file)
            if not stat.S_ISREG(before.st_mode):
                raise refused("it is not a regular file")
            found = _read(Header(file, size_bytes=before.st_size, deadline_s=deadline_s), before.st_size)
            if _identity(os.fstat(file)) != _identity(before):
                raise refused("it changed while it was read")
            return found
    except (OSError, ValueError) as exc:  # ValueError: a path with a zero byte
        raise refused(f"it cannot be read: {getattr(exc, 'strerror', None) or 'not a usable path'}") from exc


def row_bytes(type_name: str, values: int) -> int:
    """Bytes of a row of ``values`` in a tensor format, whole blocks. Raises: KeyError."""
    sizes = {name: (block, block_bytes) for name, block, block_bytes in TENSOR_TYPES.values()}
    block, block_bytes = sizes[type_name.upper()]
    return -(-values // block) * block_bytes


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor; opening neither waits for a FIFO's writer nor touches a device."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise refused("it is not a regular file")
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield file
    finally:
        os.close(file)


# -- the parts, in file order ----------------------------------------------------------------------------------------


def _read(header: Header, size_bytes: int) -> GgufFile:
    version = _version(header)
    tensor_count = header.count("tensors", limit=MAX_TENSORS, least_bytes=_LEAST_TENSOR_BYTES)
    key_count = header.count("metadata keys", limit=MAX_KEYS, least_bytes=_LEAST_KEY_BYTES)
    metadata = read_metadata(header, key_count)
    alignment_bytes = _alignment(metadata)
    if not tensor_count:
        raise refused("it holds no tensors")
    tensors = _Tensors(alignment_bytes, size_bytes)
    for index in range(tensor_count):
        tensors.read(header, index)
    end = _padded(header.at, alignment_bytes) + tensors.end
    if end > size_bytes:
        raise refused(f"it is cut short: its tensors end at byte {end}, the file at {size_bytes}")
    return _described(metadata, tensors, version=version, size_bytes=size_bytes)


def _version(header: Header) -> int:
    magic = header.take(min(len(_MAGIC), header.left_bytes), "the magic number")
    if magic != _MAGIC:
        raise refused(f"it is not GGUF: it begins with {shown(magic)}")
    version = header.u32("the version")
    if version in _VERSIONS:
        return version
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, *_VERSIONS):
        raise refused("it is big-endian; only little-endian files are supported")
    raise refused(f"it is GGUF version {version}; supported are {_VERSIONS[0]} and {_VERSIONS[1]}")


def _alignment(metadata: Metadata) -> int:
    key = "general.alignment"
    alignment_bytes = metadata.number(key, default=_DEFAULT_ALIGNMENT_BYTES, least=1, most=MAX_ALIGNMENT_BYTES)
    if alignment_bytes & (alignment_bytes - 1):
        raise refused(f"{shown(key)} is {alignment_bytes}, not a power of two")
    return alignment_bytes


class _Tensors:
    """The tensors read so far: by format, and where the last of them ends, counted from the start of the data."""

    def __init__(self, alignment_bytes: int, size_bytes: int) -> None:
        self.alignment_bytes = alignment_bytes
        self.end = 0
        self._size_bytes = size_bytes
        self._names: set[bytes] = set()
        self._sums: dict[str, TensorType] = {}

    def __repr__(self) -> str:
        return f"_Tensors({len(self._names)}, end={self.end})"

    @property
    def types(self) -> tuple[TensorType, ...]:
        return tuple(self._sums.values())

    def read(self, header: Header, index: int) -> None:
        """Read and check the next entry."""
        name_bytes = header.length(f"the name of tensor {index}", MAX_TENSOR_NAME_BYTES)
        name = header.take(name_bytes, f"the name of tensor {index}")
        what = f"the tensor {shown(name)}"
        if name in self._names:
            raise refused(f"{what} is there twice")
        self._names.add(name)
        shape = _shape(header, what)
        number = header.u32(what)
        if number not in TENSOR_TYPES:
            raise refused(f"{what} has the unknown format {number}")
        self._place(header.u64(what), self._add(shape, TENSOR_TYPES[number], what), what)

    def _add(self, shape: list[int], kind: tuple[str, int, int], what: str) -> int:
        """Count the tensor in; returns its size."""
        type_name, block, block_bytes = kind
        if shape[0] % block:
            raise refused(f"{what} has rows of {shape[0]} values, not a multiple of its format's {block}")
        size_bytes = prod(shape) // block * block_bytes
        if size_bytes > self._size_bytes:
            raise refused(f"{what} claims {size_bytes} bytes, the file has {self._size_bytes}")
        sums = self._sums.get(type_name, TensorType(type_name, 0, 0))
        self._sums[type_name] = TensorType(type_name, sums.tensors + 1, sums.bytes + size_bytes)
        return size_bytes

    def _place(self, offset: int, size_bytes: int, what: str) -> None:
        expected = _padded(self.end, self.alignment_bytes)
        if offset != expected:
            raise refused(f"{what} begins at {offset} of the data, it must follow the one before it at {expected}")
        self.end = offset + size_bytes


def _shape(header: Header, what: str) -> list[int]:
    dimensions = header.u32(what)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise refused(f"{what} has {dimensions} dimensions, from 1 to {MAX_DIMENSIONS} are allowed")
    shape = [header.u64(what) for _ in range(dimensions)]
    if 0 in shape:
        raise refused(f"{what} has a dimension of 0")
    return shape


def _padded(offset: int, alignment_bytes: int) -> int:
    return -(-offset // alignment_bytes) * alignment_bytes


# -- what the keys say -----------------------------------------------------------------------------------------------


def _described(metadata: Metadata, tensors: _Tensors, *, version: int, size_bytes: int) -> GgufFile:
    if metadata.number("split.count", default=1) > 1:
        raise refused("it is one part of a split model; join the parts with llama-gguf-split --merge")
    architecture = _architecture(metadata)
    blocks = metadata.number(f"{architecture}.block_count", least=1, most=MAX_LAYERS)
    width = metadata.number(f"{architecture}.embedding_length", least=1)
    attention = f"{architecture}.attention"
    heads = metadata.per_block(f"{attention}.head_count", blocks, default=(0,) * blocks)
    head_length = width // max(heads) if any(heads) else 0
    return GgufFile(
        version=version,
        size_bytes=size_bytes,
        alignment_bytes=tensors.alignment_bytes,
        architecture=architecture,
        name=_printable(metadata.text("general.name")),
        file_type=metadata.number("general.file_type") if "general.file_type" in metadata else None,
        has_chat_template=metadata.text("tokenizer.chat_template") is not None,
        vocab_tokens=_vocab_tokens(metadata, architecture),
        context_tokens=metadata.number(f"{architecture}.context_length", least=1, most=_I32_MAX),
        block_count=blocks,
        embedding_length=width,
        feed_forward_length=_feed_forward_length(metadata, architecture),
        heads=heads,
        kv_heads=metadata.per_block(f"{attention}.head_count_kv", blocks, default=heads),
        key_length=_head_length(metadata, f"{attention}.key_length", default=head_length),
        value_length=_head_length(metadata, f"{attention}.value_length", default=head_length),
        sliding_window_tokens=metadata.number(f"{attention}.sliding_window", default=0, most=_I32_MAX),
        recurrent_values=_recurrent_values(metadata, architecture, width),
        causal=_causal(metadata, architecture),
        types=tensors.types,
    )


def _architecture(metadata: Metadata) -> str:
    name = metadata.text("general.architecture") or ""
    if not (name.isascii() and name.replace("-", "_").isidentifier()):
        raise refused(f"general.architecture is {shown(name)}, not the name of an architecture")
    return name


def _printable(text: str | None) -> str | None:
    return text and "".join(character if character.isprintable() else " " for character in text)


def _vocab_tokens(metadata: Metadata, architecture: str) -> int:
    listed = metadata.lengths.get("tokenizer.ggml.tokens", 0)
    return listed or metadata.number(f"{architecture}.vocab_size", default=0, most=_I32_MAX)


def _causal(metadata: Metadata, architecture: str) -> bool:
    """As llama.cpp has it: the file's word, but for two architectures whose files say nothing."""
    said = metadata.values.get(f"{architecture}.attention.causal", architecture not in _ENCODERS)
    return said is not False


def _head_length(metadata: Metadata, key: str, *, default: int) -> int:
    """Some models have heads of another length in their sliding-window blocks: the longer one counts."""
    return max(metadata.number(key, default=default), metadata.number(f"{key}_swa", default=0))


def _feed_forward_length(metadata: Metadata, architecture: str) -> int:
    """Of experts, those that one token uses count together."""
    dense = metadata.number(f"{architecture}.feed_forward_length", default=0)
    experts = metadata.number(f"{architecture}.expert_used_count", default=0)
    return max(dense, experts * metadata.number(f"{architecture}.expert_feed_forward_length", default=dense))


def _recurrent_values(metadata: Metadata, architecture: str, width: int) -> int:
    """Mamba's convolution and scan, or RWKV's heads and token shifts: llama.cpp's n_embd_r + n_embd_s."""
    if wkv := metadata.number(f"{architecture}.wkv.head_size", default=0):
        return (wkv + 2) * width
    inner, states, groups, kernel = (
        metadata.number(f"{architecture}.ssm.{name}", default=0)
        for name in ("inner_size", "state_size", "group_count", "conv_kernel")
    )
    return max(0, kernel - 1) * (inner + 2 * groups * states) + inner * states
