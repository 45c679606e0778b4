"""Which line of a TOML text a key is on: tomllib does not say."""

import bisect
import re
import tomllib

Location = tuple[int | str, ...]

_KEY = re.compile(r"""[ \t]*(?:([A-Za-z0-9_-]+)|("(?:[^"\\\n]|\\.)*"|'[^'\n]*'))[ \t]*""")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_STRING = re.compile(r""""{3}(?:\\.|[^\\])*?"{3,5}|'{3}.*?'{3,5}|"(?:[^"\\\n]|\\.)*"|'[^'\n]*\'""", re.DOTALL)
_BARE = re.compile(r"[^,\]}#\n]*")


class TomlIndex:
    """The lines (1-based) of every key, table and array entry of a text that ``tomllib`` accepts."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._lines: dict[Location, int] = {}
        self._tables: dict[Location, int] = {}
        self._read()

    def line_of(self, location: Location) -> int:
        """The line of the innermost part of ``location`` that is written in the text; 0 where none is."""
        while location and location not in self._lines:
            location = location[:-1]
        return self._lines.get(location, 0)

    def _read(self) -> None:
        table: Location = ()
        at = self._skip_blank(0)
        while at < len(self._text):
            table, at = self._header(at) if self._text[at] == "[" else (table, self._pair(at, table))
            at = self._skip_blank(at)

    def _skip_blank(self, at: int) -> int:
        match = _BLANK.match(self._text, at)
        return match.end() if match else at

    def _record(self, location: Location, at: int) -> None:
        self._lines.setdefault(location, bisect.bisect_left(self._ends, at) + 1)

    def _header(self, at: int) -> tuple[Location, int]:
        """Read ``[a.b]`` or ``[[a.b]]``; the table it opens, and where it ends."""
        start, is_array = at, self._text.startswith("[[", at)
        parts, at = self._key(at + 1 + is_array)
        table: Location = ()
        for number, part in enumerate(parts):
            table = (*table, part)
            self._record(table, start)
            if is_array and number == len(parts) - 1:
                self._tables[table] = self._tables.get(table, -1) + 1
            if table in self._tables:
                table = (*table, self._tables[table])
                self._record(table, start)
        return table, at + 1 + is_array

    def _pair(self, at: int, table: Location) -> int:
        """Read ``key = value`` in a table, inline ones included; where it ends."""
        start = at
        parts, at = self._key(at)
        for part in parts:
            table = (*table, part)
            self._record(table, start)
        return self._value(self._skip_blank(at + 1), table)

    def _key(self, at: int) -> tuple[list[str], int]:
        parts: list[str] = []
        while match := _KEY.match(self._text, at):
            quoted = match[2]
            parts.append(next(iter(tomllib.loads(f"{quoted} = 0"))) if quoted else match[1])
            at = match.end()
            if not self._text.startswith(".", at):
                break
            at += 1
        return parts, at

    def _value(self, at: int, location: Location) -> int:
        if self._text.startswith("[", at):
            return self._array(at + 1, location)
        if self._text.startswith("{", at):
            return self._inline_table(at + 1, location)
        match = _STRING.match(self._text, at) or _BARE.match(self._text, at)
        return match.end() if match else at

    def _array(self, at: int, location: Location) -> int:
        number, at = 0, self._skip_blank(at)
        while not self._text.startswith("]", at):
            self._record((*location, number), at)
            at = self._skip_blank(self._value(at, (*location, number)))
            if self._text.startswith(",", at):
                number, at = number + 1, self._skip_blank(at + 1)
        return at + 1

    def _inline_table(self, at: int, location: Location) -> int:
        at = self._skip_blank(at)
        while not self._text.startswith("}", at):
            at = self._skip_blank(self._pair(at, location))
            if self._text.startswith(",", at):
                at = self._skip_blank(at + 1)
        return at + 1
