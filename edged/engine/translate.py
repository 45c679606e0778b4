"""Between the shared nouns of ``core`` and the worker's messages: pure, in both directions."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from edged.config import ModelConfig, SamplingDefaults
from edged.core import (
    Chat,
    Chunk,
    EngineSnapshot,
    EngineState,
    FinishReason,
    Message,
    OutputKind,
    Request,
    Timings,
    Token,
    Tool,
    ToolCallDelta,
    ToolMode,
    Usage,
)
from edged.core.questions import OptionScores, OptionsItem, QuestionsRequest
from edged.core.texts import TextsRequest, Vectors
from edged.engine.gguf import GgufFile
from edged.engine.protocol import (
    Embed,
    Embedded,
    Emission,
    Form,
    Load,
    Params,
    Prepare,
    Refused,
    Score,
    Scored,
    ScoreItem,
    Stats,
    TokenRow,
    ToolRow,
    Turn,
)
from edged.errors import ContextOverflow, EdgedError, EngineError, InvalidRequest, TemplateRejected, Unsupported

T = TypeVar("T")

_MAX_CHARS_PER_TOKEN = 64
"""No text needs fewer tokens than its length over this; longer prompts are refused without tokenizing them."""


def request_tokens(config: ModelConfig) -> int:
    """What one request may fill, prompt and answer: a KV pool smaller than the context is the tighter limit."""
    return min(config.context_tokens, config.pool_tokens)


def load(config: ModelConfig, path: Path, file: GgufFile, *, threads: int) -> Load:
    """The worker's first command. A text to embed is never longer than what the model was trained for."""
    chat = config.purpose == "chat"
    context_tokens = config.context_tokens if chat else min(config.context_tokens, file.context_tokens)
    return Load(
        path=str(path),
        context_tokens=context_tokens,
        slots=config.slots,
        pool_tokens=config.pool_tokens if chat else context_tokens,
        kv_format=config.kv_format,
        threads=threads,
        gpu_layers=config.gpu_layers,
        prefill_chunk_tokens=config.prefill_chunk_tokens,
        one_tenant=config.one_tenant,
        main_gpu=config.main_gpu,
        offload_kv=config.offload_kv,
        drafts=config.drafts,
        purpose=config.purpose,
        pooling=config.pooling,
        whole_texts=not file.causal,
    )


def embed(request: TextsRequest) -> Embed:
    return Embed(
        request.id,
        request.tenant,
        request.texts,
        field=request.field,
        query=request.query,
        dimensions=request.dimensions,
        background=request.background,
    )


def score(request: Request, items: Sequence[OptionsItem], *, wants_state: bool) -> Score:
    return Score(
        request.id,
        request.tenant,
        tuple(map(_score_item, items)),
        background=request.background,
        wants_state=wants_state or (isinstance(request, QuestionsRequest) and request.wants_state),
    )


def _score_item(item: OptionsItem) -> ScoreItem:
    if isinstance(item.prompt, str):
        return ScoreItem(options=item.options, text=item.prompt, opening=item.opening, told_apart=item.told_apart)
    turns = tuple(_turn(message) for message in item.prompt.messages)
    return ScoreItem(options=item.options, turns=turns, opening=item.opening, told_apart=item.told_apart)


def scores(scored: Scored, items: Sequence[OptionsItem]) -> OptionScores:
    """What the worker said, taken apart by item."""
    logprobs = iter(scored.logprobs)
    return OptionScores(
        logprobs=tuple(tuple(next(logprobs) for _ in item.options) for item in items),
        usage=Usage(
            prompt_tokens=scored.prompt_tokens + scored.option_tokens,
            cached_tokens=scored.cached_tokens,
        ),
        timings=Timings(queue_s=scored.queue_s, prefill_s=scored.prefill_s, decode_s=scored.decode_s),
        states=scored.states or None,
    )


def input_param(request: Request) -> str:
    if isinstance(request, TextsRequest):
        return request.field
    if isinstance(request, QuestionsRequest):
        return "state"
    return "messages" if isinstance(request.input, Chat) else "prompt"


def fewest_tokens(request: Request) -> int:
    """A floor of the prompt's tokens, had without tokenizing it."""
    asked = request.input
    return fewest_tokens_of(asked if isinstance(asked, Chat) else asked.prompt)


def fewest_tokens_of(text: str | tuple[int, ...] | Chat) -> int:
    if isinstance(text, Chat):
        return sum(len(m.text) for m in text.messages if m.text) // _MAX_CHARS_PER_TOKEN
    return len(text) // _MAX_CHARS_PER_TOKEN if isinstance(text, str) else len(text)


