"""Vectors and scores: made by a local model or by nobody, so there is nothing to judge and nowhere to escalate."""

from edged.config import Config
from edged.core import Decision, Outcome, Reason, Target
from edged.core.texts import TextsRequest, Vectors
from edged.dispatch.local import loaded
from edged.dispatch.trace import Trace
from edged.engine.host import Engine
from edged.errors import ContextOverflow, EdgedError, EngineError, NotReady, Unsupported

_CAN = {"chat": "answers chat and completions", "embed": "makes embeddings", "rerank": "ranks documents"}
_ENDPOINT = {"chat": "/v1/chat/completions", "embed": "/v1/embeddings", "rerank": "/v1/rerank"}
DECIDE = "/v1/systemone"
_SHOWN = 10


def check_purpose(
    config: Config, trace: Trace, engine: Engine | None, *, wanted: str, endpoint: str | None = None
) -> None:
    """Refuse a model that is not for this, naming what it is for. Raises: Unsupported."""
    name = trace.request.model
    purpose = engine.config.purpose if engine else "chat"
    if purpose == wanted:
        return
    where = "" if engine else " in the cloud"
    asked = endpoint or _ENDPOINT[wanted]
    text = f"the model {name!r}{where} {_CAN[purpose]} ({_ENDPOINT[purpose]}); it cannot be used with {asked}"
    able = [model.name for model in config.models if model.purpose == wanted]
    if wanted != "chat":
        text += f'; with purpose = "{wanted}" there is ' + (", ".join(able[:_SHOWN]) or "no model here")
    _decide_nobody(trace, Reason.CAPABILITY, stage="admit")
    raise Unsupported(text, param="model", code="unsupported_model")


async def embed_local(engine: Engine, trace: Trace, request: TextsRequest) -> Vectors:
    """Have the model load if need be, and compute; the attempt is the author.

    Raises: NotReady, EngineError, InvalidRequest.
    """
    try:
        await loaded(engine, trace)
        return await _attempt(engine, trace, request)
    except ContextOverflow:
        _decide_nobody(trace, Reason.CONTEXT_OVERFLOW, stage="local")
        raise
    except (NotReady, EngineError):
        _decide_nobody(trace, Reason.LOCAL_UNAVAILABLE, stage="local")
        raise


async def _attempt(engine: Engine, trace: Trace, request: TextsRequest) -> Vectors:
    attempt = trace.attempt(Target.LOCAL, backend=engine.config.name, model=engine.config.name)

    def counted(tokens: int) -> None:
        attempt.prompt_tokens = tokens

    try:
        vectors = await engine.embed(request, counted=counted)
    except EdgedError as exc:
        attempt.end(Outcome.FAILED, exc.code)
        raise
    attempt.usage, attempt.timings = vectors.usage, vectors.timings
    attempt.end(Outcome.SERVED)
    trace.author = attempt
    return vectors


def _decide_nobody(trace: Trace, reason: Reason, *, stage: str) -> None:
    trace.decide(Decision(target=Target.NONE, reason=reason, stage=stage))
