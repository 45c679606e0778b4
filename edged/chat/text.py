"""From token pieces to text that may be sent: UTF-8 assembly and stop strings."""

import codecs
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scan:
    """Text that may be sent, and whether a stop string ended the answer."""

    text: str
    stopped: bool = False


class StopScanner:
    """Holds back the longest tail that could still become a stop string; emits none of a stop, loses nothing else."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> Scan:
        held = self._held + text
        found = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self._held = ""
            return Scan(held[: min(found)], stopped=True)
        keep = max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return Scan(held[: len(held) - keep])

    def flush(self) -> str:
        """The held tail, once it is known that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest tail of ``text`` that begins ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class TextAssembler:
    """Joins token pieces of one choice into text.

    At most three bytes of an unfinished UTF-8 character are held back; bytes that can never become a character turn
    into U+FFFD at once (the maximal-subpart rule of Unicode 3.9, which the standard decoder follows).
    """

    def __init__(self, stops: tuple[str, ...] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._scanner = StopScanner(stops)

    def feed(self, piece: bytes) -> Scan:
        return self._scanner.feed(self._decoder.decode(piece))

    def finish(self) -> Scan:
        """What is left when the answer ends; a stop string may still complete in it."""
        last = self._scanner.feed(self._decoder.decode(b"", final=True))
        return last if last.stopped else Scan(last.text + self._scanner.flush())
