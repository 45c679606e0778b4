"""Function calls in OpenAI's answers: whole, and as the deltas of a stream."""

from typing import Any

from edged.core import ToolCallDelta


class Call:
    """One function call of a choice, gathered from its deltas."""

    def __init__(self) -> None:
        self._id = self._name = ""
        self._arguments: list[str] = []

    def __repr__(self) -> str:
        return f"Call({self._id}, {self._name}, pieces={len(self._arguments)})"

    def add(self, delta: ToolCallDelta) -> None:
        self._id = self._id or delta.id or ""
        self._name = self._name or delta.name or ""
        self._arguments.append(delta.arguments)

    def body(self) -> dict[str, Any]:
        function = {"name": self._name, "arguments": "".join(self._arguments)}
        return {"id": self._id, "type": "function", "function": function}


def call_delta(delta: ToolCallDelta) -> dict[str, Any]:
    """The id, the type and the name come once: clients join what they are sent."""
    if delta.id is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    function = {"name": delta.name, "arguments": delta.arguments}
    return {"index": delta.index, "id": delta.id, "type": "function", "function": function}
