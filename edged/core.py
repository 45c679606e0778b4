"""The shared nouns: everything imports this module, it imports nothing of edged.

Durations end in ``_s`` and are seconds on the monotonic clock; wall-clock time is only ever a label. Money is an
integer number of micro-dollars (``_uusd``). See the vocabulary in ARCHITECTURE.md.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


class Role(StrEnum):
    """Who speaks in a message; ``developer`` on the wire is ``system`` here."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


class Target(StrEnum):
    """Which side answers."""

    LOCAL = "local"
    CLOUD = "cloud"
    NONE = "none"


class Locality(StrEnum):
    """Where a request may be answered."""

    ANY = "any"
    LOCAL_ONLY = "local_only"
    CLOUD_ONLY = "cloud_only"


class Release(StrEnum):
    """How much of a local answer is judged before any of it is sent."""

    STRICT = "strict"
    GUARDED = "guarded"
    EAGER = "eager"


class Reason(StrEnum):
    """Why a request was answered where it was: the closed list of docs/reasons.md."""

    WITHIN_BUDGET = "within_budget"
    PINNED_LOCAL = "pinned_local"
    PINNED_CLOUD = "pinned_cloud"
    CONTEXT_OVERFLOW = "context_overflow"
    CAPABILITY = "capability"
    QUEUE_FULL = "queue_full"
    TTFT_PREDICTED = "ttft_predicted"
    TTFT_EXCEEDED = "ttft_exceeded"
    ITL_EXCEEDED = "itl_exceeded"
    DEADLINE_PREDICTED = "deadline_predicted"
    LOW_CONFIDENCE = "low_confidence"
    INVALID_OUTPUT = "invalid_output"
    TRUNCATED = "truncated"
    LOCAL_UNAVAILABLE = "local_unavailable"
    HOST_PRESSURE = "host_pressure"
    CLOUD_UNAVAILABLE = "cloud_unavailable"
    BUDGET_EXHAUSTED = "budget_exhausted"
    PRIVATE = "private"
    REJECTED_BUSY = "rejected_busy"
    NO_ROUTE = "no_route"


class FinishReason(StrEnum):
    """Why an answer ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"
    CONTENT_FILTER = "content_filter"


class Outcome(StrEnum):
    """What became of one attempt."""

    SERVED = "served"
    DISCARDED = "discarded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Status(StrEnum):
    """What became of a request."""

    OK = "ok"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"


# -- the request -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function call the assistant made earlier in the conversation; ``arguments`` is the JSON text it produced."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; ``parameters_json`` is the JSON schema of its arguments.

    ``strict`` is None where the client did not say.
    """

    name: str
    description: str | None = None
    parameters_json: str | None = None
    strict: bool | None = None


class ToolMode(StrEnum):
    """Whether the model may, must or must not call a function."""

    NONE = "none"
    AUTO = "auto"
    REQUIRED = "required"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """``name`` is the function to call, with NAMED only."""

    mode: ToolMode = ToolMode.AUTO
    name: str | None = None


