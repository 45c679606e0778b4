"""Incremental parsing of server-sent events (WHATWG HTML, "Server-sent events", parsing an event stream).

Bytes in, events out, the same events however the bytes are sliced. ``id`` and ``retry`` are skipped: an answer is
never resumed. One deviation: an event cut off by the end of the stream is handed out, marked ``whole=False``, because
providers do forget the last blank line.
"""

from collections.abc import Iterator
from dataclasses import dataclass

MAX_EVENT_BYTES = 4_194_304
_BOM = b"\xef\xbb\xbf"
_CR, _LF = 0x0D, 0x0A


class EventTooLarge(ValueError):
    """One event is larger than the cap."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event; ``name`` is its type, ``whole`` is False where the stream ended before the event did."""

    data: str
    name: str = "message"
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment line, which providers send as a keep-alive: a sign of life, never a token."""

    text: str


class Parser:
    """State of one stream. Feed bytes as they come, then ``close`` once."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._buffer = bytearray()
        self._scanned = 0
        self._at_start = True
        self._after_cr = False
        self._data: list[str] = []
        self._data_bytes = 0
        self._name = ""

    def __repr__(self) -> str:
        return f"Parser(buffered={len(self._buffer)}, event_bytes={self._data_bytes})"

    def feed(self, data: bytes) -> Iterator[Event | Comment]:
        """Yield what the bytes complete; consume the iterator before feeding again.

        Raises: EventTooLarge, after everything that came before the oversized event.
        """
        self._buffer += data
        if self._at_start and not self._skip_bom():
            return
        yield from self._lines()
        if self._data_bytes + len(self._buffer) > self._max_event_bytes:
            raise EventTooLarge(f"an event is larger than {self._max_event_bytes} bytes")

    def close(self) -> Iterator[Event | Comment]:
        """Yield the event that the end of the stream cut off, if there is one."""
        self._at_start = False
        if self._buffer:
            line, self._buffer = bytes(self._buffer), bytearray()
            yield from self._line(line)
        if self._data:
            yield self._take_event(whole=False)

    def _skip_bom(self) -> bool:
        """Drop a leading byte order mark; False while too few bytes came to know."""
        if len(self._buffer) < len(_BOM) and _BOM.startswith(self._buffer):
            return False
        if self._buffer.startswith(_BOM):
            del self._buffer[: len(_BOM)]
        self._at_start = False
        return True

    def _lines(self) -> Iterator[Event | Comment]:
        """Handle every complete line. A line may end in CR, LF or CRLF, and the LF may come with the next bytes."""
        start = 0
        while (end := self._line_end(start)) is not None:
            line = bytes(self._buffer[start:end])
            blank_tail = self._after_cr and not line and self._buffer[end] == _LF
            self._after_cr = self._buffer[end] == _CR
            start = self._scanned = end + 1
            if not blank_tail:
                yield from self._line(line)
        del self._buffer[:start]
        self._scanned = len(self._buffer)

    def _line_end(self, start: int) -> int | None:
        """Where the line at ``start`` ends; bytes scanned before are not scanned again."""
        begin = max(start, self._scanned)
        feed = self._buffer.find(b"\n", begin)
        carriage = self._buffer.find(b"\r", begin, feed if feed >= 0 else len(self._buffer))
        found = carriage if carriage >= 0 else feed
        return found if found >= 0 else None

    def _line(self, line: bytes) -> Iterator[Event | Comment]:
        if self._data_bytes + len(line) > self._max_event_bytes:
            raise EventTooLarge(f"an event is larger than {self._max_event_bytes} bytes")
        if not line:
            yield from self._dispatch()
            return
        name, _, value = line.decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if not name:
            yield Comment(value)
        elif name == "data":
            self._data.append(value)
            self._data_bytes += len(line)
        elif name == "event":
            self._name = value

    def _dispatch(self) -> Iterator[Event]:
        if self._data:
            yield self._take_event(whole=True)
        self._name = ""

    def _take_event(self, *, whole: bool) -> Event:
        event = Event("\n".join(self._data), self._name or "message", whole)
        self._data, self._data_bytes, self._name = [], 0, ""
        return event
