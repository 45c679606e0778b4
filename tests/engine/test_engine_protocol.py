"""Messages between the daemon and a worker."""

import socket

import msgspec
import pytest
from engine_builders import a_params
from hypothesis import given
from hypothesis import strategies as st

from edged.engine import protocol
from edged.engine.channel import Channel
from edged.engine.protocol import (
    HEADER,
    MAX_FRAME_BYTES,
    Branch,
    Cancel,
    Emission,
    Heartbeat,
    Load,
    Loaded,
    LoadFailed,
    LogLine,
    Prepare,
    Prepared,
    Refused,
    Shutdown,
    Stats,
    StepDone,
    Submit,
    TokenRow,
    Turn,
    decode_command,
    decode_event,
    encode,
)

STATS = Stats(1, 2, 3, 4, 5.0, None)
ROW = TokenRow(7, b"\xff\x00", -0.5, 1.0, 0.25, ((b"a", -0.5), (b"\xf0", -1.0)))
COMMANDS = [
    Load("/models/größe.gguf", 4096, 4, 16384, 2, 0, 256),
    Prepare("a", "tenant", turns=(Turn("user", None, "bob", (("1", "f", "{}"),), "1"), Turn("user", "hi"))),
    Prepare("a", "", text="\x00 🧑‍🚀 日本 é"),
    Prepare("a", "", tokens=(1, 2, 3)),
    Submit("a", (Branch(0), Branch(1, (5, 6))), a_params(seed=-(2**63), logit_bias=((5, -100.0),), stop=("###",))),
    Cancel("a"),
    Shutdown(),
]
EVENTS = [
    Loaded(49152, 8192, "llama", 0.5, ("a note",)),
    LoadFailed("no"),
    Prepared("a", 10, 5, STATS),
    Refused("a", "engine_error", "why"),
    StepDone((Emission("a", 0, "text", (ROW,)), Emission("b", 1, "", (), "stop", 10, 5, 3, 0.1, 0.2, 0.3))),
    Heartbeat(0.5, STATS),
    Heartbeat(0.0, None),
    LogLine("error", "text"),
]


@pytest.mark.parametrize("message", COMMANDS, ids=lambda m: type(m).__name__)
def test_commands_arrive_as_they_were_sent(message) -> None:
    """A frame is its length and one tagged struct."""
    frame = encode(message)
    assert HEADER.unpack(frame[:4]) == (len(frame) - 4,)
    assert decode_command(frame[4:]) == message


@pytest.mark.parametrize("message", EVENTS, ids=lambda m: type(m).__name__)
def test_events_arrive_as_they_were_sent(message) -> None:
    """Likewise."""
    assert decode_event(encode(message)[4:]) == message


@given(st.binary(max_size=200))
def test_noise_is_a_decode_error_and_nothing_else(noise: bytes) -> None:
    """A broken peer raises one known error."""
    for decode in (decode_command, decode_event):
        try:
            decode(noise)
        except msgspec.DecodeError:
            continue


def test_a_message_over_the_frame_limit_is_refused_by_its_sender(monkeypatch) -> None:
    """The limit is named."""
    monkeypatch.setattr(protocol, "MAX_FRAME_BYTES", 100)
    with pytest.raises(ValueError, match="frame limit of 100"):
        encode(Prepare("a", "", text="x" * 200))


def test_a_frame_over_the_limit_is_refused_by_its_receiver_before_it_is_read() -> None:
    """A length from a broken peer allocates nothing."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(HEADER.pack(MAX_FRAME_BYTES + 1))
        with pytest.raises(ValueError, match="over the limit"):
            Channel(theirs).receive()


def test_a_channel_puts_slices_together_and_ends_with_its_peer() -> None:
    """Frames arrive whole however they were cut; a closed peer is None, even in the middle of a frame."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel = Channel(theirs)
        data = b"".join(encode(command) for command in COMMANDS)
        for at in range(0, len(data), 7):
            ours.sendall(data[at : at + 7])
        assert [channel.receive() for _ in COMMANDS] == COMMANDS
        ours.sendall(encode(Cancel("a"))[:-1])
        ours.close()
        assert channel.receive() is None
