"""Vectors and scores: made by a local model or by nobody, so there is nothing to judge and nowhere to escalate."""

import time

from edged.config import Config
from edged.core import EngineState, Outcome, Target
from edged.core.texts import TextsRequest, Vectors
from edged.dispatch.trace import Trace
from edged.engine.host import Engine
from edged.errors import EdgedError, Unsupported

_CAN = {"chat": "answers chat and completions", "embed": "makes embeddings", "rerank": "ranks documents"}
_ENDPOINT = {"chat": "/v1/chat/completions", "embed": "/v1/embeddings", "rerank": "/v1/rerank"}
_SHOWN = 10


def check_purpose(config: Config, name: str, engine: Engine | None, *, wanted: str) -> None:
    """Refuse a model that is not for this, naming what it is for. Raises: Unsupported."""
    purpose = engine.config.purpose if engine else "chat"
    if purpose == wanted:
        return
    where = "" if engine else " in the cloud"
    text = (
        f"the model {name!r}{where} {_CAN[purpose]} ({_ENDPOINT[purpose]}); it cannot be used with {_ENDPOINT[wanted]}"
    )
    able = [model.name for model in config.models if model.purpose == wanted]
    if wanted != "chat":
        text += f'; with purpose = "{wanted}" there is ' + (", ".join(able[:_SHOWN]) or "no model here")
    raise Unsupported(text, param="model", code="unsupported_model")


async def embed_local(engine: Engine, trace: Trace, request: TextsRequest) -> Vectors:
    """Have the model load if need be, and compute; the attempt is the author.

    Raises: NotReady, EngineError, InvalidRequest.
    """
    if engine.state is not EngineState.READY:
        started_s = time.monotonic()
        try:
            await engine.loaded()
        finally:
            trace.load_s += time.monotonic() - started_s
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
