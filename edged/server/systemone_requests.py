"""What the body of ``POST /v1/systemone`` may hold, and the request it comes to.

Fields and types are those of the TypeSafe API as llama-server has it; ``task``, ``examples`` and ``edged`` are ours.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from edged.core import Completion
from edged.core.questions import Example, Question, QuestionKind, QuestionsRequest
from edged.errors import InvalidRequest, Unsupported
from edged.server.openai_bodies import EdgedOptions
from edged.server.openai_requests import limits
from edged.server.wire import Strict, missing, shown_name, validate, wrong_type, wrong_value

MAX_QUESTIONS = 64
MAX_NAME_CHARS = 200
MIN_OPTIONS, MAX_OPTIONS = 2, 128
MIN_LEVELS, MAX_LEVELS = 2, 10
MAX_ALL_OPTIONS = 1_024
MAX_OPTION_CHARS = 200
MAX_NOTE_CHARS = 2_000
MAX_INSTRUCTIONS_CHARS = 20_000
MAX_EXAMPLES = 256
MAX_EXAMPLE_CHARS = 20_000

_IMAGE_PARTS = frozenset({"image_url", "input_image", "image", "input_audio", "input_video", "video_url", "file"})
_YES, _NO = "yes", "no"


class ExampleBody(Strict):
    """A state and the option that answers the question about it: of a score its index, of a noul true or false."""

    state: Any
    answer: str | bool | int


class QuestionBody(Strict):
    """``criteria`` is judged by its type's own function, which can say more than a union of types."""

    type: Literal["choice", "score", "noul"]
    instructions: Any = None
    criteria: Any = None
    examples: Annotated[list[ExampleBody] | None, Field(max_length=MAX_EXAMPLES)] = None


class SystemOneBody(Strict):
    model: str = Field(default="auto", min_length=1, max_length=200)
    state: Any
    questions: Annotated[dict[str, QuestionBody] | None, Field(min_length=1, max_length=MAX_QUESTIONS)] = None
    task: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")
    stream: bool | None = None
    files: Any = None
    images: Any = None
    videos: Any = None
    edged: EdgedOptions | None = None
    user: str | None = None


def systemone_request(document: dict[str, Any], *, header: str | None = None, **known: Any) -> QuestionsRequest:
    """Turn a body and an ``x-edged`` header into a request; ``known``: its id, receipt and tenant.

    Raises: InvalidRequest, Unsupported.
    """
    body = validate(SystemOneBody, document)
    _refuse_media(body)
    if body.stream:
        raise Unsupported("stream is not supported here: the answers come at once", param="stream")
    state = _state(body.state)
    asked = limits(_with_task(body), header)
    if body.questions is None and asked.task is None:
        raise missing("questions")
    has_task = asked.task is not None
    given = (body.questions or {}).items()
    questions = tuple(_question(name, question, has_task=has_task) for name, question in given)
    count = sum(len(question.options) for question in questions)
    if count > MAX_ALL_OPTIONS:
        raise wrong_value("questions", f"may have at most {MAX_ALL_OPTIONS} options and levels in all", count)
    return QuestionsRequest(
        model=body.model,
        api="systemone",
        input=Completion(state),
        state=state,
        questions=questions,
        limits=asked,
        **known,
    )


def _with_task(body: SystemOneBody) -> EdgedOptions | None:
    """``task`` is the short way of saying ``edged.task``."""
    if body.task is None:
        return body.edged
    given = body.edged or EdgedOptions()
    if given.task not in (None, body.task):
        raise wrong_value("task", f"must equal edged.task ({given.task}) where both are given", body.task)
    return given.model_copy(update={"task": body.task})


# -- the state -------------------------------------------------------------------------------------------------------


def _state(value: Any) -> str:
    if value is None:
        raise wrong_type("state", "must be a string, an object or an array", value)
    _refuse_parts(value)
    text = _text("state", value)
    if not text:
        raise wrong_value("state", "must not be empty", text)
    return text


def _refuse_media(body: SystemOneBody) -> None:
    for name in ("files", "images", "videos"):
        if getattr(body, name):
            raise _no_media(name)


def _refuse_parts(state: Any) -> None:
    """A state of chat messages may show an image in a part of its content."""
    messages = state.get("messages") if isinstance(state, dict) else state
    if not isinstance(messages, list):
        return
    inside = "state.messages" if isinstance(state, dict) else "state"
    for i, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type") in _IMAGE_PARTS:
                raise _no_media(f"{inside}[{i}].content[{j}]")


def _no_media(param: str) -> Unsupported:
    error = Unsupported(f"{param}: questions about images, audio or other files are not supported", param=param)
    error.status = 501  # as llama-server, of a model that does not see
    return error


