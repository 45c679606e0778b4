"""Server-sent events mean the same however the bytes are sliced."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.upstream.sse import Comment, Event, EventTooLarge, Parser

LINE_ENDS = ["\n", "\r", "\r\n"]


def parse(pieces, *, max_event_bytes=10_000):
    parser = Parser(max_event_bytes=max_event_bytes)
    found = []
    try:
        for piece in pieces:
            found.extend(parser.feed(piece))
        found.extend(parser.close())
    except EventTooLarge:
        found.append("too large")
    return found


def byte_by_byte(stream):
    return [stream[i : i + 1] for i in range(len(stream))]


def sliced(stream, cuts):
    edges = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\n", [Event("a")]),
        (b"data:a\n\n", [Event("a")]),
        (b"data:  a\n\n", [Event(" a")]),
        (b"data: a\ndata: b\n\n", [Event("a\nb")]),
        (b"data\n\n", [Event("")]),
        (b"data: a\r\rdata: b\r\r", [Event("a"), Event("b")]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [Event("a"), Event("b")]),
        (b"data: a\n\r\ndata: b\r\n\n", [Event("a"), Event("b")]),
        (b"\xef\xbb\xbfdata: a\n\n", [Event("a")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", []),
        (b": ping\n\n: pong\n", [Comment("ping"), Comment("pong")]),
        (b"event: x\ndata: a\n\ndata: b\n\n", [Event("a", "x"), Event("b")]),
        (b"event: x\n\ndata: b\n\n", [Event("b")]),
        (b"id: 1\nretry: 5\nunknown: 1\ndata: a\n\n", [Event("a")]),
        (b"data: a\n\ndata: b", [Event("a"), Event("b", whole=False)]),
        (b"data: a\n", [Event("a", whole=False)]),
        (b"data: a:b\n\n", [Event("a:b")]),
        ("data: 日🧑‍🚀é\n\n".encode(), [Event("日🧑‍🚀é")]),
        (b"data: \xff\xe6\x97\n\n", [Event("\ufffd\ufffd")]),
        (b"", []),
        (b"\xef\xbb", []),
        (b"<html>\n<body>no</body>\n\n", []),
    ],
)
def test_each_form_of_the_format_is_understood(stream, expected):
    """Line ends, BOM, missing spaces, several data lines, comments and missing final newlines, in one piece or many."""
    assert parse([stream]) == expected
    assert parse(byte_by_byte(stream)) == expected


fields = st.sampled_from(
    ["data: ", "data:", "data", ": ", "event: ", "id: ", "retry: ", "", "data: 日é", "\ufeffdata: "]
)
values = st.text(st.sampled_from("a:é日🧑 \x00{}"), max_size=6)
lines = st.tuples(fields, values, st.sampled_from([*LINE_ENDS, "\n\n", "\r\n\r\n", "\r\r"])).map("".join)
streams = st.lists(lines, max_size=12).map(lambda parts: "".join(parts).encode())
noise = st.binary(max_size=40) | st.lists(
    st.sampled_from([b"\r", b"\n", b"data:", b"\xe6", b"\xef\xbb\xbf", b":", b"x"])
).map(b"".join)


@given(stream=streams | noise, cuts=st.lists(st.integers(0, 400), max_size=8), cap=st.sampled_from([12, 40, 10_000]))
def test_slicing_never_changes_the_events(stream, cuts, cap):
    """Any slicing gives the events of the unsliced stream, the cap on an event's size included."""
    whole = parse([stream], max_event_bytes=cap)
    assert parse(sliced(stream, cuts), max_event_bytes=cap) == whole
    assert parse(byte_by_byte(stream), max_event_bytes=cap) == whole


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 200, b"data: 12345\n" * 20, b": " + b"x" * 200])
def test_an_event_beyond_the_cap_is_refused_before_it_is_stored(stream):
    """Neither one endless line nor endless data lines grow the buffer beyond the cap."""
    parser = Parser(max_event_bytes=100)
    largest = 0

    def feed_all():
        nonlocal largest
        for byte in byte_by_byte(stream):
            list(parser.feed(byte))
            largest = max(largest, len(parser._buffer) + parser._data_bytes)

    with pytest.raises(EventTooLarge):
        feed_all()
    assert largest <= 100


def test_what_came_before_an_oversized_event_is_still_delivered():
    """The cap ends the stream at the oversized event, not at the start of the chunk that held it."""
    assert parse([b"data: a\n\ndata: " + b"x" * 50 + b"\n\n"], max_event_bytes=20) == [Event("a"), "too large"]


def test_keep_alives_without_end_never_add_up():
    """Comments and empty fields between events do not count towards the size of an event."""
    stream = b": ping\nevent: x\n\n" * 500 + b"data: a\n\n"
    assert parse([stream], max_event_bytes=30)[-1] == Event("a")


class CountingBuffer(bytearray):
    """A buffer that counts the bytes it is searched for."""

    searched = 0

    def find(self, what, begin=0, end=None):
        end = len(self) if end is None else end
        self.searched += end - begin
        return super().find(what, begin, end)


def test_a_long_line_in_small_pieces_is_scanned_once():
    """The work grows with the bytes, not with bytes times pieces."""
    parser = Parser(max_event_bytes=1_000_000)
    parser._buffer = CountingBuffer()
    for piece in [b"data: ", *[b"x" * 64] * 1000]:
        list(parser.feed(piece))
    assert parser._buffer.searched <= 3 * len(parser._buffer)
