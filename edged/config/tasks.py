"""The task files of ``[tasks]``: what one kind of question is, and how often its local answer may be wrong.

A task file says all that its requests have in common, so that what was measured of some of them holds for the next.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr, ValidationError, field_validator, model_validator

from edged.config.file import Config, validation_problems
from edged.config.section import Section, refuse_duplicates
from edged.config.server import TasksConfig
from edged.core.questions import Example, Question, QuestionKind
from edged.errors import ConfigError

MAX_TASKS = 100
MAX_TASK_BYTES = 1_048_576
MAX_SCHEMA_BYTES = 131_072
MAX_OPTIONS = 255
MAX_EXAMPLES = 256
MAX_TEXT_CHARS = 20_000

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_WORD = r"^[^\s:][^\n\r:]{0,48}[^\s:]$|^[^\s:]$"
_ANNOTATIONS = frozenset({"$schema", "$id", "$comment", "title", "description", "default", "examples"})


class TaskOption(Section):
    """``[[option]]``: an answer, and what it means where the name does not say it."""

    name: str = Field(min_length=1, max_length=200)
    description: str | None = Field(default=None, max_length=MAX_TEXT_CHARS)

    @field_validator("name")
    @classmethod
    def _is_one_clean_line(cls, value: str) -> str:
        if value != value.strip() or "\n" in value or "\r" in value:
            raise ValueError("must be one line without blanks around it")
        return value


class TaskExample(Section):
    """``[[example]]``: an input with its answer, shown to the model before each question."""

    input: str = Field(min_length=1, max_length=MAX_TEXT_CHARS)
    answer: str = Field(min_length=1, max_length=MAX_TEXT_CHARS)


class TaskTarget(Section):
    """``[target]``: the error among locally served answers that is kept with ``confidence``, or the cloud's share."""

    max_error: float | None = Field(default=None, gt=0, lt=1)
    cloud_share: float | None = Field(default=None, ge=0, le=1)
    confidence: float = Field(default=0.9, ge=0.5, lt=1)

    @model_validator(mode="after")
    def _is_one_target(self) -> Self:
        if (self.max_error is None) == (self.cloud_share is None):
            raise ValueError("needs exactly one of max_error and cloud_share")
        return self

    @property
    def delta(self) -> float:
        """The probability that the target is not kept all the same."""
        return round(1.0 - self.confidence, 9)


class TaskLearning(Section):
    """``[learn]``: whether the cloud's answers teach the box. ``audit_share`` of all requests is asked of the cloud."""

    enabled: bool = False
    audit_share: float = Field(default=0.05, gt=0, le=1)
    max_labels: int = Field(default=5_000, ge=100, le=50_000)


