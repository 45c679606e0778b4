"""What the optimizer and a probe say to each other: one JSON object a line, each command answered by one event."""

import msgspec


class Foresee(msgspec.Struct, frozen=True, tag=True):
    """What would this file be in that format?"""

    source: str
    weight_format: str


class Write(msgspec.Struct, frozen=True, tag=True):
    """Write the file in that format."""

    source: str
    target: str
    weight_format: str
    threads: int


class Open(msgspec.Struct, frozen=True, tag=True):
    """Load a file. ``pool_tokens`` cells of ``kv_format`` in one cache; ``slots`` sequences."""

    path: str
    threads: int
    pool_tokens: int
    slots: int
    batch_tokens: int
    gpu_layers: int = 0
    kv_format: str = "f16"


class Time(msgspec.Struct, frozen=True, tag=True):
    """Take the time of a prompt of so many tokens, in chunks, and of so many tokens after it, one by one."""

    text: str
    prefill_tokens: int
    decode_tokens: int
    threads: int
    chunk_tokens: int


class Question(msgspec.Struct, frozen=True, array_like=True):
    prompt: str
    options: tuple[str, ...]


class Score(msgspec.Struct, frozen=True, tag=True):
    """Score each option of each question as what comes after ``prefix`` and the question's prompt."""

    prefix: str
    questions: tuple[Question, ...]


Command = Foresee | Write | Open | Time | Score


class Foreseen(msgspec.Struct, frozen=True, tag=True):
    """The size of the weights, and of which share of the tensors llama.cpp would choose another format."""

    weight_bytes: int
    fallback_share: float


class Written(msgspec.Struct, frozen=True, tag=True):
    """The file lies on the disk."""


class Opened(msgspec.Struct, frozen=True, tag=True):
    description: str
    load_s: float


class Timed(msgspec.Struct, frozen=True, tag=True):
    """``resident_bytes`` is the process's resident memory after the work."""

    prefill_s: float
    decode_s: float
    resident_bytes: int


class Scored(msgspec.Struct, frozen=True, tag=True):
    """Mean log-probability per token (nats), by question and option."""

    scores: tuple[tuple[float, ...], ...]


class Failed(msgspec.Struct, frozen=True, tag=True):
    message: str


Event = Foreseen | Written | Opened | Timed | Scored | Failed

encode = msgspec.json.Encoder().encode
decode_command = msgspec.json.Decoder(Command).decode
decode_event = msgspec.json.Decoder(Event).decode
