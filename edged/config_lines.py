"""Everything that is wrong with a config file, each problem with its line.

``config.parse`` stops a start at the first layer of trouble; an operator wants the whole list, and where to type.
"""

import contextlib
import copy
import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from edged.config import Config, ServerConfig
from edged.toml_index import Location, TomlIndex

# Values that satisfy the keys which have no default, so that what else is wrong can still be seen.
_STAND_INS: dict[str, object] = {
    "name": "stand-in",
    "base_url": "https://stand-in.invalid",
    "key": "env:STAND_IN",
    "input_usd_per_mtok": 0,
    "output_usd_per_mtok": 0,
    "model": [{"name": "stand-in", "input_usd_per_mtok": 0, "output_usd_per_mtok": 0}],
}
_PATTERNS = {
    "base_url": 'must be "http://HOST..." or "https://HOST...", without credentials, query or fragment',
    "name": 'must start with a letter or digit and hold only letters, digits, ".", "_", ":" and "-" (at most 100)',
}
_PATTERNS["catalogue"] = _PATTERNS["name"]
# Where pydantic speaks of Python's types.
_TYPES = {
    "tuple_type": "must be a list",
    "model_type": "must be a table",
    "string_type": "must be a string",
    "bool_parsing": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "missing": "is required",
}


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong at ``line`` (1-based; 0 = the file as a whole) and ``key`` ("route[0].thresholds.ttft_s")."""

    line: int
    key: str
    message: str


def find_problems(text: str) -> tuple[Problem, ...]:
    """All problems of a config file's text, in line order; empty exactly when ``config.parse`` accepts it."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        return (_syntax_problem(text, str(exc)),)
    index = TomlIndex(text)
    found = dict(_validation_problems(document))
    names = list(_name_problems(document))
    if names:
        found.pop((), None)
    located = [*found.items(), *names]
    return tuple(sorted({Problem(index.line_of(at), key_text(at), message) for at, message in located}))


def key_text(location: Location) -> str:
    """A location as a reader writes it: ``route[0].thresholds.ttft_s``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _syntax_problem(text: str, message: str) -> Problem:
    match = re.search(r"\(at line (\d+), column (\d+)\)", message)
    line = int(match[1]) if match else text.count("\n") + 1
    what = re.sub(r" \(at [^)]*\)$", "", message)
    column = f" (column {match[2]})" if match else " (at the end of the file)"
    return Problem(line, "", f"not valid TOML: {what}{column}")


# -- what the sections say -------------------------------------------------------------------------------------------


def _validation_problems(document: dict[str, Any]) -> dict[Location, str]:
    """Problems by location. A section's own rules show once its keys are right, so a repaired copy is judged again."""
    first = _judge(document)
    if not first:
        return {}
    repaired = copy.deepcopy(document)
    for location, faults in first.items():
        _repair(repaired, location, faults[0].kind)
    second = {at: faults for at, faults in _judge(repaired).items() if at and at not in first}
    texts = {at: dict.fromkeys(_message(at, fault) for fault in faults) for at, faults in (second | first).items()}
    return {at: ", or ".join(messages) for at, messages in texts.items()}


@dataclass(frozen=True, slots=True)
class _Fault:
    """One pydantic error: its ``type`` and its words."""

    kind: str
    message: str


def _judge(document: dict[str, Any]) -> dict[Location, list[_Fault]]:
    found: dict[Location, list[_Fault]] = {}
    try:
        Config.model_validate(document)
    except ValidationError as exc:
        for error in exc.errors(include_url=False, include_input=False):
            at = _in_document(error["loc"], document, error["type"])
            found.setdefault(at, []).append(_Fault(error["type"], error["msg"]))
    return {at: faults for at, faults in found.items() if not _is_echo(at, faults, found)}


def _is_echo(at: Location, faults: list[_Fault], found: Iterable[Location]) -> bool:
    """Whether a list is only called too short because one of its entries is wrong."""
    return faults[0].kind == "too_short" and any(other[: len(at)] == at for other in found if other != at)


def _in_document(loc: Location, document: Any, kind: str) -> Location:
    """Where an error is in the file: pydantic's location less the names of union members it appends."""
    at: Location = ()
    for part in loc:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return (*at, part) if kind == "missing" else at
        at = (*at, part)
    return at


def _message(at: Location, fault: _Fault) -> str:
    key = next((part for part in reversed(at) if isinstance(part, str)), "")
    if fault.kind == "extra_forbidden":
        return f"unknown key{_suggestion(at)}"
    if fault.kind in _TYPES:
        return _TYPES[fault.kind]
    if fault.kind == "string_pattern_mismatch" and key in _PATTERNS:
        return _PATTERNS[key]
    message = fault.message.removeprefix("Value error, ")
    return re.sub(r"^(Input|String|List|Tuple) should ", "must ", message)


