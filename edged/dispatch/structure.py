"""Whether an answer is, and has become, the JSON or the function calls it was asked for."""

import json

from edged.chat.json_prefix import JsonPrefix
from edged.core import Request, ToolMode
from edged.dispatch.trace import AttemptTrace


def structured(attempt: AttemptTrace, request: Request) -> frozenset[int]:
    """The choices that are JSON or calls. One with tools at hand and no text yet may be in the middle of a call."""
    may_call = request.tool_mode is not ToolMode.NONE
    return frozenset(
        choice
        for choice, (texts, calls) in enumerate(zip(attempt.texts, attempt.calls, strict=True))
        if request.output.is_json or calls or (may_call and not any(texts))
    )


def malformed(attempt: AttemptTrace, request: Request) -> bool:
    """Whether a finished answer does not parse: it was cut, for length or by a stop string."""
    for texts, calls in zip(attempt.texts, attempt.calls, strict=True):
        if any(not _is_json(call.arguments) for call in calls):
            return True
        if request.output.is_json and not calls and not _is_json("".join(texts)):
            return True
    return False


def watched(request: Request) -> tuple[JsonPrefix, ...]:
    """One watcher per choice where every answer must become JSON; a call may still be made of anything else."""
    is_json = request.output.is_json and request.tool_mode is ToolMode.NONE
    return tuple(JsonPrefix() for _ in range(request.n)) if is_json else ()


def impossible(attempt: AttemptTrace) -> bool:
    """Whether a choice that must become JSON no longer can."""
    return any(not prefix.possible for prefix in attempt.json)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