class OutputKind(StrEnum):
    """The form an answer must have."""

    TEXT = "text"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """``definition`` is the JSON schema, the regular expression or the GBNF grammar; a schema also has a ``name``.

    ``strict`` is None where the client did not say.
    """

    kind: OutputKind = OutputKind.TEXT
    definition: str = ""
    name: str = ""
    description: str | None = None
    strict: bool | None = None

    @property
    def is_json(self) -> bool:
        return self.kind in (OutputKind.JSON_OBJECT, OutputKind.JSON_SCHEMA)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. ``text`` is the joined text parts; None only on an assistant turn that holds tool calls."""

    role: Role
    text: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Chat:
    """The input of a chat completion."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """The input of a plain completion: text, or token ids of the local model."""

    prompt: str | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose tokens. None means "not asked for": the backend's own default applies and nothing is sent on."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repeat_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one request asks of its route; it may tighten, never loosen, what the route allows.

    ``deadline_s`` counts from receipt.
    """

    locality: Locality = Locality.ANY
    task: str | None = None
    deadline_s: float | None = None
    min_confidence: float | None = None
    max_cost_uusd: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One validated request, whatever API it came through. ``received_s`` is monotonic: every TTFT counts from it.

    ``background`` is the route's word, set once the route is known: interactive work goes first.
    """

    id: str
    model: str
    input: Chat | Completion
    received_s: float
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n: int = 1
    top_logprobs: int | None = None
    stream: bool = False
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    output: OutputFormat = field(default_factory=OutputFormat)
    limits: Limits = field(default_factory=Limits)
    tenant: str = ""
    api: str = "openai"
    background: bool = False

    @property
    def tool_mode(self) -> ToolMode:
        """What ``tool_choice`` comes to: without tools nothing can be called, with them the model decides."""
        if not self.tools:
            return ToolMode.NONE
        return self.tool_choice.mode if self.tool_choice else ToolMode.AUTO


# -- the answer ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token and what the unmodified distribution said of it.

    ``logprob`` and ``entropy`` are in nats, ``margin`` is the difference of the two largest log-probabilities;
    ``top`` holds the most likely pieces with their log-probabilities, most likely first. ``allowed`` is the probability
    of all tokens that a constraint on the answer left to choose from; None where there was no constraint.
    """

    piece: bytes
    logprob: float
    margin: float | None = None
    entropy: float | None = None
    top: tuple[tuple[bytes, float], ...] = ()
    id: int | None = None
    allowed: float | None = None


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """News of one function call of a choice. ``index`` counts the choice's calls from 0.

    ``id`` and ``name`` come with the call's first delta only; the ``arguments`` of all of them join to JSON.
    """

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one attempt; ``cached`` and ``reasoning`` are included in ``prompt`` and ``completion``."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    estimated: bool = False

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of one request went. ``load_s`` is its wait for a cold load, apart from the engine's own three."""

    queue_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    load_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of one choice's answer. ``finish`` is set on each choice's last chunk, ``usage`` on the very last one.

    ``tokens`` are those whose text is in ``text`` or ``tool_calls``, or still held back as a possible stop string or as
    the markup of a call.
    """

    choice: int = 0
    text: str = ""
    tokens: tuple[Token, ...] = ()
    finish: FinishReason | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    cost_uusd: int | None = None
    model: str | None = None
    tool_calls: tuple[ToolCallDelta, ...] = ()


class Backend(Protocol):
    """Turns a request into chunks."""

    def stream(self, request: Request) -> AsyncIterator[Chunk]:
        """Yield the answer's chunks; closing the iterator cancels the work at once.

        Raises: errors.EdgedError.
        """
        ...


# -- what happened ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One verdict of the policy with the numbers it was made from."""

    target: Target
    reason: Reason
    stage: str
    at_s: float = 0.0
    predicted_ttft_s: float | None = None
    confidence: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One backend's try. ``started_s`` counts from the request's receipt, the other durations from the attempt."""

    target: Target
    backend: str
    model: str
    outcome: Outcome
    started_s: float
    total_s: float
    ttft_s: float | None = None
    usage: Usage = field(default_factory=Usage)
    cost_uusd: int = 0
    cost_estimated: bool = False
    confidence: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The one honest line a request leaves in the ledger. ``received_at`` is Unix time and only a label.

    ``ttft_s`` and ``total_s`` count from receipt; ``ttft_s`` is when a stream's first token was sent, or when the
    author of a whole answer had its first one.
    """

    id: str
    received_at: float
    api: str
    model: str
    status: Status
    served_by: Target
    reason: Reason
    route: str | None = None
    served_model: str | None = None
    tenant: str = ""
    task: str | None = None
    locality: Locality = Locality.ANY
    stream: bool = False
    confidence: float | None = None
    predicted_ttft_s: float | None = None
    ttft_s: float | None = None
    total_s: float = 0.0
    timings: Timings = field(default_factory=Timings)
    attempts: tuple[Attempt, ...] = ()
    decisions: tuple[Decision, ...] = ()
    error: str | None = None
    prompt_text: str | None = None
    answer_text: str | None = None

    @property
    def cost_uusd(self) -> int:
        return sum(attempt.cost_uusd for attempt in self.attempts)

    @property
    def served(self) -> Attempt | None:
        return next((a for a in self.attempts if a.outcome is Outcome.SERVED), None)


class EngineState(StrEnum):
    """What a model's worker is doing; an unloaded one is loaded by the next request."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSnapshot:
    """A frozen, advisory look at one engine. Rates are the worker's own, in tokens per second; None = not yet known.

    ``load_wait_s`` is how long a request would wait until a model that loads on demand is there; None where it is
    there, or where waiting is of no use. ``last_load_s`` and ``median_load_s`` are measured cold loads.
    """

    state: EngineState
    slots: int = 0
    running: int = 0
    waiting: int = 0
    context_tokens: int = 0
    queued_prompt_tokens: int = 0
    prefill_tps: float | None = None
    decode_tps: float | None = None
    load_wait_s: float | None = None
    last_load_s: float | None = None
    median_load_s: float | None = None
    host_pressure: bool = False
