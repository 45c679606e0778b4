"""Grammars compiled on the starter model's vocabulary, token by token, with no model computing."""

import contextlib
import json
import threading
import time

import llama_cpp.llama_cpp as llama
import pytest

from edged.chat.toolformats import GENERIC, HERMES, LLAMA, MISTRAL, ToolFormat
from edged.core import Tool
from edged.engine.compiler import Compiler
from edged.engine.form import ConstraintFailed
from edged.engine.protocol import Form, ToolRow
from edged.engine.runner import Vocabulary
from edged.errors import EngineError, InvalidRequest

SPECIAL = ToolFormat("special", "<repo_name>", "<file_sep>")
"""Markup that is a control token in this vocabulary, as Mistral's is in its own."""

FORMS = pytest.mark.parametrize("form", [HERMES, GENERIC, MISTRAL, LLAMA, SPECIAL], ids=lambda form: form.name)
NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = (ToolRow("add", None, json.dumps(NUMBER), strict=True), ToolRow("now", "Time", None, strict=False))


@pytest.fixture(scope="module")
def vocabulary(model_path):
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = llama.llama_model_load_from_file(str(model_path).encode(), params)
    yield Vocabulary(model)
    llama.llama_model_free(model)


@pytest.fixture(scope="module")
def compilers(vocabulary):
    """One compiler per format: reading the vocabulary takes a moment."""
    made = {}
    return lambda form: made.setdefault(form.name, Compiler(vocabulary, form))


def written(form, *calls):
    first, *others = [f"{form.head}{name}{form.middle}{arguments}}}" for name, arguments in calls]
    return form.opening + form.lead + first + "".join(form.between + other for other in others) + form.tail


def tell(constraint, vocabulary, text):
    """Give a constraint a text's tokens, each as the mask allows it; whether the answer may end there."""
    for token in vocabulary.tokenize(text, add_special=False, parse_special=True):
        mask = constraint.mask()
        if mask is not None and not mask[token]:
            raise ConstraintFailed(f"{vocabulary.piece(token)!r} is not allowed")
        constraint.accept(token)
    if constraint.complete:
        return True
    mask = constraint.mask()
    return mask is None or all(mask[token] for token in vocabulary.end_tokens())


@FORMS
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_calls_in_the_familys_form_are_allowed(compilers, vocabulary, form, mode):
    """One call, and two where they may be parallel; the parser reads from the shown pieces what the grammar allowed."""
    for calls in ([("add", '{"a": 1}')], [("now", "{}"), ("add", '{"a": -25}')])[: 1 + form.is_parallel]:
        blueprint = compilers(form).compile(Form(TOOLS, mode=mode))
        constraint, text = blueprint.constraint(), written(form, *calls)
        assert tell(constraint, vocabulary, text)
        parser, found = blueprint.parser(), {}
        tokens = vocabulary.tokenize(text, add_special=False, parse_special=True)
        pieces = [blueprint.markup.get(token) or vocabulary.piece(token) for token in tokens]
        for part in (*(parser.feed(piece.decode()) for piece in pieces), parser.finish()):
            assert part.text == ""
            for delta in part.calls:
                name, arguments = found.get(delta.index, ("", ""))
                found[delta.index] = (name + (delta.name or ""), arguments + delta.arguments)
        assert list(found.values()) == calls


@FORMS
@pytest.mark.parametrize(
    "calls", [[("other", "{}")], [("add", '{"a": "x"}')], [("add", "{}")], [("add", '{"a": 1, "b": 2}')]], ids=str
)
def test_no_other_call_is_allowed(compilers, vocabulary, form, calls):
    """No function that was not declared, no argument that its schema does not take, none missing."""
    for mode in ("auto", "required"):
        with pytest.raises(ConstraintFailed):
            tell(compilers(form).compile(Form(TOOLS, mode=mode)).constraint(), vocabulary, written(form, *calls))


@FORMS
def test_a_required_answer_neither_says_anything_nor_ends_without_a_call(compilers, vocabulary, form):
    """Its very first token belongs to a call."""
    constraint = compilers(form).compile(Form(TOOLS, mode="required")).constraint()
    mask = constraint.mask()
    assert not any(mask[token] for token in vocabulary.end_tokens())
    with pytest.raises(ConstraintFailed):
        tell(compilers(form).compile(Form(TOOLS, mode="required")).constraint(), vocabulary, "Hello")


@FORMS
def test_a_second_call_only_where_it_may_be(compilers, vocabulary, form):
    """parallel_tool_calls false, or a template that takes one a turn: after one call nothing may follow."""
    two = written(form, ("now", "{}"), ("now", "{}"))
    for mode in ("auto", "required"):
        constraint = compilers(form).compile(Form(TOOLS, mode=mode, parallel=not form.is_parallel)).constraint()
        with pytest.raises(ConstraintFailed):
            tell(constraint, vocabulary, two)


