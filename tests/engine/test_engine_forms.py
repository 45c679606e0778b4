"""Answers that keep to a form, from the real model through a real worker (D03, D05, D06, D07, B13)."""

import asyncio
import itertools
import json
import math
import re
from dataclasses import replace
from typing import Literal

import pytest
from pydantic import BaseModel, Field
from real_engine import a_request, answer, idle, raw, running, text_of

from edged.core import Chat, FinishReason, Message, OutputFormat, OutputKind, Role, Tool, ToolCall, ToolChoice, ToolMode
from edged.engine.host import Kept
from edged.errors import InvalidRequest, Unsupported


class Weather(BaseModel):
    city: str = Field(max_length=20)
    temperature: int = Field(ge=-50, le=50)
    sky: Literal["sunny", "cloudy", "rainy"]


class Sum(BaseModel):
    a: int
    b: int = Field(ge=0, le=99)


WEATHER = Tool("get_weather", "Get the weather of a city", json.dumps(Weather.model_json_schema()))
SUM = Tool("add", "Add two numbers", json.dumps(Sum.model_json_schema()), strict=True)
TOOLS = (WEATHER, SUM)
ARGUMENTS = {"get_weather": Weather, "add": Sum}
ASKED = "What is the weather in Paris?"
EVERY_END = ((0, -100.0), (2, -100.0))  # the starter model's <|endoftext|> and <|im_end|>


@pytest.fixture(scope="module")
def engine_runs(model_path):
    """Runs a rule against one engine that all rules of this file share; each must leave it idle, in the same worker."""
    with asyncio.Runner() as runner:
        life = running(model_path)
        engine = runner.run(life.__aenter__())
        pid = engine.pid

        async def checked(rule):
            try:
                await rule(engine)
                assert engine.in_flight == 0
            finally:
                for request_id in tuple(engine._inboxes):
                    engine.release(request_id)
            await idle(engine)
            assert engine.pid == pid

        yield lambda rule: runner.run(checked(rule))
        runner.run(life.__aexit__(None, None, None))


def schema(document, **fields):
    return OutputFormat(OutputKind.JSON_SCHEMA, json.dumps(document), "form", **fields)


def a_form(output=None, *, prompt=ASKED, tools=(), choice=None, parallel=None, **fields):
    request = a_request(prompt, **{"max_tokens": 64, **fields})
    return replace(
        request, output=output or OutputFormat(), tools=tools, tool_choice=choice, parallel_tool_calls=parallel
    )


def calls_of(chunks):
    """[(name, arguments)], with what B13 asks of the deltas checked on the way."""
    calls = {}
    for delta in [delta for chunk in chunks for delta in chunk.tool_calls]:
        assert (delta.id is None) == (delta.name is None) == (delta.index in calls)
        call = calls.setdefault(delta.index, [delta.id, delta.name, ""])
        call[2] += delta.arguments
    assert list(calls) == list(range(len(calls)))
    assert len({call_id for call_id, _, _ in calls.values()}) == len(calls)
    return [(name, arguments) for _, name, arguments in calls.values()]


def test_answers_by_a_schema_always_keep_to_it(engine_runs):
    """Twenty prompts at temperature 1, many at a time: each parses and validates."""

    async def rule(engine):
        output = schema(Weather.model_json_schema(), strict=True)
        words = ("sun", "rain", "tea", "cats", "Oslo", "日本", "😀", "</s>", '"', "nothing")
        prompts = [f"Tell me something about {word}." for word in words]
        requests = [a_form(output, prompt=p, temperature=1.0, seed=s, max_tokens=400) for p in prompts for s in (1, 2)]
        for chunks in await asyncio.gather(*(answer(engine, request) for request in requests)):
            Weather.model_validate_json(text_of(chunks))
            assert chunks[-1].finish is FinishReason.STOP

    engine_runs(rule)


def test_several_choices_each_keep_to_the_schema(engine_runs):
    """Each has a constraint of its own."""

    async def rule(engine):
        chunks = await answer(engine, a_form(schema(Weather.model_json_schema()), n=3, temperature=1.0, seed=5))
        for choice in range(3):
            Weather.model_validate_json(text_of(chunks, choice))

    engine_runs(rule)


def test_an_answer_cut_for_length_says_so(engine_runs):
    """It is no JSON, and its finish reason is the one that tells (D07)."""

    async def rule(engine):
        chunks = await answer(engine, a_form(schema(Weather.model_json_schema()), max_tokens=6))
        assert chunks[-1].finish is FinishReason.LENGTH
        with pytest.raises(json.JSONDecodeError):
            json.loads(text_of(chunks))

    engine_runs(rule)


