"""Bounded reading of a GGUF header: a window over the file's first bytes and the key-value pairs in them.

Every count and length is checked against what is left of the file, and against a fixed limit, before it is used.
Nothing is allocated from a claimed number; vocabulary arrays are stepped over, not built. Layout: ggml docs/gguf.md.
"""

import os
import struct
import time

from edged.errors import ModelFileRejected

MAX_HEADER_BYTES = 64 * 1024 * 1024
MAX_STRING_BYTES = 16 * 1024 * 1024
MAX_KEY_BYTES = 65_535
MAX_WIDTH = 1_048_576
"""No layer, head or head count of a real model is wider."""
MAX_LAYERS = 512
"""llama.cpp's own limit."""

_WINDOW_BYTES = 1024 * 1024
_KEPT_TEXT_BYTES = 256
_SHOWN_CHARACTERS = 64

_U64 = struct.Struct("<Q")
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<B"),
    10: _U64,
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_FLOATS = (6, 12)

Value = int | float | bool | str | tuple[int, ...]


def refused(reason: str) -> ModelFileRejected:
    return ModelFileRejected(f"the model file is refused: {reason}")


def shown(text: str | bytes) -> str:
    """Foreign text made safe for a log line."""
    decoded = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return ascii(decoded[:_SHOWN_CHARACTERS])


class Header:
    """Reads forward from the file's start, through a window, never past the file's end or the header limit."""

    def __init__(self, file: int, *, size_bytes: int, deadline_s: float) -> None:
        self.at = 0
        self._file = file
        self._size_bytes = size_bytes
        self._end = min(size_bytes, MAX_HEADER_BYTES)
        self._deadline_s = deadline_s
        self._window = b""
        self._window_at = 0

    def __repr__(self) -> str:
        return f"Header(at={self.at}, left_bytes={self.left_bytes})"

    @property
    def left_bytes(self) -> int:
        return self._end - self.at

    def skip(self, count_bytes: int, what: str) -> None:
        if count_bytes > self.left_bytes:
            raise self._outside(what)
        self.at += count_bytes

    def take(self, count_bytes: int, what: str) -> bytes:
        start = self.at
        self.skip(count_bytes, what)
        offset = self._seek(start, count_bytes)
        return self._window[offset : offset + count_bytes]

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def length(self, what: str, limit_bytes: int) -> int:
        """The length of a string that follows, within its limit and the file."""
        length_bytes = self.u64(what)
        if length_bytes > limit_bytes:
            raise refused(f"{what} claims {length_bytes} bytes, the limit is {limit_bytes}")
        if length_bytes > self.left_bytes:
            raise self._outside(what)
        return length_bytes

    def count(self, what: str, *, limit: int, least_bytes: int) -> int:
        """A claimed number of entries, each of which takes at least so many bytes."""
        count = self.u64(f"the number of {what}")
        if count > limit:
            raise refused(f"it claims {count} {what}, the limit is {limit}")
        if count * least_bytes > self.left_bytes:
            raise refused(f"it is cut short: it claims {count} {what} in {self.left_bytes} bytes")
        return count

    def skip_strings(self, count: int, what: str) -> None:
        """Step over ``count`` strings; some vocabularies have half a million, so the loop is written out."""
        length_at = _U64.unpack_from
        while count:
            if self.left_bytes < _U64.size:
                raise self._outside(what)
            offset = self._seek(self.at, _U64.size)
            window, last = self._window, len(self._window) - _U64.size
            while count and offset <= last:
                (length_bytes,) = length_at(window, offset)
                if length_bytes > MAX_STRING_BYTES:
                    raise refused(f"a string in {what} claims {length_bytes} bytes, the limit is {MAX_STRING_BYTES}")
                offset += _U64.size + length_bytes
                count -= 1
            self.at = self._window_at + offset
            if self.at > self._end:
                raise self._outside(what)

    def _seek(self, start: int, count_bytes: int) -> int:
        """Bring the bytes into the window; returns where in it they begin."""
        if not self._window_at <= start <= start + count_bytes <= self._window_at + len(self._window):
            self._window = self._read(start, max(count_bytes, min(_WINDOW_BYTES, self._end - start)))
            self._window_at = start
        return start - self._window_at

    def _read(self, start: int, count_bytes: int) -> bytes:
        parts: list[bytes] = []
        while count_bytes:
            if time.monotonic() > self._deadline_s:
                raise refused("its header could not be read in time")
            part = os.pread(self._file, count_bytes, start)
            if not part:
                raise refused("it changed while it was read")
            parts.append(part)
            start += len(part)
            count_bytes -= len(part)
        return b"".join(parts)

    def _outside(self, what: str) -> ModelFileRejected:
        if self._size_bytes > self._end:
            return refused(f"its header is larger than the limit of {MAX_HEADER_BYTES} bytes, at {what}")
        return refused(f"it is cut short: {what} would end after the file's {self._size_bytes} bytes")


