"""What the tokens of one choice come to: text and function calls, stop strings honoured in the text alone."""

from dataclasses import dataclass

from edged.chat.text import StopScanner, TextAssembler
from edged.chat.toolcalls import Parsed, ToolCallParser
from edged.core import ToolCallDelta


@dataclass(frozen=True, slots=True)
class Said:
    """News of an answer, and whether a stop string ended it."""

    text: str
    calls: tuple[ToolCallDelta, ...] = ()
    stopped: bool = False


class AnswerText:
    """Joins token pieces. With a parser, text and calls part ways; a stop string inside a call's arguments is data."""

    def __init__(self, stops: tuple[str, ...] = (), parser: ToolCallParser | None = None) -> None:
        self._assembler = TextAssembler(() if parser else stops)
        self._parser = parser
        self._stops = StopScanner(stops)

    @property
    def calls(self) -> int:
        """How many functions the answer has called so far."""
        return self._parser.calls if self._parser else 0

    def feed(self, piece: bytes) -> Said:
        scan = self._assembler.feed(piece)
        if self._parser is None:
            return Said(scan.text, stopped=scan.stopped)
        return self._sorted(self._parser.feed(scan.text))

    def finish(self) -> Said:
        """What is left when the answer ends; a stop string may still complete in it."""
        scan = self._assembler.finish()
        if self._parser is None:
            return Said(scan.text, stopped=scan.stopped)
        fed, last = self._parser.feed(scan.text), self._parser.finish()
        said = self._sorted(Parsed(fed.text + last.text, (*fed.calls, *last.calls)))
        return said if said.stopped else Said(said.text + self._stops.flush(), said.calls)

    def _sorted(self, parsed: Parsed) -> Said:
        scan = self._stops.feed(parsed.text)
        if scan.stopped:
            return Said(scan.text, stopped=True)
        held = self._stops.flush() if parsed.calls else ""  # a call ends what could have become a stop string
        return Said(scan.text + held, parsed.calls)