def test_json_mode_gives_an_object_without_endless_white_space(engine_runs):
    """Whatever the model would like to pad it with (D07)."""

    async def rule(engine):
        chunks = await answer(
            engine, a_form(OutputFormat(OutputKind.JSON_OBJECT), temperature=1.0, seed=3, max_tokens=200)
        )
        text = text_of(chunks)
        assert text.startswith("{")
        assert "\n" not in text
        if chunks[-1].finish is FinishReason.STOP:
            assert isinstance(json.loads(text), dict)

    engine_runs(rule)


GREETING = 'root ::= greet " " name\ngreet ::= "Hi" | "Hello"\nname ::= [A-Z] [a-z]{2,6}'
BOOLEANS = {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 10_000}
TEEN = {"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer", "minimum": 10, "maximum": 19}}}


@pytest.mark.parametrize(
    ("output", "wanted"),
    [
        (OutputFormat(OutputKind.REGEX, "(yes|no), [a-z]{3,8}"), "(yes|no), [a-z]{3,8}"),
        (OutputFormat(OutputKind.REGEX, "[😀-😎日本é]{4}"), "[😀-😎日本é]{4}"),
        (OutputFormat(OutputKind.REGEX, r"^\d{3}-\d{2}$"), r"\d{3}-\d{2}"),
        (OutputFormat(OutputKind.GRAMMAR, GREETING), "(Hi|Hello) [A-Z][a-z]{2,6}"),
        (OutputFormat(OutputKind.GRAMMAR, r'root ::= "caf\u00e9" ("\U0001f600" | "!")+ "."'), r"café[😀!]+\."),
        (schema({"enum": ["red", "green", 3, None, {"a": [1]}]}), r'"red"|"green"|3|null|\{"a": \[1\]\}'),
        (schema({"const": 'é😀\n"quoted"'}), re.escape(r'"é😀\n\"quoted\""')),
        (schema({"type": "string", "maxLength": 2000}), '".{0,2000}"'),
        (schema({"type": "string", "maxLength": 1_000_000_000}), '".*"'),
        (schema(BOOLEANS), r"\[(true|false)(, (true|false)){2,}\]"),
        (schema(TEEN), "1[0-9]"),
    ],
    ids=str,
)
def test_regular_expressions_grammars_and_schemas_are_kept_to(engine_runs, output, wanted):
    """Also where a character takes several tokens: the stream joins to the whole text (D03, D06)."""

    async def rule(engine):
        chunks = await answer(engine, a_form(output, temperature=1.0, seed=11, max_tokens=48))
        text = text_of(chunks)
        assert "\ufffd" not in text or chunks[-1].finish is FinishReason.LENGTH
        if chunks[-1].finish is FinishReason.STOP:
            assert re.fullmatch(wanted, text), text

    engine_runs(rule)


@pytest.mark.parametrize(
    "sampling",
    [
        {"top_k": 1},
        {"min_p": 0.9, "temperature": 1.0},
        {"top_p": 0.01, "temperature": 2.0},
        {"repeat_penalty": 2.0},
        {"logit_bias": EVERY_END},
    ],
    ids=str,
)
def test_no_sampling_parameter_breaks_the_form(engine_runs, sampling):
    """Masks come before samplers: what is not allowed stays impossible, ends that are discouraged included (D06)."""

    async def rule(engine):
        chunks = await answer(engine, a_form(schema(Weather.model_json_schema()), **sampling))
        Weather.model_validate_json(text_of(chunks))

    engine_runs(rule)


# -- tools -----------------------------------------------------------------------------------------------------------


def test_a_required_call_is_one_of_the_declared_functions_with_sound_arguments(engine_runs):
    """Whatever is drawn; the answer has no text and says that it calls."""

    async def rule(engine):
        required = ToolChoice(ToolMode.REQUIRED)
        requests = [
            a_form(tools=TOOLS, choice=required, temperature=1.0, seed=seed, max_tokens=96) for seed in range(3)
        ]
        for chunks in await asyncio.gather(*(answer(engine, request) for request in requests)):
            calls = calls_of(chunks)
            assert calls
            assert text_of(chunks) == ""
            assert chunks[-1].finish in (FinishReason.TOOL_CALLS, FinishReason.LENGTH)
            for name, arguments in calls[: len(calls) if chunks[-1].finish is FinishReason.TOOL_CALLS else -1]:
                ARGUMENTS[name].model_validate_json(arguments)

    engine_runs(rule)


