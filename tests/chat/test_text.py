import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.chat.text import StopScanner, TextAssembler


def run(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[str, bool]:
    assembler = TextAssembler(stops)
    text = ""
    for piece in pieces:
        scan = assembler.feed(piece)
        text += scan.text
        if scan.stopped:
            return text, True
    last = assembler.finish()
    return text + last.text, last.stopped


@given(st.text(), st.lists(st.integers(0, 60), max_size=8))
def test_the_text_does_not_depend_on_how_the_bytes_were_cut(text: str, cuts: list[int]) -> None:
    """Concatenated pieces give the text back byte for byte, whatever the slicing (B01, B02)."""
    data = text.encode()
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert run(pieces) == (text, False)


def test_a_legitimate_replacement_character_passes() -> None:
    """U+FFFD in the text is text (B02)."""
    assert run([b"a\xef\xbf", b"\xbdb"]) == ("a\ufffdb", False)


def test_at_most_three_bytes_are_held() -> None:
    """Only a valid prefix of a character waits; impossible bytes are replaced at once."""
    assembler = TextAssembler()
    assert assembler.feed("é".encode()[:1]).text == ""
    assert assembler.feed(b"x").text == "\ufffdx"
    assert assembler.feed("🧑".encode()[:3]).text == ""
    assert assembler.finish().text == "\ufffd"


@pytest.mark.parametrize(
    ("pieces", "stops", "text", "stopped"),
    [
        ([b"hello END", b"_OF file"], ("END_OF",), "hello ", True),
        ([b"ok###"], ("###",), "ok", True),
        ([b"ends in ##"], ("###",), "ends in ##", False),
        ([b"a", b"b", b"c"], ("abc",), "", True),
        ([b"aab"], ("ab",), "a", True),
        ([b"xxSTOPyyHALT"], ("HALT", "STOP"), "xx", True),
        ([b"\n", b"\n"], ("\n\n",), "", True),
        ([b"caf\xc3", b"\xa9!"], ("é!",), "caf", True),
    ],
)
def test_no_part_of_a_stop_string_leaks_and_nothing_else_is_lost(
    pieces: list[bytes], stops: tuple[str, ...], text: str, *, stopped: bool
) -> None:
    """A stop is found across pieces; what is not a stop comes out in full (B04, B05)."""
    assert run(pieces, stops) == (text, stopped)


@given(st.text("abS", max_size=30), st.text("abS", min_size=1, max_size=4), st.lists(st.integers(0, 30), max_size=6))
def test_stops_are_found_as_in_the_whole_text(text: str, stop: str, cuts: list[int]) -> None:
    """Slicing never changes where an answer ends."""
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b].encode() for a, b in itertools.pairwise(edges)]
    expected = (text.split(stop, maxsplit=1)[0], True) if stop in text else (text, False)
    assert run(pieces, (stop,)) == expected


@given(st.text("ab", max_size=20))
def test_no_more_is_held_than_the_longest_stop_less_one(text: str) -> None:
    scanner = StopScanner(("aab", "bb"))
    scan = scanner.feed(text)
    if not scan.stopped:
        assert len(text) - len(scan.text) <= 2