class Metadata:
    """The key-value pairs: scalars, the start of texts, short integer arrays, and how long each array is."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}
        self.lengths: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"Metadata(keys={len(self.values.keys() | self.lengths.keys())})"

    def __contains__(self, key: str) -> bool:
        return key in self.values or key in self.lengths

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def number(self, key: str, *, default: int | None = None, least: int = 0, most: int = MAX_WIDTH) -> int:
        """A whole number within its bounds; the largest where the file has one per block."""
        if key not in self and default is not None:
            return default
        value = self.values.get(key)
        numbers = value if isinstance(value, tuple) else (value,)
        found = [number for number in numbers if type(number) is int and least <= number <= most]
        if len(found) == len(numbers) > 0:
            return max(found)
        said = f"is {shown(str(value))}" if key in self else "is missing"
        raise refused(f"{shown(key)} {said}, it must be a whole number from {least} to {most}")

    def per_block(self, key: str, blocks: int, *, default: tuple[int, ...]) -> tuple[int, ...]:
        """One number for each block, whether the file has one for all or one for each."""
        if key not in self:
            return default
        largest = self.number(key)
        value = self.values[key]
        if not isinstance(value, tuple):
            return (largest,) * blocks
        if len(value) != blocks:
            raise refused(f"{shown(key)} has {len(value)} values for {blocks} blocks")
        return value


def read_metadata(header: Header, key_count: int) -> Metadata:
    """Read the pairs that follow the counts. Raises: ModelFileRejected."""
    found = Metadata()
    for index in range(key_count):
        key = _key(header, index)
        if key in found:
            raise refused(f"the key {shown(key)} is there twice")
        kind = header.u32(f"the type of {shown(key)}")
        if kind == _ARRAY:
            _array(header, key, found)
        else:
            found.values[key] = _scalar(header, kind, shown(key))
    return found


def _key(header: Header, index: int) -> str:
    what = f"metadata key {index}"
    raw = header.take(header.length(what, MAX_KEY_BYTES), what)
    if not raw or not raw.isascii():
        raise refused(f"{what} is {'not ASCII' if raw else 'empty'}")
    return raw.decode("ascii")


def _scalar(header: Header, kind: int, what: str) -> Value:
    if kind == _STRING:
        length_bytes = header.length(what, MAX_STRING_BYTES)
        kept = header.take(min(length_bytes, _KEPT_TEXT_BYTES), what)
        header.skip(length_bytes - len(kept), what)
        return kept.decode("utf-8", "replace")
    form = _SCALARS.get(kind)
    if form is None:
        raise refused(f"{what} has the unknown value type {kind}")
    (value,) = form.unpack(header.take(form.size, what))
    if kind != _BOOL:
        return float(value) if kind in _FLOATS else int(value)
    if value > 1:
        raise refused(f"{what} is a boolean of value {value}")
    return bool(value)


def _array(header: Header, key: str, found: Metadata) -> None:
    what = shown(key)
    kind, count = header.u32(what), header.u64(what)
    form = _SCALARS.get(kind)
    if form is None and kind != _STRING:
        raise refused(f"{what} is an array of {'arrays' if kind == _ARRAY else f'the unknown value type {kind}'}")
    if count > header.left_bytes // (form or _U64).size:
        raise refused(f"{what} claims {count} values in {header.left_bytes} bytes")
    found.lengths[key] = count
    if form is None:
        header.skip_strings(count, what)
    elif count <= MAX_LAYERS and kind not in _FLOATS:
        data = header.take(count * form.size, what)
        found.values[key] = tuple(int(value) for (value,) in form.iter_unpack(data))
    else:
        header.skip(count * form.size, what)
