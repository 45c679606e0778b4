"""Forms of answers compiled for one model's vocabulary.

An answer that was asked for in a form never runs without it: what cannot be compiled is refused before it is queued.
"""

import secrets
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark
from llguidance.llamacpp import lltokenizer_from_vocab

from edged.chat import grammar
from edged.chat.toolcalls import ToolCallParser
from edged.chat.toolformats import ToolFormat
from edged.core import OutputKind, Tool, ToolMode
from edged.engine.constraint import Matched, Opened
from edged.engine.form import Blueprint, Constraint
from edged.engine.limits import TimeLimitExceeded, time_limit
from edged.engine.protocol import Form
from edged.errors import EdgedError, EngineError, InvalidRequest, Unsupported

_KEPT_BLUEPRINTS = 16
_CONVERSION_LIMIT_S = 1.0
_MOST_ERROR_CHARACTERS = 200
_LIMITS = LLParserLimits(max_grammar_size=200_000, step_max_items=10_000, step_lexer_fuel=100_000, verbose_errors=False)
_COMPILE_LIMIT_S = 2.0
_COMPILING_AT_ONCE = 2
"""Compiling cannot be interrupted: what takes too long is refused and ends behind the scenes."""
_MASKS_AT_ONCE = 4
_KEPT_REFUSALS = 64

_BEYOND_GRAMMARS = ("unimplemented", "unknown format", "not supported", "retriev", "too complex", "limit")
_ID_CHARACTERS = 24


class Vocabulary(Protocol):
    """What is needed of a vocabulary."""

    size_tokens: int

    @property
    def handle(self) -> object: ...

    def end_tokens(self) -> list[int]: ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...

    def piece(self, token: int) -> bytes: ...


class Compiler:
    """Compiles forms for one model. Belongs to the control thread; what it makes goes to the decode thread."""

    def __init__(self, vocabulary: Vocabulary, form: ToolFormat) -> None:
        self._vocabulary = vocabulary
        self._tool_format = form
        self._lazy_tokenizer: LLTokenizer | None = None
        self._pool = ThreadPoolExecutor(_MASKS_AT_ONCE, thread_name_prefix="mask")
        self._compiling = ThreadPoolExecutor(_COMPILING_AT_ONCE, thread_name_prefix="compile")
        self._kept: OrderedDict[Form, Blueprint] = OrderedDict()
        self._too_costly: deque[Form] = deque(maxlen=_KEPT_REFUSALS)

    def compile(self, form: Form) -> Blueprint:
        """Raises: InvalidRequest where the form is wrong, Unsupported where it is beyond this engine."""
        if form in self._kept:
            self._kept.move_to_end(form)
            return self._kept[form]
        blueprint = self._kept[form] = self._blueprint(form)
        if len(self._kept) > _KEPT_BLUEPRINTS:
            self._kept.popitem(last=False)
        return blueprint

    @property
    def _tokenizer(self) -> LLTokenizer:
        """Made at the first use: it takes a fifth of a second at 49k tokens, and memory."""
        if self._lazy_tokenizer is None:
            ends = self._vocabulary.end_tokens()
            with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # it calls an older name
                self._lazy_tokenizer = lltokenizer_from_vocab(self._vocabulary.handle, eos_token=ends)
        return self._lazy_tokenizer

    # -- one form --

    def _blueprint(self, form: Form) -> Blueprint:
        if not form.tools:
            return Blueprint(self._whole(self._output_grammar(form), form), lambda: None, {})
        tools = tuple(Tool(row.name, row.description, row.parameters_json, row.strict) for row in form.tools)
        return Blueprint(self._tool_constraint(form, tools), self._parser(tools), self._markup())

    def _tool_constraint(self, form: Form, tools: tuple[Tool, ...]) -> Callable[[], Constraint]:
        most = grammar.MAX_CALLS if form.parallel and self._tool_format.is_parallel else 1
        kind = OutputKind(form.kind)
        if form.mode != ToolMode.AUTO:
            text = grammar.calls(self._tool_format, tools, most=most, mark=self._mark)
            return self._whole(text, form)
        if kind is OutputKind.TEXT:
            return self._opened(grammar.opened_calls(self._tool_format, tools, most=most, mark=self._mark), form)
        if kind in (OutputKind.REGEX, OutputKind.GRAMMAR):
            raise Unsupported(f"response_format of the type {kind} and tools exclude each other", param="tools")
        rule = grammar.json_rule(form.definition, strict=form.strict)
        text = grammar.calls(self._tool_format, tools, most=most, mark=self._mark, or_answer=rule)
        return self._whole(text, form)

    def _output_grammar(self, form: Form) -> str:
        match OutputKind(form.kind):
            case OutputKind.REGEX:
                return LLMatcher.grammar_from_regex(form.definition)
            case OutputKind.GRAMMAR:
                return LLMatcher.grammar_from_lark(_lark(form.definition))
            case _:
                return LLMatcher.grammar_from_lark(grammar.answer(form.definition, strict=form.strict))

    def _whole(self, text: str, form: Form) -> Callable[[], Constraint]:
        """An answer constrained from its first token."""
        prototype = self._matcher(text, form)
        return lambda: self._matched(prototype)

    def _opened(self, text: str, form: Form) -> Callable[[], Constraint]:
        prototype = self._matcher(text, form)
        shown = self._markup()

        def begin(rest: bytes) -> Matched | None:
            """The grammar behind what the model has written of the call already; None where that is no call."""
            matcher = prototype.deep_copy()
            tokens = self._tokenizer.tokenize_bytes(rest)
            fits = matcher.try_consume_tokens(tokens) == len(tokens)
            return Matched(matcher, self._vocabulary.size_tokens, self._pool) if fits else None

        def piece(token: int) -> bytes:
            return shown.get(token) or self._vocabulary.piece(token)

        return lambda: Opened(
            self._tool_format, begin=begin, piece=piece, again=form.parallel and self._tool_format.is_parallel
        )

    def _matched(self, prototype: LLMatcher) -> Matched:
        return Matched(prototype.deep_copy(), self._vocabulary.size_tokens, self._pool)

    def _matcher(self, text: str, form: Form) -> LLMatcher:
        if form in self._too_costly:
            raise _refusal(_TOO_COSTLY, form)
        job = self._compiling.submit(_compiled, self._tokenizer, text)
        try:
            matcher, begins = job.result(timeout=_COMPILE_LIMIT_S)
        except TimeoutError:
            if job.cancel():  # it had not begun
                raise EngineError("the forms of other requests are still being compiled") from None
            self._too_costly.append(form)
            raise _refusal(_TOO_COSTLY, form) from None
        if error := matcher.get_error():
            raise _refusal(error, form)
        if not begins or matcher.is_stopped():
            raise _refusal("no answer that says anything keeps to it", form)
        return matcher

    def _parser(self, tools: tuple[Tool, ...]) -> Callable[[], ToolCallParser]:
        names = [tool.name for tool in tools]
        size = self._tool_format.id_characters

        def new_id() -> str:
            return (
                secrets.token_hex(_ID_CHARACTERS)[:size] if size else f"call_{secrets.token_hex(_ID_CHARACTERS // 2)}"
            )

        return lambda: ToolCallParser(self._tool_format, names, new_id=new_id)

    # -- markup --

    def _mark(self, markup: str) -> int | None:
        token = self._single(markup)
        return token if token is not None and self._tokenizer.is_special_token(token) else None

    def _markup(self) -> dict[int, bytes]:
        """Markup that is a control token shows no text by itself."""
        texts = [text for text in (self._tool_format.opening, self._tool_format.closing) if text]
        tokens = {token: text.encode() for text in texts if (token := self._single(text)) is not None}
        return {token: text for token, text in tokens.items() if not self._vocabulary.piece(token)}

    def _single(self, markup: str) -> int | None:
        tokens = self._vocabulary.tokenize(markup, add_special=False, parse_special=True)
        return tokens[0] if len(tokens) == 1 else None


