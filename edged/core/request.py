"""What a client asks."""

from dataclasses import dataclass, field
from enum import StrEnum

from edged.core.clearance import Clearance
from edged.core.image import Image
from edged.core.words import Locality, Role


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
    """One turn. ``text`` is the joined text parts; None only on an assistant turn that holds tool calls.

    In a turn with ``images``, ``text`` holds one IMAGE_MARK for each of them, where it stands.
    """

    role: Role
    text: str | None
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    images: tuple[Image, ...] = ()


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

    ``background`` is the route's word, set once the route is known: interactive work goes first. ``clearance`` is the
    policy's word: without it the request leaves the box by no path.
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
    clearance: Clearance = field(default_factory=Clearance)

    @property
    def images(self) -> tuple[Image, ...]:
        """Every picture of the conversation; no local model reads any."""
        messages = self.input.messages if isinstance(self.input, Chat) else ()
        return tuple(image for message in messages for image in message.images)

    @property
    def tool_mode(self) -> ToolMode:
        """What ``tool_choice`` comes to: without tools nothing can be called, with them the model decides."""
        if not self.tools:
            return ToolMode.NONE
        return self.tool_choice.mode if self.tool_choice else ToolMode.AUTO
