"""Compressed answers, inflated as they come and never beyond a cap (E10). Pure.

None is asked for, yet proxies and CDNs on the way compress all the same.
"""

import zlib

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class NotInflatable(ValueError):
    """The bytes are not what their encoding says, or inflate to more than the cap."""


class Inflater:
    """State of one body. ``max_bytes`` bounds all that it may become."""

    def __init__(self, encoding: str, *, max_bytes: int) -> None:
        self._stream = zlib.decompressobj(wbits=_WINDOW_BITS[encoding])
        self._left_bytes = max_bytes

    def __repr__(self) -> str:
        return f"Inflater(left_bytes={self._left_bytes})"

    @staticmethod
    def knows(encoding: str) -> bool:
        return encoding in _WINDOW_BITS

    def feed(self, data: bytes) -> bytes:
        """What these bytes complete; may be nothing yet. Raises: NotInflatable."""
        try:
            found = self._stream.decompress(data, self._left_bytes + 1)
        except zlib.error:
            raise NotInflatable("is not compressed as its Content-Encoding says") from None
        self._left_bytes -= len(found)
        if self._left_bytes < 0:
            raise NotInflatable("inflates to too many bytes")
        return found