def test_a_named_call_is_that_function_once(engine_runs):
    """Whatever else was asked."""

    async def rule(engine):
        chunks = await answer(engine, a_form(tools=TOOLS, choice=ToolChoice(ToolMode.NAMED, "add")))
        [(name, arguments)] = calls_of(chunks)
        assert name == "add"
        Sum.model_validate_json(arguments)
        assert chunks[-1].finish is FinishReason.TOOL_CALLS

    engine_runs(rule)


@pytest.mark.parametrize("parallel", [None, False])
def test_parallel_calls_only_where_they_may_be(engine_runs, parallel):
    """A model that is kept from ending goes on calling, unless one call is all there may be."""

    async def rule(engine):
        required = ToolChoice(ToolMode.REQUIRED)
        request = a_form(tools=TOOLS, choice=required, parallel=parallel, logit_bias=EVERY_END, max_tokens=90)
        chunks = await answer(engine, request)
        calls = calls_of(chunks)
        assert len(calls) == 1 if parallel is False else len(calls) > 1
        for name, arguments in calls[:-1]:
            ARGUMENTS[name].model_validate_json(arguments)

    engine_runs(rule)


async def tokens_of(engine, text):
    """The tokens of a text as the model would write it."""
    chunks = await answer(engine, a_form(OutputFormat(OutputKind.REGEX, re.escape(text)), max_tokens=64))
    assert text_of(chunks) == text
    return tuple(token.id for chunk in chunks for token in chunk.tokens)


@pytest.mark.parametrize("opening", ['<tool_call>\n{"name', "<tool_call>", 'Let me see.\n<tool_call>\n{"name": "'])
def test_a_call_the_model_opens_by_itself_keeps_to_its_schema(engine_runs, opening):
    """Free text before, a constraint from the markup on; what was kept of an earlier try counts."""

    async def rule(engine):
        kept = Kept(await tokens_of(engine, opening))
        request = a_form(tools=TOOLS, parallel=False, max_tokens=96)
        prompt = await engine.prepare(request)
        chunks = [chunk async for chunk in engine.generate(prompt, (kept,))]
        [(name, arguments)] = calls_of(chunks)
        ARGUMENTS[name].model_validate_json(arguments)
        assert text_of(chunks) == ""
        assert chunks[-1].finish is FinishReason.TOOL_CALLS

    engine_runs(rule)


def test_tools_and_a_schema_together_give_either(engine_runs):
    """JSON by the schema, or calls: nothing else."""

    async def rule(engine):
        for seed in range(2):
            output = schema(Weather.model_json_schema())
            chunks = await answer(engine, a_form(output, tools=(SUM,), temperature=1.0, seed=seed, max_tokens=96))
            if calls := calls_of(chunks):
                assert text_of(chunks) == ""
                Sum.model_validate_json(calls[0][1])
            else:
                Weather.model_validate_json(text_of(chunks))

    engine_runs(rule)


def test_no_tool_is_called_where_none_may_be(engine_runs):
    """``none`` shows the model no tools, and its text stays text."""

    async def rule(engine):
        plain, none = a_form(max_tokens=8), a_form(tools=TOOLS, choice=ToolChoice(ToolMode.NONE), max_tokens=8)
        assert text_of(await answer(engine, plain)) == text_of(await answer(engine, none))

    engine_runs(rule)


# -- signals and resuming --------------------------------------------------------------------------------------------


def test_signals_are_those_of_the_unmasked_distribution(engine_runs):
    """A token the model was pushed to has the probability the model gave it, within what was allowed."""

    async def rule(engine):
        chunks = await answer(engine, a_form(schema(Weather.model_json_schema()), top_logprobs=3))
        tokens = [token for chunk in chunks for token in chunk.tokens]
        assert all(token.logprob <= math.log(max(token.allowed, 1e-30)) + 1e-3 for token in tokens)
        assert min(token.allowed for token in tokens) < 0.5
        assert any(token.piece not in {piece for piece, _ in token.top} for token in tokens)
        free = await answer(engine, a_form())
        assert all(token.allowed is None for chunk in free for token in chunk.tokens)

    engine_runs(rule)


