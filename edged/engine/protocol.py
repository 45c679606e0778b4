"""The messages between the daemon and a worker: one struct per command and event, length-prefixed msgpack.

A frame is a 4-byte big-endian length and that many bytes of one tagged struct. Both sides refuse frames over
``MAX_FRAME_BYTES``.
"""

import struct

import msgspec

MAX_FRAME_BYTES = 64 * 1024 * 1024
HEADER = struct.Struct(">I")
_MIN_BATCH_TOKENS = 512
_MIN_STEP_ROWS = 8
TEXTS_PER_BATCH = 64
_SCORED_ROWS = 32
"""Places of options whose logits one step computes; of more options it takes several."""


class Params(msgspec.Struct, frozen=True):
    """How one answer is generated; every default is already resolved. ``temperature`` 0 is greedy."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    seed: int | None
    stop: tuple[str, ...]
    top_logprobs: int

    @classmethod
    def greedy(cls, max_tokens: int) -> "Params":
        """The likeliest token at each place, with nothing added to its odds."""
        return cls(
            max_tokens=max_tokens,
            temperature=0.0,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repeat_penalty=1.0,
            presence_penalty=0.0,
            frequency_penalty=0.0,
            logit_bias=(),
            seed=None,
            stop=(),
            top_logprobs=0,
        )


class Turn(msgspec.Struct, frozen=True):
    """One chat message on its way to the template; ``tool_calls`` are (id, name, arguments)."""

    role: str
    text: str | None
    name: str | None = None
    tool_calls: tuple[tuple[str, str, str], ...] = ()
    tool_call_id: str | None = None


class ToolRow(msgspec.Struct, frozen=True):
    """A function the model may call, as ``core.Tool``."""

    name: str
    description: str | None
    parameters_json: str | None
    strict: bool


class Form(msgspec.Struct, frozen=True):
    """The form an answer must have: calls of ``tools``, and text of ``kind`` (see ``core.OutputFormat``).

    ``mode`` is a ``core.ToolMode``; with "named" the function called is the only one.
    """

    tools: tuple[ToolRow, ...] = ()
    mode: str = "none"
    parallel: bool = True
    kind: str = "text"
    definition: str = ""
    strict: bool = False


# -- commands: daemon to worker --------------------------------------------------------------------------------------


class Load(msgspec.Struct, frozen=True, tag=True):
    """The first command: load this model with this context; ``purpose`` and ``pooling`` as in the config.

    ``whole_texts``: every token of a text attends to all others, so that a text cannot be computed in chunks.
    """

    path: str
    context_tokens: int
    slots: int
    pool_tokens: int
    threads: int
    gpu_layers: int
    prefill_chunk_tokens: int
    one_tenant: bool = False
    main_gpu: int = 0
    offload_kv: bool = True
    purpose: str = "chat"
    pooling: str = "auto"
    whole_texts: bool = False

    @property
    def sequences(self) -> int:
        """Twice the slots: finished prefixes stay in the spare ones. Of texts to embed, so many share a batch."""
        return 2 * self.slots if self.purpose == "chat" else min(TEXTS_PER_BATCH, self.batch_tokens)

    @property
    def batch_tokens(self) -> int:
        """The most tokens of one step: a prompt alone, or a chunk of one beside every running answer.

        Of texts to embed: a whole one where each token attends to all others, else a chunk.
        """
        if self.purpose != "chat":
            return self.context_tokens if self.whole_texts else min(self.context_tokens, self.prefill_chunk_tokens)
        return max(_MIN_BATCH_TOKENS, self.prefill_chunk_tokens) + self.slots

    kv_format: str = "f16"
    drafts: bool = False

    @property
    def step_rows(self) -> int:
        """The most rows of a step without a prompt, drafts included: each needs room for a distribution."""
        return max(2 * self.slots, _MIN_STEP_ROWS) if self.drafts else self.slots

    @property
    def output_rows(self) -> int:
        """The most tokens of one step whose logits are wanted."""
        return max(self.sequences, self.step_rows, _SCORED_ROWS)


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Render and tokenize a prompt and keep it under ``id`` until Submit or Cancel; exactly one input is given."""

    id: str
    tenant: str
    turns: tuple[Turn, ...] | None = None
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    form: Form | None = None


class Branch(msgspec.Struct, frozen=True, array_like=True):
    """One choice to generate, with the tokens it already has from an earlier, cancelled try."""

    choice: int
    generated: tuple[int, ...] = ()


class Submit(msgspec.Struct, frozen=True, tag=True):
    """Generate the branches of a prepared prompt."""

    id: str
    branches: tuple[Branch, ...]
    params: Params
    background: bool = False


class Embed(msgspec.Struct, frozen=True, tag=True):
    """Compute a vector of each text, or with ``query`` how well each answers it.

    ``field`` is what the client calls the texts; ``dimensions`` keeps so many values of each vector.
    """

    id: str
    tenant: str
    texts: tuple[str | tuple[int, ...], ...]
    field: str
    query: str | None = None
    dimensions: int | None = None
    background: bool = False


class ScoreItem(msgspec.Struct, frozen=True, array_like=True):
    """Texts that may stand behind a prompt: a chat, a text, or token ids; exactly one is given.

    ``opening`` is text between the prompt and each option. ``told_apart``: of each option only the tokens that tell it
    from the others are scored.
    """

    options: tuple[str, ...]
    turns: tuple[Turn, ...] | None = None
    text: str | None = None
    tokens: tuple[int, ...] | None = None
    opening: str = ""
    told_apart: bool = False