def _repair(document: Any, location: Location, kind: str) -> None:
    """Put a stand-in for what is wrong at a location, or take it out; a table that breaks a rule of its own stays."""
    while location and isinstance(location[-1], int) and kind != "value_error":
        location = location[:-1]
    if not location:
        return
    for part in location[:-1]:
        document = document[part]
    key = location[-1]
    if kind == "extra_forbidden" or key not in _STAND_INS or len(location) == 1:
        if kind != "value_error" or not isinstance(document[key], dict):
            document.pop(key, None)
        return
    document[key] = copy.deepcopy(_STAND_INS[key])


# -- unknown keys ----------------------------------------------------------------------------------------------------


def _suggestion(at: Location) -> str:
    """What the writer may have meant by an unknown key."""
    key = str(at[-1])
    here = _section_at(at[:-1])
    close = difflib.get_close_matches(key, _keys(here), n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    home = next((title for title, section in _sections(Config) if title and key in _keys(section)), None)
    return f"; it belongs in {home}" if home else ""


def _section_at(path: Location) -> type[BaseModel]:
    section: type[BaseModel] = Config
    for part in path:
        if isinstance(part, str):
            children = {name: child for names, child, _ in _children(section) for name in names}
            section = children.get(part, section)
    return section


def _sections(section: type[BaseModel], path: str = "", title: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every kind of section with its title as it is written: ``[server]``, ``[[upstream.model]]``."""
    yield title, section
    for names, child, is_array in _children(section):
        inner = f"{path}.{names[0]}".removeprefix(".")
        yield from _sections(child, inner, f"[[{inner}]]" if is_array else f"[{inner}]")


def _children(section: type[BaseModel]) -> Iterator[tuple[tuple[str, str], type[BaseModel], bool]]:
    """What a section holds that are sections: the names each goes by, its class, whether there may be several."""
    for name, field in section.model_fields.items():
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield (field.alias or name, name), kind, kind is not field.annotation


def _keys(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


# -- names across sections -------------------------------------------------------------------------------------------


def _name_problems(document: dict[str, Any]) -> Iterator[tuple[Location, str]]:
    """Duplicate names and references to nothing, read from the file as written."""
    models = list(_tables(document, "model"))
    upstreams = list(_tables(document, "upstream"))
    routes = list(_tables(document, "route"))
    yield from _duplicates(upstreams)
    yield from _duplicates([*models, *routes])
    local = [str(table.get("name")) for _, table in models]
    cloud = [
        f"{upstream.get('name')}/{model.get('name')}"
        for _, upstream in upstreams
        for _, model in _tables(upstream, "model")
    ]
    for at, route in routes:
        for name in _strings([route.get("local")]):
            if name and name not in local:
                yield (*at, "local"), f'"{name}" is not a [[model]]{_known(name, local)}'
        for name in _strings(route.get("cloud")):
            if name not in cloud:
                yield (*at, "cloud"), f'"{name}" is not an UPSTREAM/MODEL{_known(name, cloud)}'
        purpose = next((table.get("purpose") for _, table in models if table.get("name") == route.get("local")), None)
        if purpose in ("embed", "rerank") and route.get("cloud"):
            yield (*at, "cloud"), f'must be empty: "{route["local"]}" has purpose = "{purpose}"'
    yield from _key_problems(document, [*(str(table.get("name")) for _, table in routes), *local, *cloud])
    if not models and not upstreams and not document.keys() & {"model", "models", "upstream", "upstreams"}:
        yield (), "needs at least one [[model]] or [[upstream]]"


def _key_problems(document: dict[str, Any], known: list[str]) -> Iterator[tuple[Location, str]]:
    keys = list(_tables(document, "api_key"))
    yield from _duplicates(keys)
    for at, key in keys:
        for name in _strings(key.get("routes")):
            if name not in known:
                yield (*at, "routes"), f'"{name}" does not exist{_known(name, known)}'
    server = document.get("server")
    if keys or not isinstance(server, dict) or server.get("api_keys") or not isinstance(server.get("listen"), str):
        return
    with contextlib.suppress(ValidationError):
        if not ServerConfig(listen=server["listen"]).is_loopback:
            yield ("server", "listen"), "an address beyond loopback needs an [[api_key]] or an entry in api_keys"


def _tables(document: dict[str, Any], key: str) -> Iterator[tuple[Location, dict[str, Any]]]:
    """The tables of an array under either of its accepted names; anything else there is reported elsewhere."""
    for name in (key, f"{key}s"):
        entries = document.get(name)
        for number, table in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(table, dict):
                yield (name, number), table


def _duplicates(tables: list[tuple[Location, dict[str, Any]]]) -> Iterator[tuple[Location, str]]:
    seen: set[str] = set()
    for at, table in tables:
        name = table.get("name")
        if not isinstance(name, str):
            continue
        if name in seen:
            yield (*at, "name"), f'the name "{name}" is used twice'
        seen.add(name)


def _strings(value: object) -> Iterator[str]:
    for item in value if isinstance(value, list) else ():
        if isinstance(item, str):
            yield item


def _known(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f'; did you mean "{close[0]}"?'
    return f" (known: {', '.join(known)})" if known else " (there is none)"
