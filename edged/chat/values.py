"""Which bytes of a structured answer are values: what the model decided, as against the form it had to keep. Pure."""

from collections.abc import Iterator, Sequence

_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_OPEN, _CLOSE = b"{[", b"}]"
_SKIPPED = b" \t\r\n,:"


class ValueScanner:
    """Marks the bytes of JSON values: strings that are no keys, numbers, true, false, null; quotes are form.

    Markup in angle brackets between JSON texts counts as form. Takes any text and never fails.
    """

    def __init__(self) -> None:
        self._stack: list[int] = []
        self._expects_key = False
        self._in_string = self._is_key = self._escaped = self._in_markup = False

    def feed(self, piece: bytes) -> bool:
        """Whether the next piece of the answer holds a byte of a value."""
        taken = [self._take(byte) for byte in piece]
        return any(taken)

    def _take(self, byte: int) -> bool:
        if self._in_string:
            return self._take_in_string(byte)
        if self._in_markup:
            self._in_markup = byte != ord(">")
            return False
        if byte == _QUOTE:
            self._in_string, self._is_key = True, self._expects_key
            return False
        if byte in _OPEN:
            self._stack.append(byte)
            self._expects_key = byte == ord("{")
        elif byte in _CLOSE:
            if self._stack:
                self._stack.pop()
            self._expects_key = False
        elif byte == ord(":"):
            self._expects_key = False
        elif byte == ord(","):
            self._expects_key = bool(self._stack) and self._stack[-1] == ord("{")
        elif byte == ord("<") and not self._stack:
            self._in_markup = True
        else:
            return byte not in _SKIPPED
        return False

    def _take_in_string(self, byte: int) -> bool:
        if self._escaped:
            self._escaped = False
        elif byte == _BACKSLASH:
            self._escaped = True
        elif byte == _QUOTE:
            self._in_string = False
            return False
        return not self._is_key


def value_places(pieces: Sequence[bytes]) -> Iterator[int]:
    """The places of the pieces that hold a byte of a value."""
    scanner = ValueScanner()
    return (place for place, piece in enumerate(pieces) if scanner.feed(piece))
