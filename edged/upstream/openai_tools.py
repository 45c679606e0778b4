"""Tools and response formats as a provider is asked for them, and the function calls of its answers. Pure.

Providers differ in how they stream calls: without an index, with one index for all, with the name or the id in every
delta, with arguments as an object, whole in one message. Read here, all of them are one thing (B13).
"""

import json
from collections.abc import Mapping

from edged.core import OutputFormat, OutputKind, Request, Tool, ToolCallDelta, ToolMode
from edged.errors import Unsupported
from edged.upstream.wire import Malformed, SurrogateJoin, as_list, as_object, as_text

_MOST_CALLS = 1_000


def asked(request: Request) -> dict[str, object]:
    """The fields that ask for a form. Raises: Unsupported for forms that only a local model can keep to."""
    body: dict[str, object] = {}
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if (choice := _choice(request)) is not None:
            body["tool_choice"] = choice
        if request.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = request.parallel_tool_calls
    if request.output.kind is not OutputKind.TEXT:
        body["response_format"] = _response_format(request.output)
    return body


def _tool(tool: Tool) -> dict[str, object]:
    given: dict[str, object] = {"name": tool.name, "description": tool.description, "strict": tool.strict}
    function = {name: value for name, value in given.items() if value is not None}
    if tool.parameters_json is not None:
        function["parameters"] = json.loads(tool.parameters_json)
    return {"type": "function", "function": function}


def _choice(request: Request) -> object:
    choice = request.tool_choice
    if choice is None:
        return None
    if choice.mode is ToolMode.NAMED:
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode.value


def _response_format(output: OutputFormat) -> dict[str, object]:
    if output.kind is OutputKind.JSON_OBJECT:
        return {"type": "json_object"}
    if output.kind is not OutputKind.JSON_SCHEMA:
        text = f"response_format of the type {output.kind} can be kept to by a local model only"
        raise Unsupported(text, param="response_format")
    named: dict[str, object] = {
        "name": output.name,
        "description": output.description,
        "strict": output.strict,
        "schema": json.loads(output.definition),
    }
    return {"type": "json_schema", "json_schema": {key: value for key, value in named.items() if value is not None}}


class CallReader:
    """The function calls of one choice, whatever way they are streamed. ``prefix`` begins the ids that are missing."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._ids: list[str] = []
        self._places: dict[object, int] = {}
        self._joins: list[SurrogateJoin] = []
        self._names: list[str] = []
        self._arguments: list[str] = []

    def __repr__(self) -> str:
        return f"CallReader(calls={len(self._ids)})"

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, delta: Mapping[str, object]) -> tuple[ToolCallDelta, ...]:
        """The calls of a ``delta`` or a whole ``message``. Raises: Malformed."""
        calls = [as_object(call, "a tool call") for call in as_list(delta.get("tool_calls"), "tool_calls")]
        if (legacy := delta.get("function_call")) is not None:
            calls.append({"index": 0, "function": legacy})
        return tuple(news for call in calls for news in self._read(call))

    @property
    def is_open(self) -> bool:
        """Whether a call's arguments are not the JSON they will be."""
        return not all(map(_is_json, self._arguments))

    def flush(self) -> tuple[ToolCallDelta, ...]:
        """Halves of characters that nothing completed, once no more comes."""
        rest = [(place, join.flush()) for place, join in enumerate(self._joins)]
        return tuple(ToolCallDelta(place, arguments=text) for place, text in rest if text)

    def _read(self, call: Mapping[str, object]) -> list[ToolCallDelta]:
        function = as_object(call.get("function") or {}, "a function")
        name = as_text(function.get("name"), "a function's name")
        place = self._place(call, name)
        arguments = self._joins[place].join(_arguments(function.get("arguments")))
        self._arguments[place] += arguments
        if self._names[place]:
            return [ToolCallDelta(place, arguments=arguments)] if arguments else []
        if not name:
            raise Malformed("a tool call without a function's name")
        self._names[place] = name
        return [ToolCallDelta(place, self._ids[place], name, arguments)]

    def _place(self, call: Mapping[str, object], name: str) -> int:
        """Which call this is news of: by its id, else its index, else the latest; a name may begin the next one."""
        call_id, index = as_text(call.get("id"), "a tool call's id"), call.get("index")
        index = index if type(index) is int else None
        if call_id and ("id", call_id) in self._places:
            return self._places["id", call_id]
        latest = len(self._ids) - 1 if self._ids else None
        known = latest if index is None else self._places.get(("index", index))
        if known is None or (name and (call_id or (index is None and self._is_over(known, name)))):
            return self._new(call_id, index)
        return known

    def _is_over(self, place: int, name: str) -> bool:
        """Whether the same name again begins another call: not while the arguments are still coming."""
        return name != self._names[place] or _is_json(self._arguments[place])

    def _new(self, call_id: str, index: int | None) -> int:
        place = len(self._ids)
        if place >= _MOST_CALLS:
            raise Malformed("too many tool calls")
        self._ids.append(call_id or f"{self._prefix}{place}")
        self._joins.append(SurrogateJoin())
        self._names.append("")
        self._arguments.append("")
        if call_id:
            self._places["id", call_id] = place
        if index is not None:
            self._places["index", index] = place
        return place


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _arguments(value: object) -> str:
    """JSON text; some send the object itself."""
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return as_text(value, "arguments")
