"""Answer forms that leave a few texts to choose from: an enum of strings, a boolean, or an object with one of these."""

import itertools
import json
from dataclasses import dataclass
from typing import Any

from edged.chat.asked import asked_schema
from edged.core import OutputFormat

MAX_ANSWERS = 128
MAX_ANSWER_CHARS = 200
_NOTES = frozenset({"title", "description", "default", "examples", "$schema", "$id", "$comment"})
"""Keywords that restrict nothing."""


@dataclass(frozen=True, slots=True)
class Closed:
    """``labels`` are the values an answer may have; each answer is JSON: opening, one of ``middles``, closing."""

    labels: tuple[str, ...]
    opening: str
    middles: tuple[str, ...]
    closing: str

    @property
    def endings(self) -> tuple[str, ...]:
        """What tells the answers apart behind ``opening``: no more than that, since all of it is computed."""
        ordered = sorted(self.middles)
        nested = any(longer.startswith(shorter) for shorter, longer in itertools.pairwise(ordered))
        return tuple(middle + self.closing for middle in self.middles) if nested else self.middles

    def answer(self, place: int) -> str:
        """The whole answer that holds the label at this place."""
        return (self.opening + self.middles[place] + self.closing).strip()

    @property
    def most_bytes(self) -> int:
        """Of the longest answer."""
        return max(len(self.answer(place).encode("utf-8", "surrogatepass")) for place in range(len(self.labels)))


def closed(output: OutputFormat) -> Closed | None:
    """The answers that a format leaves to choose from; None where it is of another kind, or there are too many."""
    schema = asked_schema(output)
    if schema is None:
        return None
    name = _only_property(schema)
    if name is None:
        return _of_value(schema, before="", behind="")
    return _of_value(schema["properties"][name], before=f"{{{_json(name)}:", behind="}")


def _only_property(schema: dict[str, Any]) -> str | None:
    """The name of the one property that an object must have and may have; None where it is not such an object."""
    known = _NOTES | {"type", "properties", "required", "additionalProperties"}
    properties = schema.get("properties")
    if schema.get("type") != "object" or not isinstance(properties, dict) or len(properties) != 1:
        return None
    (name,) = properties
    is_open = schema.get("additionalProperties", False) not in (False, True)
    return None if schema.keys() - known or schema.get("required") != [name] or is_open else str(name)


def _of_value(schema: Any, *, before: str, behind: str) -> Closed | None:
    """``before`` and ``behind`` are the JSON around the value."""
    if not isinstance(schema, dict):
        return None
    kind, rest = schema.get("type"), schema.keys() - _NOTES - {"type"}
    if kind == "boolean" and not rest:
        space = " " if before else ""
        return Closed(("true", "false"), before, (f"{space}true", f"{space}false"), behind)
    values = schema.get("enum")
    if kind not in ("string", None) or rest != {"enum"} or values is None or not _are_labels(values):
        return None
    opening = f'{before} "' if before else '"'
    return Closed(tuple(values), opening, tuple(_json(value)[1:-1] for value in values), f'"{behind}')


def _are_labels(values: Any) -> bool:
    if not isinstance(values, list) or not 2 <= len(values) <= MAX_ANSWERS:  # noqa: PLR2004 - one is no choice
        return False
    return all(isinstance(v, str) and 0 < len(v) <= MAX_ANSWER_CHARS for v in values) and len(set(values)) == len(
        values
    )


def _json(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