def params(request: Request, default: SamplingDefaults, *, limit_tokens: int) -> Params:
    """The request's sampling with the model's defaults filled in, for an answer of at most ``limit_tokens``."""
    asked = request.sampling
    return Params(
        max_tokens=min(request.max_tokens or limit_tokens, limit_tokens),
        temperature=_first(asked.temperature, default.temperature),
        top_p=_first(asked.top_p, default.top_p),
        top_k=_first(asked.top_k, default.top_k),
        min_p=_first(asked.min_p, default.min_p),
        repeat_penalty=_first(asked.repeat_penalty, default.repeat_penalty),
        presence_penalty=_first(asked.presence_penalty, 0.0),
        frequency_penalty=_first(asked.frequency_penalty, 0.0),
        logit_bias=asked.logit_bias,
        seed=asked.seed,
        stop=request.stop,
        top_logprobs=request.top_logprobs or 0,
    )


def _first(asked: T | None, default: T) -> T:
    return default if asked is None else asked


def prepare(request: Request) -> Prepare:
    form = _form(request)
    if isinstance(request.input, Chat):
        turns = tuple(_turn(m) for m in request.input.messages)
        return Prepare(request.id, request.tenant, turns=turns, form=form)
    prompt = request.input.prompt
    if isinstance(prompt, str):
        return Prepare(request.id, request.tenant, text=prompt, form=form)
    return Prepare(request.id, request.tenant, tokens=prompt, form=form)


def _form(request: Request) -> Form | None:
    """What the answer must keep to; None for text that may be anything."""
    mode, output = request.tool_mode, request.output
    if mode is ToolMode.NONE and output.kind is OutputKind.TEXT:
        return None
    named = request.tool_choice.name if request.tool_choice else None
    tools = [tool for tool in request.tools if mode is not ToolMode.NAMED or tool.name == named]
    return Form(
        tools=tuple(_tool(tool) for tool in tools) if mode is not ToolMode.NONE else (),
        mode=mode.value,
        parallel=request.parallel_tool_calls is not False and mode is not ToolMode.NAMED,
        kind=output.kind.value,
        definition=output.definition,
        strict=bool(output.strict),
    )


def _tool(tool: Tool) -> ToolRow:
    return ToolRow(tool.name, tool.description, tool.parameters_json, strict=bool(tool.strict))


def _turn(message: Message) -> Turn:
    calls = tuple((call.id, call.name, call.arguments) for call in message.tool_calls)
    return Turn(message.role.value, message.text, message.name, calls, message.tool_call_id)


def chunk(emission: Emission, usage: Usage | None) -> Chunk:
    finish = FinishReason(emission.finish) if emission.finish else None
    timings = Timings(queue_s=emission.queue_s, prefill_s=emission.prefill_s, decode_s=emission.decode_s)
    return Chunk(
        choice=emission.choice,
        text=emission.text,
        tokens=tuple(_token(row) for row in emission.tokens),
        finish=finish,
        usage=usage,
        timings=timings if finish else None,
        tool_calls=tuple(ToolCallDelta(row.index, row.id, row.name, row.arguments) for row in emission.tool_calls),
    )


def _token(row: TokenRow) -> Token:
    return Token(
        row.piece,
        row.logprob,
        margin=row.margin,
        entropy=row.entropy,
        top=row.top,
        id=row.id,
        allowed=row.allowed,
    )


def add(usage: Usage, emission: Emission) -> Usage:
    """Usage of several choices: the prompt counts once, as cached only where even the first choice found it cached."""
    return replace(
        usage,
        completion_tokens=usage.completion_tokens + emission.completion_tokens,
        accepted_prediction_tokens=usage.accepted_prediction_tokens + emission.accepted_tokens,
        rejected_prediction_tokens=usage.rejected_prediction_tokens + emission.rejected_tokens,
        cached_tokens=emission.cached_tokens if emission.choice == 0 else usage.cached_tokens,
    )


def vectors(last: Embedded, data: bytes, *, values: int, tokens: int) -> Vectors:
    timings = Timings(queue_s=last.queue_s, prefill_s=last.compute_s)
    return Vectors(data=data, values=values, usage=Usage(prompt_tokens=tokens), timings=timings)


def error(refused: Refused) -> EdgedError:
    kinds: dict[str, type[EdgedError]] = {
        TemplateRejected.code: TemplateRejected,
        ContextOverflow.code: ContextOverflow,
        InvalidRequest.code: InvalidRequest,
        Unsupported.code: Unsupported,
    }
    kind = kinds.get(refused.code, EngineError)
    return kind(refused.message, param=refused.param)


def snapshot(config: ModelConfig, state: EngineState, stats: Stats | None) -> EngineSnapshot:
    if stats is None:
        return EngineSnapshot(state=state, slots=config.slots, context_tokens=request_tokens(config))
    return EngineSnapshot(
        state=state,
        slots=config.slots,
        running=stats.running,
        waiting=stats.waiting,
        context_tokens=request_tokens(config),
        queued_prompt_tokens=stats.queued_prompt_tokens,
        prefill_tps=stats.prefill_tps,
        decode_tps=stats.decode_tps,
    )
