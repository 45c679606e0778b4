"""Writes small GGUF files, well formed or not."""

import struct
from dataclasses import dataclass, field

U8, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + payload


def u32(name: str, value: int) -> bytes:
    return key(name, U32, struct.pack("<I", value))


def string(name: str, value: str | bytes) -> bytes:
    return key(name, STRING, text(value))


def array(name: str, kind: int, count: int, payload: bytes) -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", kind, count) + payload)


def tensor(name: str | bytes, shape: tuple[int, ...], *, kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<{len(shape)}Q", *shape)
    return text(name) + struct.pack("<I", len(shape)) + sizes + struct.pack("<IQ", kind, offset)


def hyperparameters(**changes: bytes | None) -> dict[str, bytes]:
    """The keys a file needs, by a short name; a change replaces one, None removes it."""
    keys: dict[str, bytes | None] = {
        "architecture": string("general.architecture", "llama"),
        "name": string("general.name", "Tiny"),
        "blocks": u32("llama.block_count", 2),
        "width": u32("llama.embedding_length", 64),
        "context": u32("llama.context_length", 128),
        "ff": u32("llama.feed_forward_length", 128),
        "heads": u32("llama.attention.head_count", 4),
        "kv_heads": u32("llama.attention.head_count_kv", 2),
        "tokens": array("tokenizer.ggml.tokens", STRING, 3, text("<s>") + text("</s>") + text("a")),
        **changes,
    }
    return {name: value for name, value in keys.items() if value is not None}


TWO_TENSORS = (tensor("a.weight", (64, 2), offset=0), tensor("b.weight", (32, 2), kind=8, offset=512))


@dataclass
class File:
    """A file in parts; the counts are the true ones unless they are given."""

    keys: dict[str, bytes] = field(default_factory=hyperparameters)
    tensors: tuple[bytes, ...] = TWO_TENSORS
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    key_count: int | None = None
    alignment_bytes: int = 32
    data_bytes: int = 512 + 68

    def __bytes__(self) -> bytes:
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        key_count = len(self.keys) if self.key_count is None else self.key_count
        counts = struct.pack("<IQQ", self.version, tensor_count, key_count)
        header = self.magic + counts + b"".join(self.keys.values()) + b"".join(self.tensors)
        return header + bytes(-len(header) % self.alignment_bytes) + bytes(self.data_bytes)