class TaskFile(Section):
    """One task. Options, a schema, or neither: free text."""

    name: str = Field(pattern=_NAME)
    route: str = Field(default="auto", max_length=200)
    instructions: str = Field(default="", max_length=MAX_TEXT_CHARS)
    input_word: str = Field(default="Input", pattern=_WORD)
    answer_word: str = Field(default="Answer", pattern=_WORD)
    options: tuple[TaskOption, ...] = Field(default=(), alias="option", max_length=MAX_OPTIONS)
    schema_file: str | None = Field(default=None, alias="schema", min_length=1, max_length=1_000)
    match_schema: bool = True
    dataset: str | None = Field(default=None, min_length=1, max_length=1_000)
    examples: tuple[TaskExample, ...] = Field(default=(), alias="example", max_length=MAX_EXAMPLES)
    target: TaskTarget
    learn: TaskLearning = TaskLearning()

    _schema: dict[str, Any] | None = PrivateAttr(default=None)
    _directory: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _is_one_kind_of_answer(self) -> Self:
        if self.options and self.schema_file is not None:
            raise ValueError("has options and a schema: needs one of them, or neither")
        if len(self.options) == 1:
            raise ValueError(f"option: needs 2 to {MAX_OPTIONS} options, there is 1")
        refuse_duplicates([option.name for option in self.options], "option")
        names = {option.name for option in self.options}
        for number, example in enumerate(self.examples):
            if names and example.answer not in names:
                raise ValueError(f'example[{number}].answer: "{example.answer[:100]}" is none of the options')
        if self.learn.enabled and not self.options:
            raise ValueError("learn.enabled: only a task with options learns by itself; use `edged calibrate`")
        if self.learn.enabled and self.target.max_error is None:
            raise ValueError("learn.enabled: needs target.max_error; a share promises nothing that audits could break")
        return self

    def lying_in(self, directory: Path) -> Self:
        """The same with its schema read from ``directory``, where relative paths start. Raises: ConfigError."""
        task = self.model_copy()
        task._directory = directory  # noqa: SLF001 - a copy of itself
        task._schema = None if self.schema_file is None else _schema(directory, self.schema_file)  # noqa: SLF001
        return task

    @property
    def is_closed(self) -> bool:
        """Whether one of a few options answers it."""
        return bool(self.options)

    @property
    def option_names(self) -> tuple[str, ...]:
        return tuple(option.name for option in self.options)

    @property
    def question(self) -> Question:
        """The question of a closed set, as it is put to the model."""
        assert self.options
        notes = tuple(option.description for option in self.options)
        return Question(
            name=self.name,
            kind=QuestionKind.CHOICE,
            options=self.option_names,
            instructions=self.instructions,
            notes=notes if any(notes) else (),
            examples=tuple(Example(example.input, example.answer) for example in self.examples),
            input_word=self.input_word,
            answer_word=self.answer_word,
        )

    @property
    def answer_schema(self) -> str | None:
        """The schema file's content in one spelling; None where there is none."""
        return None if self._schema is None else _canonical(self._schema)

    @property
    def dataset_path(self) -> Path | None:
        """Relative paths start at the directory of the task files."""
        return None if self.dataset is None else self._directory / self.dataset

    @property
    def definition_sha256(self) -> str:
        """Of everything that changes what the model sees: what was measured holds for this definition alone."""
        said = {
            "instructions": self.instructions,
            "words": [self.input_word, self.answer_word],
            "options": [[option.name, option.description] for option in self.options],
            "examples": [[example.input, example.answer] for example in self.examples],
            "schema": self._schema,
        }
        return hashlib.sha256(_canonical(said).encode()).hexdigest()

    @property
    def key(self) -> str:
        """What artefacts are filed under: the name, and the definition they were made for."""
        return f"{self.name}@{self.definition_sha256[:16]}"

    @property
    def schema_sha256s(self) -> tuple[str, ...]:
        """Hashes of the schemas whose requests are this task's without naming it."""
        if not self.match_schema:
            return ()
        if self.options:
            return (schema_sha256({"enum": list(self.option_names)}),)
        return () if self._schema is None else (schema_sha256(self._schema),)


def schema_sha256(schema: Mapping[str, Any]) -> str:
    """A schema's hash in which titles, the order of members and, of an enum of texts, order and type do not count."""
    said = {key: value for key, value in schema.items() if key not in _ANNOTATIONS}
    values = said.get("enum")
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        rest = {key: value for key, value in said.items() if key not in {"enum", "type"}}
        if said.get("type", "string") == "string":
            said = {"enum": sorted(values), **rest}
    return hashlib.sha256(_canonical(said).encode()).hexdigest()


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


# -- files -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskProblem:
    """One thing wrong with a task file."""

    path: Path
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.key}: {self.message}" if self.key else f"{self.path}: {self.message}"


def tasks_directory(config: Config, config_path: Path) -> Path:
    """Where the task files lie: a relative directory starts at the config file's."""
    return config_path.parent / config.tasks.directory


def load_tasks(directory: Path, config: Config) -> tuple[TaskFile, ...]:
    """Every ``*.toml`` of a directory, by name. Raises: ConfigError with every problem, each naming file and key."""
    tasks, problems = read_tasks(directory, config)
    if problems:
        texts = tuple(map(str, problems))
        raise ConfigError("; ".join(texts), texts)
    return tasks


