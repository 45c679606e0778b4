"""Tools and response formats in the bodies of chat requests: their fields, and their translation.

Sources: OpenAI API reference (``tools``, ``tool_choice``, ``response_format``). ``regex`` and ``grammar`` (GBNF) are
response formats of edged's own, which only a local model can keep to.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from edged.chat.grammar import MAX_DEFINITION_BYTES
from edged.chat.schema import Allowance, check
from edged.core import OutputFormat, OutputKind, Tool, ToolChoice, ToolMode
from edged.errors import InvalidRequest, Unsupported
from edged.server.wire import Strict, missing, wrong_value

MAX_TOOLS = 128
NAME = r"^[a-zA-Z0-9_-]{1,64}$"
MAX_DESCRIPTION = 16_384


# -- bodies ----------------------------------------------------------------------------------------------------------


class FunctionBody(Strict):
    name: str = Field(pattern=NAME)
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION)
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Strict):
    type: str
    function: FunctionBody | None = None
    custom: Any = None


class NamedFunction(Strict):
    name: str = Field(pattern=NAME)


class NamedTool(Strict):
    """``allowed_tools`` and ``custom`` are OpenAI's, and refused by type."""

    type: str
    function: NamedFunction | None = None
    allowed_tools: Any = None
    custom: Any = None


def _mode_or_tool(value: Any) -> Any:
    """A mode becomes the object it is short for, so that an error can name the field."""
    if isinstance(value, str):
        return {"type": value}
    if value is None or isinstance(value, dict):
        return value
    raise PydanticCustomError("invalid_type", "must be a string or an object")


ToolChoiceBody = Annotated[NamedTool | None, BeforeValidator(_mode_or_tool)]


class SchemaBody(Strict):
    """The wire's ``schema`` and pydantic's own method of that name are two things."""

    name: str = Field(pattern=NAME)
    description: str | None = Field(default=None, max_length=MAX_DESCRIPTION)
    definition: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: SchemaBody | None = None
    regex: str | None = Field(default=None, min_length=1)
    grammar: str | None = Field(default=None, min_length=1)


# -- tools -----------------------------------------------------------------------------------------------------------


def tools(bodies: Sequence[ToolBody], allowance: Allowance) -> tuple[Tool, ...]:
    """The declared functions. Raises: InvalidRequest, Unsupported."""
    declared = tuple(_tool(f"tools[{place}]", body, allowance) for place, body in enumerate(bodies))
    names = [tool.name for tool in declared]
    for place, name in enumerate(names):
        if name in names[:place]:
            raise wrong_value(f"tools[{place}].function.name", "must not be declared twice", name)
    return declared


def _tool(param: str, body: ToolBody, allowance: Allowance) -> Tool:
    if body.type != "function" or body.custom is not None:
        text = f'{param}.type: only tools of the type "function" are supported'
        raise Unsupported(text, param=f"{param}.type")
    if body.function is None:
        raise missing(f"{param}.function")
    schema, place = body.function.parameters, f"{param}.function.parameters"
    if schema is not None:
        check(schema, place, allowance)
        if schema.get("type", "object") != "object":
            raise wrong_value(f"{place}.type", "must be 'object': a function's arguments are one", schema["type"])
    definition = None if schema is None else json.dumps(schema, ensure_ascii=False)
    return Tool(body.function.name, body.function.description, definition, body.function.strict)


def tool_choice(body: NamedTool | None, declared: Sequence[Tool]) -> ToolChoice | None:
    """Raises: InvalidRequest, Unsupported."""
    if body is None:
        return None
    match body.type:
        case "none" | "auto" | "required":
            choice = ToolChoice(ToolMode(body.type))
        case "function":
            choice = ToolChoice(ToolMode.NAMED, _named(body, declared))
        case "allowed_tools" | "custom":
            raise Unsupported(f"tool_choice of the type {body.type} is not supported", param="tool_choice.type")
        case other:
            raise wrong_value("tool_choice", "must be 'none', 'auto', 'required' or a function by its name", other)
    if choice.mode is ToolMode.REQUIRED and not declared:
        raise InvalidRequest("tool_choice needs tools to choose from", param="tool_choice", code="invalid_value")
    return choice


def _named(body: NamedTool, declared: Sequence[Tool]) -> str:
    if body.function is None:
        raise missing("tool_choice.function")
    if body.function.name not in {tool.name for tool in declared}:
        raise wrong_value("tool_choice.function.name", "must be the name of one of the tools", body.function.name)
    return body.function.name


# -- response formats ------------------------------------------------------------------------------------------------


def output_format(body: ResponseFormat | None, allowance: Allowance) -> OutputFormat:
    """Raises: InvalidRequest."""
    if body is None:
        return OutputFormat()
    kind = OutputKind(body.type)
    for name in ("json_schema", "regex", "grammar"):
        if name != kind and getattr(body, name) is not None:
            param = f"response_format.{name}"
            raise InvalidRequest(f"{param} only belongs to the type {name}", param=param, code="unknown_parameter")
    match kind:
        case OutputKind.JSON_SCHEMA:
            return _schema_format(body.json_schema, allowance)
        case OutputKind.REGEX:
            return OutputFormat(kind, _definition("response_format.regex", body.regex))
        case OutputKind.GRAMMAR:
            return OutputFormat(kind, _definition("response_format.grammar", body.grammar))
        case _:
            return OutputFormat(kind)


def _schema_format(body: SchemaBody | None, allowance: Allowance) -> OutputFormat:
    if body is None:
        raise missing("response_format.json_schema")
    if body.definition is None:
        raise missing("response_format.json_schema.schema")
    check(body.definition, "response_format.json_schema.schema", allowance)
    definition = json.dumps(body.definition, ensure_ascii=False)
    return OutputFormat(OutputKind.JSON_SCHEMA, definition, body.name, body.description, body.strict)


def _definition(param: str, text: str | None) -> str:
    if text is None:
        raise missing(param)
    size = len(text.encode("utf-8"))
    if size > MAX_DEFINITION_BYTES:
        raise wrong_value(param, f"must have at most {MAX_DEFINITION_BYTES} bytes, not {size}", None)
    return text