# -- questions -------------------------------------------------------------------------------------------------------


def _question(name: str, body: QuestionBody, *, has_task: bool) -> Question:
    """Examples and a task can say what is asked in place of instructions."""
    param = f"questions.{shown_name(name)}"
    if not 0 < len(name) <= MAX_NAME_CHARS:
        raise wrong_value("questions", f"must have ids of 1 to {MAX_NAME_CHARS} characters", len(name))
    options, notes = _CRITERIA[body.type](f"{param}.criteria", body.criteria)
    kind = QuestionKind(body.type)
    instructions = _bounded(f"{param}.instructions", body.instructions or "", MAX_INSTRUCTIONS_CHARS)
    if not instructions and not body.examples and not has_task:
        raise missing(f"{param}.instructions")
    examples = tuple(
        _example(f"{param}.examples[{i}]", example, kind, options) for i, example in enumerate(body.examples or ())
    )
    return Question(name=name, kind=kind, options=options, instructions=instructions, notes=notes, examples=examples)


def _choice(param: str, criteria: Any) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    if not isinstance(criteria, dict):
        raise wrong_type(param, "must be an object that maps each option to its description or null", criteria)
    _check_count(param, len(criteria), MIN_OPTIONS, MAX_OPTIONS, "options")
    for option in criteria:
        _check_option(f"{param}.{shown_name(option)}", option)
    notes = tuple(_note(f"{param}.{shown_name(option)}", note) for option, note in criteria.items())
    return tuple(criteria), notes if any(notes) else ()


def _score(param: str, criteria: Any) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    if not isinstance(criteria, list):
        raise wrong_type(param, "must be an array of level descriptions, lowest first", criteria)
    _check_count(param, len(criteria), MIN_LEVELS, MAX_LEVELS, "levels")
    levels = []
    for i, level in enumerate(criteria):
        text = _text(f"{param}[{i}]", level)
        _check_option(f"{param}[{i}]", text)
        levels.append(text)
    return tuple(levels), ()


def _noul(param: str, criteria: Any) -> tuple[tuple[str, ...], tuple[str | None, ...]]:
    if criteria is None:
        return (_YES, _NO), ()
    if not isinstance(criteria, dict):
        raise wrong_type(param, "must be an object with descriptions of true and false", criteria)
    for name in criteria.keys() - {"true", "false"}:
        full = f"{param}.{shown_name(name)}"
        raise InvalidRequest(f"unknown parameter: {full}", param=full, code="unknown_parameter")
    notes = tuple(_note(f"{param}.{name}", criteria.get(name)) for name in ("true", "false"))
    return (_YES, _NO), notes if any(notes) else ()


_CRITERIA = {"choice": _choice, "score": _score, "noul": _noul}


def _example(param: str, body: ExampleBody, kind: QuestionKind, options: tuple[str, ...]) -> Example:
    state = _bounded(f"{param}.state", body.state, MAX_EXAMPLE_CHARS)
    answer: object = body.answer
    if kind is QuestionKind.NOUL and isinstance(answer, bool):
        return Example(state, _YES if answer else _NO)
    if kind is QuestionKind.SCORE and type(answer) is int and 0 <= answer < len(options):
        return Example(state, options[answer])
    if kind is QuestionKind.CHOICE and answer in options:
        return Example(state, str(answer))
    must = {
        QuestionKind.NOUL: "must be true or false",
        QuestionKind.SCORE: f"must be the index of a level, from 0 to {len(options) - 1}",
        QuestionKind.CHOICE: "must be one of the options",
    }
    raise wrong_value(f"{param}.answer", must[kind], answer)


# -- texts -----------------------------------------------------------------------------------------------------------


def _text(param: str, value: Any) -> str:
    """A string as it is, an object or an array as JSON text."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    raise wrong_type(param, "must be a string, an object or an array", value)


def _bounded(param: str, value: Any, most_chars: int) -> str:
    text = _text(param, value)
    if len(text) > most_chars:
        raise wrong_value(param, f"must have at most {most_chars} characters", len(text))
    return text


def _note(param: str, value: Any) -> str | None:
    return None if value is None else _bounded(param, value, MAX_NOTE_CHARS) or None


def _check_count(param: str, count: int, least: int, most: int, what: str) -> None:
    if not least <= count <= most:
        raise wrong_value(param, f"must have {least} to {most} {what}", count)


def _check_option(param: str, option: str) -> None:
    if not option.strip() or len(option) > MAX_OPTION_CHARS:
        raise wrong_value(param, f"must have 1 to {MAX_OPTION_CHARS} characters, not all blank", len(option))
