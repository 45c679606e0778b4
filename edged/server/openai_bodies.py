"""What the bodies of ``POST /v1/chat/completions`` and ``POST /v1/completions`` may hold.

Every field of OpenAI's is in exactly one of three groups: honoured, ignored because it cannot change the answer (see
``IGNORED``), or refused unless it asks for nothing (see ``REFUSED``). Anything else is an unknown parameter: a client
cannot name an address, a key or a header for the daemon to use. Types are strict: true is not 1, "5" is not 5.
"""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    FailFast,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from edged.errors import Unsupported
from edged.server.openai_tools import MAX_TOOLS, ResponseFormat, ToolBody, ToolChoiceBody
from edged.server.wire import Strict

MAX_MESSAGES = 10_000
MAX_PARTS = 1_000
MAX_CHOICES = 8
MAX_STOPS = 4
MAX_BIASES = 300
MAX_INT32 = 2**31 - 1

# Fields that cannot change the answer, with the reason why it is honest to accept them.
IGNORED = {
    "user": "names the end user to the provider's abuse detection",
    "safety_identifier": "names the end user to the provider's abuse detection",
    "metadata": "labels of a completion stored at the provider; nothing is stored here",
    "store": "asks the provider to keep the completion; nothing is stored here",
    "service_tier": "chooses price and speed at the provider; here the route decides",
    "prompt_cache_key": "a hint for the provider's prompt cache; prefixes are shared here without it",
    "prompt_cache_options": "a hint for the provider's prompt cache",
    "prompt_cache_retention": "a hint for the provider's prompt cache",
}

# Fields that would change the answer and are not honoured yet, with the values that ask for nothing.
REFUSED: dict[str, tuple[Any, ...]] = {
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
    "moderation": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
}


def _one_or_many(value: Any) -> Any:
    """Let a lone string stand for an array of one."""
    if isinstance(value, str):
        return [value]
    if value is None or isinstance(value, list):
        return value
    raise PydanticCustomError("invalid_type", "must be a string or an array")


def _text_or_parts(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else _one_or_many(value)


def _nothing(value: Any) -> Any:
    if value is not None:
        raise PydanticCustomError(Unsupported.code, "is not supported yet: leave it out")
    return value


_Nothing = Annotated[Any, AfterValidator(_nothing)]


class EdgedOptions(Strict):
    """The ``edged`` field and the ``x-edged`` header: what one request asks of its route."""

    locality: Literal["any", "redact", "site_only", "local_only", "cloud_only"] | None = None
    task: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")
    deadline_ms: float | None = Field(default=None, gt=0, le=86_400_000)
    min_confidence: float | None = Field(default=None, ge=0, le=1)
    max_cost_usd: float | None = Field(default=None, ge=0, le=10_000)


class StreamOptions(Strict):
    """``include_obfuscation`` pads events against traffic analysis; it changes no answer and is ignored."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Part(Strict, extra="allow"):
    """One content part; what else a part may hold depends on its type."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Strict):
    name: str = Field(min_length=1, max_length=256)
    arguments: str


class ToolCallBody(Strict):
    """A call in the history; ``index`` is what clients that rebuild a message from a stream leave behind."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] = "function"
    function: FunctionCall
    index: int | None = None


class ChatMessage(Strict):
    """One turn. ``annotations`` and ``reasoning_content`` are parts of earlier answers that no model is shown again."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        list[Part] | None,
        Field(min_length=1, max_length=MAX_PARTS),
        BeforeValidator(_text_or_parts),
    ] = None
    name: str | None = Field(default=None, pattern=r"^[^\s<|\\/>]{1,64}$")
    tool_calls: list[ToolCallBody] | None = Field(default=None, max_length=128)
    tool_call_id: str | None = Field(default=None, min_length=1, max_length=256)
    refusal: str | None = None
    annotations: list[Any] | None = None
    reasoning_content: str | None = None
    audio: _Nothing = None
    function_call: _Nothing = None


class Body(Strict):
    """What both endpoints share. Null is "not given" wherever OpenAI allows it, which is nearly everywhere."""

    model: str = Field(min_length=1, max_length=200)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0, le=MAX_INT32)
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    repeat_penalty: float | None = Field(default=None, gt=0, le=2)
    logit_bias: dict[str, Any] | None = Field(default=None, max_length=MAX_BIASES)
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    max_tokens: int | None = Field(default=None, ge=1, le=MAX_INT32)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=1_000)]] | None,
        Field(max_length=MAX_STOPS),
        BeforeValidator(_one_or_many),
    ] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    edged: EdgedOptions | None = None
    user: str | None = None

    @field_validator(*REFUSED, check_fields=False)
    @classmethod
    def _asks_for_nothing(cls, value: Any, info: ValidationInfo) -> Any:
        nothing = REFUSED[str(info.field_name)]
        if any(type(value) is type(harmless) and value == harmless for harmless in nothing):
            return value
        raise PydanticCustomError(
            Unsupported.code, _REMEDY.get(str(info.field_name), "is not supported yet: leave it out")
        )


_REMEDY = {
    "functions": "is not supported: declare them as tools",
    "function_call": "is not supported: use tool_choice",
}


class ChatBody(Body):
    """``POST /v1/chat/completions``"""

    messages: Annotated[list[ChatMessage], FailFast(), Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=MAX_INT32)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)

    safety_identifier: str | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    store: bool | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None

    tools: Annotated[list[ToolBody] | None, FailFast(), Field(max_length=MAX_TOOLS)] = None
    tool_choice: ToolChoiceBody = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None

    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None
    moderation: Any = None


class CompletionBody(Body):
    """``POST /v1/completions``; ``prompt`` is judged by ``_prompt``, which can say more than a union of types."""

    prompt: Any
    logprobs: int | None = Field(default=None, ge=0, le=5)
    best_of: int | None = Field(default=None, ge=1, le=MAX_CHOICES)

    echo: Any = None
    suffix: Any = None
