"""The closed lists everything speaks in."""

from enum import StrEnum


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
    """Where a request may be answered, and what an upstream may see of it."""

    ANY = "any"
    REDACT = "redact"
    SITE_ONLY = "site_only"
    LOCAL_ONLY = "local_only"
    CLOUD_ONLY = "cloud_only"


class Trust(StrEnum):
    """Whose machine an upstream is: a stranger's, or one of the operator's own site."""

    CLOUD = "cloud"
    SITE = "site"


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
    KEPT_AUTHOR = "kept_author"
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
    """What became of one attempt; AUDITED: asked for comparison after another answer was served."""

    SERVED = "served"
    DISCARDED = "discarded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    AUDITED = "audited"


class Status(StrEnum):
    """What became of a request."""

    OK = "ok"
    REJECTED = "rejected"
    FAILED = "failed"
    CANCELLED = "cancelled"