def read_tasks(directory: Path, config: Config) -> tuple[tuple[TaskFile, ...], tuple[TaskProblem, ...]]:
    """The task files that are right, and what is wrong with the others.

    The default directory need not exist; one that the config names must.
    """
    if not directory.is_dir():
        if config.tasks == TasksConfig():
            return (), ()
        return (), (TaskProblem(directory, "", "[tasks] directory does not exist"),)
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == ".toml" and not path.name.startswith("."))
    except OSError as exc:
        return (), (TaskProblem(directory, "", f"cannot be read: {exc.strerror}"),)
    if len(paths) > MAX_TASKS:
        return (), (TaskProblem(directory, "", f"{len(paths)} task files are over the limit of {MAX_TASKS}"),)
    tasks: dict[str, TaskFile] = {}
    problems: list[TaskProblem] = []
    places: dict[str, Path] = {}
    for path in paths:
        task, found = _read(path, config)
        problems += found
        if task is None:
            continue
        if task.name in tasks:
            problems.append(TaskProblem(path, "name", f'"{task.name}" is the name of {places[task.name].name} as well'))
            continue
        tasks[task.name], places[task.name] = task, path
    return tuple(tasks.values()), tuple(problems)


def _read(path: Path, config: Config) -> tuple[TaskFile | None, list[TaskProblem]]:
    try:
        task = TaskFile.model_validate(tomllib.loads(_text(path, MAX_TASK_BYTES)))
    except tomllib.TOMLDecodeError as exc:
        return None, [TaskProblem(path, "", f"not valid TOML: {exc}")]
    except RecursionError:
        return None, [TaskProblem(path, "", "not valid TOML: nested too deeply")]
    except ValidationError as exc:
        return None, [TaskProblem(path, key, message) for key, message in validation_problems(exc)]
    except ConfigError as exc:
        return None, [TaskProblem(path, "", exc.message)]
    try:
        task = task.lying_in(path.parent)
    except ConfigError as exc:
        return None, [TaskProblem(path, "schema", exc.message)]
    found = [TaskProblem(path, key, message) for key, message in _misfits(task, config)]
    return (None if found else task), found


def _text(path: Path, limit_bytes: int) -> str:
    """Raises: ConfigError."""
    try:
        if not path.is_file():
            raise ConfigError(f"{path.name} is not a file")
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as exc:
        raise ConfigError(f"{path.name} cannot be read: {exc.strerror}") from exc
    if len(data) > limit_bytes:
        raise ConfigError(f"{path.name} is over the limit of {limit_bytes} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path.name} is not UTF-8 text") from exc


def _schema(directory: Path, name: str) -> dict[str, Any]:
    """A schema file lies with its task. Raises: ConfigError."""
    path = (directory / name).resolve()
    if not path.is_relative_to(directory.resolve()):
        raise ConfigError(f'"{name[:200]}" is outside the directory of the task files')
    try:
        schema = json.loads(_text(path, MAX_SCHEMA_BYTES))
    except (ValueError, RecursionError) as exc:
        raise ConfigError(f"{path.name} is not valid JSON") from exc
    if not isinstance(schema, dict):
        raise ConfigError(f"{path.name} must hold a JSON object")
    return schema


def _misfits(task: TaskFile, config: Config) -> Iterator[tuple[str, str]]:
    """What does not fit the rest of the config."""
    route = next((route for route in config.routes if route.name == task.route), None)
    if route is None:
        known = ", ".join(route.name for route in config.routes) or "there is none"
        yield "route", f'"{task.route[:100]}" does not exist (known: {known})'
        return
    local = route.serving(task.name).local
    if not local:
        yield "route", f'"{route.name}" has no local model: there is nothing to calibrate'
        return
    purpose = next((model.purpose for model in config.models if model.name == local), "chat")
    if purpose != "chat":
        yield "route", f'"{route.name}": its model "{local}" has purpose = "{purpose}", a task needs one for chat'


def ambiguous(tasks: Sequence[TaskFile]) -> dict[str, tuple[str, ...]]:
    """Tasks that others on their route cannot be told from by the schema: by name, with the names of the others."""
    alike: dict[tuple[str, str], list[str]] = {}
    for task in tasks:
        for sha256 in task.schema_sha256s:
            alike.setdefault((task.route, sha256), []).append(task.name)
    shared = [names for names in alike.values() if len(names) > 1]
    return {name: tuple(other for other in names if other != name) for names in shared for name in names}