def test_an_answer_that_goes_on_later_keeps_to_its_form(engine_runs):
    """What was generated before counts for the grammar as for the text."""

    async def rule(engine):
        request = a_form(schema(Weather.model_json_schema()))
        whole = await answer(engine, request)
        tokens = [token.id for chunk in whole for token in chunk.tokens]
        for size in (1, len(tokens) // 2, len(tokens) - 1):
            prompt = await engine.prepare(again := replace(request, id=f"{request.id}.{size}"))
            rest = [chunk async for chunk in engine.generate(prompt, (Kept(tuple(tokens[:size])),))]
            assert text_of(whole).endswith(text_of(rest))
            assert rest[-1].finish is FinishReason.STOP
            assert again.output == request.output

    engine_runs(rule)


# -- what cannot be kept to ------------------------------------------------------------------------------------------

DEEP = "root ::= " + "(" * 3_000 + '"a"' + ")" * 3_000

INVALID = [
    OutputFormat(OutputKind.REGEX, "[a-z"),
    OutputFormat(OutputKind.REGEX, "(?=a)b"),
    OutputFormat(OutputKind.REGEX, "a{5,1}"),
    OutputFormat(OutputKind.GRAMMAR, "root ::= ("),
    OutputFormat(OutputKind.GRAMMAR, 'other ::= "a"'),
    OutputFormat(OutputKind.GRAMMAR, "root ::= nowhere"),
    OutputFormat(OutputKind.GRAMMAR, "root ::= root"),
    OutputFormat(OutputKind.GRAMMAR, DEEP),
    OutputFormat(OutputKind.GRAMMAR, "\x00\x01"),
    OutputFormat(OutputKind.GRAMMAR, "root ::= [\\"),
    schema({"type": "strin"}),
    schema({"type": "string", "pattern": "["}),
    schema({"allOf": [{"type": "string"}, {"type": "integer"}]}),
    schema({"type": "integer", "minimum": 5, "maximum": 4}),
]


@pytest.mark.parametrize("output", INVALID, ids=lambda output: f"{output.kind}: {output.definition[:30]!r}")
def test_what_cannot_be_compiled_is_refused_before_it_is_queued(engine_runs, output):
    """A clear 400, never free text, never a dead worker (D05)."""

    async def rule(engine):
        with pytest.raises(InvalidRequest) as caught:
            await engine.prepare(a_form(output))
        assert caught.value.param == "response_format"
        assert len(caught.value.message) < 400

    engine_runs(rule)


def test_keywords_beyond_grammars_are_unsupported_where_they_must_hold(engine_runs):
    """Strict means exactly; elsewhere what no grammar can express is left to the model, as documented."""

    async def rule(engine):
        document = {"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True, "maxItems": 2}
        with pytest.raises(Unsupported) as caught:
            await engine.prepare(a_form(schema(document, strict=True)))
        assert "uniqueItems" in caught.value.message
        assert set(json.loads(text_of(await answer(engine, a_form(schema(document)))))) <= {1, 2}
        tool = Tool("f", None, json.dumps({"type": "object", "properties": {"a": document}}), strict=True)
        with pytest.raises(Unsupported) as caught:
            await engine.prepare(a_form(tools=(tool,)))
        assert caught.value.param == "tools"

    engine_runs(rule)


def test_a_bad_grammar_disturbs_no_neighbour(engine_runs):
    """While one answer is being written, twenty requests are refused; it ends as it would have alone."""

    async def rule(engine):
        story = a_form(prompt=raw("1, 2, 3, 4, 5, 6,"), max_tokens=40)
        alone = text_of(await answer(engine, story))
        prompt = await engine.prepare(replace(story, id=f"{story.id}.again"))
        chunks = engine.generate(prompt)
        first = await anext(chunks)
        for output, _ in itertools.product(INVALID, range(2)):
            with pytest.raises(InvalidRequest):
                await engine.prepare(a_form(output))
        assert first.text + "".join([chunk.text async for chunk in chunks]) == alone

    engine_runs(rule)


def test_regular_expressions_exclude_tools(engine_runs):
    """Neither could say which of the two an answer is."""

    async def rule(engine):
        with pytest.raises(Unsupported):
            await engine.prepare(a_form(OutputFormat(OutputKind.REGEX, "a"), tools=TOOLS))

    engine_runs(rule)


def test_earlier_calls_and_results_are_part_of_the_conversation(engine_runs):
    """A model whose template knows no tools is shown them as text, and answers after the result."""

    async def rule(engine):
        talk = Chat(
            (
                Message(Role.USER, ASKED),
                Message(Role.ASSISTANT, None, tool_calls=(ToolCall("c", "get_weather", '{"city": "Paris"}'),)),
                Message(Role.TOOL, "sunny", tool_call_id="c"),
            )
        )
        with_tools = await engine.prepare(one := a_form(prompt=talk, tools=TOOLS))
        without = await engine.prepare(two := a_form(prompt=talk))
        assert with_tools.prompt_tokens > without.prompt_tokens > 30
        engine.release(one.id)
        engine.release(two.id)

    engine_runs(rule)
