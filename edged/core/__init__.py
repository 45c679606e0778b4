"""The shared nouns: everything imports this package, it imports nothing of edged.

Durations end in ``_s`` and are seconds on the monotonic clock; wall-clock time is only ever a label. Money is an
integer number of micro-dollars (``_uusd``). See the vocabulary in ARCHITECTURE.md.
"""

from edged.core.answer import Backend, Chunk, Timings, Token, ToolCallDelta, Usage
from edged.core.audit import Audit
from edged.core.clearance import Clearance, strictest
from edged.core.image import IMAGE_MARK, Image
from edged.core.money import BudgetSnapshot, DayMark, KeptMoney, Reservation, Scope
from edged.core.record import NO_RETRY, OFFLINE, Attempt, Decision, Record
from edged.core.request import (
    Chat,
    Completion,
    Limits,
    Message,
    OutputFormat,
    OutputKind,
    Request,
    Sampling,
    Tool,
    ToolCall,
    ToolChoice,
    ToolMode,
)
from edged.core.snapshot import EngineSnapshot, EngineState
from edged.core.words import FinishReason, Locality, Outcome, Reason, Release, Role, Status, Target, Trust

__all__ = [
    "IMAGE_MARK",
    "NO_RETRY",
    "OFFLINE",
    "Attempt",
    "Audit",
    "Backend",
    "BudgetSnapshot",
    "Chat",
    "Chunk",
    "Clearance",
    "Completion",
    "DayMark",
    "Decision",
    "EngineSnapshot",
    "EngineState",
    "FinishReason",
    "Image",
    "KeptMoney",
    "Limits",
    "Locality",
    "Message",
    "Outcome",
    "OutputFormat",
    "OutputKind",
    "Reason",
    "Record",
    "Release",
    "Request",
    "Reservation",
    "Role",
    "Sampling",
    "Scope",
    "Status",
    "Target",
    "Timings",
    "Token",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolChoice",
    "ToolMode",
    "Trust",
    "Usage",
    "strictest",
]