class Score(msgspec.Struct, frozen=True, tag=True):
    """Compute how likely each option is behind its item's prompt; what prompts share is computed once.

    ``wants_state``: of each prompt's last token the last layer's output is wanted as well.
    """

    id: str
    tenant: str
    items: tuple[ScoreItem, ...]
    background: bool = False
    wants_state: bool = False


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop every choice of ``id``; also forgets a prepared prompt. Unknown ids are fine."""

    id: str


class SetThreads(msgspec.Struct, frozen=True, tag=True):
    """Compute the next steps on so many threads."""

    count: int


class Shutdown(msgspec.Struct, frozen=True, tag=True):
    """End the process."""


Command = Load | Prepare | Submit | Embed | Score | Cancel | SetThreads | Shutdown

# -- events: worker to daemon ----------------------------------------------------------------------------------------


class Stats(msgspec.Struct, frozen=True):
    """The worker's own look at itself; rates in tokens per second, None until measured."""

    running: int
    waiting: int
    queued_prompt_tokens: int
    used_cells: int
    prefill_tps: float | None
    decode_tps: float | None


class Loaded(msgspec.Struct, frozen=True, tag=True):
    """The model is ready. ``load_s`` is the cold load, kept apart from every latency.

    Of a model that embeds or ranks: the most tokens of one text, and the values of one vector.
    """

    vocab_tokens: int
    context_train_tokens: int
    description: str
    load_s: float
    notes: tuple[str, ...]
    text_tokens: int = 0
    vector_values: int = 0


class LoadFailed(msgspec.Struct, frozen=True, tag=True):
    message: str


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """A prompt is ready: its length, how much of it is in the KV cache already, and the load in front of it."""

    id: str
    prompt_tokens: int
    cached_tokens: int
    stats: Stats


class Refused(msgspec.Struct, frozen=True, tag=True):
    """A prompt could not be prepared, or a choice could not go on; ``code`` is an ``errors`` code.

    ``param`` names the field at fault where it is not the prompt.
    """

    id: str
    code: str
    message: str
    param: str | None = None


class TokenRow(msgspec.Struct, frozen=True, array_like=True):
    """One generated token: id, piece, and what the unmodified distribution said (nats).

    ``allowed`` is the probability a constraint left to choose from, None without one.
    """

    id: int
    piece: bytes
    logprob: float
    margin: float
    entropy: float
    top: tuple[tuple[bytes, float], ...]
    allowed: float | None = None


class CallRow(msgspec.Struct, frozen=True, array_like=True):
    """News of one function call, as ``core.ToolCallDelta``."""

    index: int
    id: str | None
    name: str | None
    arguments: str


class Emission(msgspec.Struct, frozen=True, array_like=True):
    """What one step added to one choice. The timings and counts are set on the choice's last emission.

    Of the tokens drafted for it ``accepted_tokens`` are part of the answer, ``rejected_tokens`` are not.
    """

    id: str
    choice: int
    text: str
    tokens: tuple[TokenRow, ...]
    finish: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    tool_calls: tuple[CallRow, ...] = ()
    accepted_tokens: int = 0
    rejected_tokens: int = 0


class StepDone(msgspec.Struct, frozen=True, tag=True):
    """Everything one step produced, for all choices at once."""

    emissions: tuple[Emission, ...]


class Counted(msgspec.Struct, frozen=True, tag=True):
    """The texts of an Embed are tokenized and wait for their turn."""

    id: str
    tokens: int


class Embedded(msgspec.Struct, frozen=True, tag=True):
    """What one batch computed of one request: vectors from text ``first`` on, 32-bit floats in this machine's order.

    The timings are set on the request's last one: its wait for the first batch, and what followed.
    """

    id: str
    first: int
    texts: int
    data: bytes
    last: bool = False
    queue_s: float = 0.0
    compute_s: float = 0.0


class Scored(msgspec.Struct, frozen=True, tag=True):
    """The log-probability (nats) of each token of each option, the items' options one after another.

    ``prompt_tokens`` and ``cached_tokens`` are summed over the items. ``states``: of each item, where they were wanted,
    little-endian float16.
    """

    id: str
    logprobs: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    cached_tokens: int
    option_tokens: int
    queue_s: float
    prefill_s: float
    decode_s: float
    states: tuple[bytes, ...] = ()


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """Sent every second by the control thread; ``step_s`` is how long the current step has been running."""

    step_s: float
    stats: Stats | None


class LogLine(msgspec.Struct, frozen=True, tag=True):
    """One line worth an operator's attention."""

    level: str
    text: str


Event = Loaded | LoadFailed | Prepared | Refused | StepDone | Counted | Embedded | Scored | Heartbeat | LogLine

_encoder = msgspec.msgpack.Encoder()
_commands: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_events: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


def encode(message: Command | Event) -> bytes:
    """One whole frame."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {len(body)} bytes is over the frame limit of {MAX_FRAME_BYTES}")
    return HEADER.pack(len(body)) + body


def decode_command(body: bytes) -> Command:
    return _commands.decode(body)


def decode_event(body: bytes) -> Event:
    return _events.decode(body)
