"""The local model in a worker process of its own, asked what the daemon would ask it."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from edged.config import ModelConfig, TaskFile
from edged.core import (
    Chat,
    Completion,
    EngineState,
    FinishReason,
    Message,
    OutputFormat,
    OutputKind,
    Request,
    Role,
    Sampling,
    Token,
)
from edged.core.questions import QuestionsRequest
from edged.engine.cores import CoreBudget, usable_cores
from edged.engine.host import Engine
from edged.engine.sharing import share_cores
from edged.errors import EngineError
from edged.routing import decisions

MAX_ANSWER_TOKENS = 512
"""Longer generated answers count as wrong: a served one would have been cut, or loop."""

_TENANT = "calibrate"


@dataclass(frozen=True, slots=True)
class Generated:
    """One generated answer."""

    text: str
    tokens: tuple[Token, ...]
    finish: FinishReason | None

    @property
    def is_whole(self) -> bool:
        """It was not cut."""
        return self.finish is not FinishReason.LENGTH


class Local:
    """Asks one loaded model. Calls may run side by side."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __repr__(self) -> str:
        return f"Local({self._engine!r})"

    @property
    def memory_bytes(self) -> int:
        """What the worker needs."""
        need = self._engine.need
        return need.total_bytes if need else 0

    async def score(self, task: TaskFile, text: str) -> tuple[tuple[tuple[float, ...], ...], bytes | None]:
        """The log-probabilities of each option's tokens, and the prompt's last hidden state where the engine has it.

        Raises: ContextOverflow, WorkerLost, EngineError.
        """
        asked = decisions.item(text, task.question)
        request = QuestionsRequest(
            id=uuid.uuid4().hex,
            model=self._engine.config.name,
            input=Completion(text),
            received_s=time.monotonic(),
            tenant=_TENANT,
            state=text,
            questions=(task.question,),
            wants_state=True,
        )
        scores = await self._engine.score(request, [asked])
        return scores.logprobs[0], scores.states[0] if scores.states else None

    async def answer(self, request: Request) -> Generated:
        """Raises: as ``score``."""
        prompt = await self._engine.prepare(request)
        texts: list[str] = []
        tokens: list[Token] = []
        finish = None
        async for chunk in self._engine.generate(prompt):
            texts.append(chunk.text)
            tokens += chunk.tokens
            finish = chunk.finish or finish
        return Generated("".join(texts), tuple(tokens), finish)


def chat_request(task: TaskFile, text: str, *, model: str) -> Request:
    """What is asked of a model, or of the cloud, in a task without options: instructions, examples, the input."""
    said = [Message(Role.SYSTEM, task.instructions)] if task.instructions else []
    for example in task.examples:
        said += [Message(Role.USER, example.input), Message(Role.ASSISTANT, example.answer)]
    schema = task.answer_schema
    output = OutputFormat()
    if schema is not None:
        output = OutputFormat(OutputKind.JSON_SCHEMA, definition=schema, name=task.name)
    return Request(
        id=uuid.uuid4().hex,
        model=model,
        input=Chat((*said, Message(Role.USER, text))),
        received_s=time.monotonic(),
        sampling=Sampling(temperature=0.0),
        max_tokens=MAX_ANSWER_TOKENS,
        output=output,
        tenant=_TENANT,
    )


@asynccontextmanager
async def loaded(model: ModelConfig, locate: Callable[[], Path]) -> AsyncIterator[Local]:
    """The model in a worker that ends with the block; it leaves the cores that others use alone.

    Raises: EngineError that says why it cannot be loaded.
    """
    config = model.model_copy(update={"load": "start", "keep_loaded_s": 0.0})
    budget = CoreBudget(usable_cores())
    engine = Engine(config, threads=budget.granted, locate=locate)
    engine.start()
    sharing = asyncio.create_task(share_cores({model.name: engine}, budget), name="cores")
    try:
        if await engine.settled() is not EngineState.READY:
            raise EngineError(f"the model {model.name} cannot be loaded: {engine.problem or engine.state.value}")
        yield Local(engine)
    finally:
        sharing.cancel()
        await engine.close()