_TOO_COSTLY = f"it takes longer than {_COMPILE_LIMIT_S:g} s to compile"


def _compiled(tokenizer: LLTokenizer, text: str) -> tuple[LLMatcher, bool]:
    """A matcher, and whether any token can begin an answer; errors are for the matcher to tell."""
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=_LIMITS)
    return matcher, not matcher.is_error() and any(matcher.compute_bitmask())


def _lark(gbnf: str) -> str:
    """GBNF in llguidance's own grammar language, by its own converter, which is Python and may be slow or deep."""
    try:
        with time_limit(_CONVERSION_LIMIT_S):
            return gbnf_to_lark(grammar.plain_escapes(gbnf))
    except (TimeLimitExceeded, RecursionError) as exc:
        raise _invalid("the grammar is too complex", "response_format") from exc
    except Exception as exc:  # the converter raises bare ones where rules are missing or doubled
        raise _invalid(f"the grammar cannot be read: {_first_words(str(exc))}", "response_format") from exc


def _refusal(error: str, form: Form) -> EdgedError:
    """Wrong, or only beyond our grammars: a schema that somebody else may be able to keep to."""
    param, words, folded = "tools" if form.tools else "response_format", _first_words(error), error.lower()
    is_schema = form.kind not in (OutputKind.REGEX, OutputKind.GRAMMAR)
    if is_schema and any(mark in folded for mark in _BEYOND_GRAMMARS) and "unsatisfiable" not in folded:
        return Unsupported(f"{param}: the local model cannot keep to this schema: {words}", param=param)
    return _invalid(f"{param} is not valid: {words}", param)


def _invalid(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param)


def _first_words(error: str) -> str:
    """The line that says what is wrong: parsers put a picture of the place in front of it."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    said = next(
        (line.removeprefix("error: ") for line in lines if line.startswith("error:")), lines[0] if lines else ""
    )
    return said[:_MOST_ERROR_CHARACTERS]