@FORMS
def test_free_text_is_free(compilers, vocabulary, form):
    """``auto`` masks nothing until a call is opened."""
    constraint = compilers(form).compile(Form(TOOLS, mode="auto")).constraint()
    assert tell(constraint, vocabulary, 'Well: {"a": [1, "<tool", {}]} </s> [TOOL 日本 😀')
    assert constraint.mask() is None


@FORMS
def test_a_call_behind_text_keeps_to_its_schema(compilers, vocabulary, form):
    """Except where only the beginning of an answer can be a call."""
    if not form.opening:
        return
    constraint = compilers(form).compile(Form(TOOLS, mode="auto")).constraint()
    with contextlib.suppress(ConstraintFailed):
        tell(constraint, vocabulary, "Let me see.\n" + form.opening)
    assert constraint.mask() is not None


def test_the_last_forms_stay_compiled(compilers):
    """The same schema again costs nothing."""
    compiler = compilers(GENERIC)
    form = Form(kind="json_schema", definition='{"type": "integer"}')
    first = compiler.compile(form)
    assert compiler.compile(Form(kind="json_schema", definition='{"type": "integer"}')) is first
    for size in range(20):
        compiler.compile(Form(kind="json_schema", definition=json.dumps({"type": "string", "maxLength": size})))
    assert compiler.compile(form) is not first


def test_options_of_the_grammar_library_are_not_a_clients_to_set(compilers, vocabulary):
    """``x-guidance`` in a schema changes nothing: neither white space nor what may be left to the model."""
    schema = {**NUMBER, "x-guidance": {"whitespace_flexible": True, "lenient": True}}
    for definition, tools in ((json.dumps(schema), ()), ("", (ToolRow("f", None, json.dumps(schema), strict=True),))):
        mode = "required" if tools else "none"
        form = Form(tools, mode=mode, kind="json_schema" if definition else "text", definition=definition, strict=True)
        text = written(GENERIC, ("f", '{  "a": 1}')) if tools else '{  "a": 1}'
        with pytest.raises(ConstraintFailed):
            tell(compilers(GENERIC).compile(form).constraint(), vocabulary, text)


def test_the_dearest_schemas_compile_within_a_second(compilers):
    """At the limits of the door: a thousand optional properties, a thousand values, 128 functions."""
    wide = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1_000)}}
    values = {"enum": [f"value {i}" for i in range(1_000)]}

    for form in (
        Form(kind="json_schema", definition=json.dumps(wide)),
        Form(kind="json_schema", definition=json.dumps(values)),
        Form(tuple(ToolRow(f"f{i}", None, json.dumps(NUMBER), strict=True) for i in range(128)), mode="required"),
    ):
        started_s = time.monotonic()
        assert compilers(GENERIC).compile(form).constraint().mask().any()
        assert time.monotonic() - started_s < 3, "three times what a loaded box takes"


def test_what_takes_too_long_to_compile_is_refused_and_remembered(vocabulary, monkeypatch):
    """Nobody waits for it twice, and others can compile meanwhile."""
    compiler = Compiler(vocabulary, GENERIC)
    compiler.compile(Form(kind="regex", definition="warm"))
    monkeypatch.setattr("edged.engine.compiler._COMPILE_LIMIT_S", 0.05)
    costly = Form(kind="json_schema", definition='{"type": "integer", "multipleOf": 49999}')
    for limit_s in (1.0, 0.02):
        started_s = time.monotonic()
        with pytest.raises(InvalidRequest, match="to compile"):
            compiler.compile(costly)
        assert time.monotonic() - started_s < limit_s
    monkeypatch.undo()
    assert compiler.compile(Form(kind="regex", definition="yes|no")).constraint().mask().any()


def test_where_every_compiler_is_taken_it_is_not_the_requests_fault(vocabulary, monkeypatch):
    """Another backend may answer."""
    compiler, gate = Compiler(vocabulary, GENERIC), threading.Event()
    compiler.compile(Form(kind="regex", definition="warm"))
    monkeypatch.setattr("edged.engine.compiler._COMPILE_LIMIT_S", 0.05)
    for _ in range(2):
        compiler._compiling.submit(gate.wait)
    with pytest.raises(EngineError):
        compiler.compile(Form(kind="regex", definition="a"))
    gate.set()


def test_a_mask_that_takes_too_long_fails_its_own_request(compilers, monkeypatch):
    """A neighbour waits no longer than the limit."""
    monkeypatch.setattr("edged.engine.constraint._MASK_LIMIT_S", 0.05)
    gate = threading.Event()
    constraint = compilers(GENERIC).compile(Form(kind="regex", definition="[a-z]+")).constraint()
    constraint._pending = constraint._pool.submit(gate.wait)
    with pytest.raises(ConstraintFailed, match="longer"):
        constraint.mask()
    gate.set()


def test_a_tool_is_described_by_the_shared_noun():
    """``ToolRow`` carries what ``Tool`` does."""
    assert [field for field in ToolRow.__struct_fields__ if field not in Tool.__slots__] == []
