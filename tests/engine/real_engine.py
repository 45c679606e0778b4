"""A real worker with the real model, for tests that need nothing else."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil

from edged.config import ModelConfig
from edged.core import Chat, Chunk, Completion, EngineSnapshot, EngineState, Message, Request, Role, Sampling
from edged.engine.host import Engine

_ids = itertools.count()
GREEDY = {"temperature": 0.0, "repeat_penalty": 1.0}
LONG = "The quick brown fox jumps over the lazy dog. "


def a_config(path: Path, **changes) -> ModelConfig:
    values = {"name": "m", "file": path, "context_tokens": 1024, "slots": 4, "threads": 1}
    return ModelConfig(**(values | changes))


def a_request(prompt="Hi", *, max_tokens=8, stop=(), n=1, top_logprobs=None, tenant="", **sampling) -> Request:
    """``prompt`` is a user's chat message, a tuple of messages, or a Completion."""
    if isinstance(prompt, str):
        prompt = Chat((Message(Role.USER, prompt),))
    return Request(
        id=f"r{next(_ids)}",
        model="m",
        input=prompt,
        received_s=time.monotonic(),
        sampling=Sampling(**(GREEDY | sampling)),
        max_tokens=max_tokens,
        stop=stop,
        n=n,
        top_logprobs=top_logprobs,
        tenant=tenant,
    )


def raw(text: str) -> Completion:
    return Completion(text)


@asynccontextmanager
async def running(path: Path, **changes) -> AsyncIterator[Engine]:
    """A loaded engine, closed afterwards whatever happens."""
    engine = Engine(a_config(path, **changes), threads=1, locate=lambda: path)
    engine.start()
    try:
        assert await asyncio.wait_for(engine.settled(), 60) is EngineState.READY, engine.problem
        yield engine
    finally:
        await engine.close()


async def answer(engine: Engine, request: Request) -> list[Chunk]:
    prompt = await engine.prepare(request)
    return [chunk async for chunk in engine.generate(prompt)]


async def ask(engine: Engine, prompt="Hi", **kwargs) -> str:
    return text_of(await answer(engine, a_request(prompt, **kwargs)))


def text_of(chunks: list[Chunk], choice: int = 0) -> str:
    return "".join(chunk.text for chunk in chunks if chunk.choice == choice)


def workers() -> list[psutil.Process]:
    """The engines' processes below this one; other tests' libraries may have left helpers of theirs."""
    return [child for child in psutil.Process().children() if "edged.engine.worker" in " ".join(_command(child))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def until(condition, timeout_s: float = 20.0) -> float:
    """Poll what another process does; returns the seconds it took."""
    started_s = time.monotonic()
    while not condition():
        if time.monotonic() - started_s > timeout_s:
            raise TimeoutError(f"not within {timeout_s} s")
        await asyncio.sleep(0.02)
    return time.monotonic() - started_s


async def fresh(engine: Engine) -> EngineSnapshot:
    """The worker's numbers of this moment: a prompt brings them, without waiting for a heartbeat."""
    request = a_request(raw("x"))
    prompt = await engine.prepare(request)
    engine.release(request.id)
    return prompt.snapshot


async def idle(engine: Engine, timeout_s: float = 5.0) -> float:
    """Wait until the worker itself says that nothing runs or waits; returns the seconds it took."""
    return await _ask_until(engine, timeout_s, lambda seen: seen.running == seen.waiting == 0)


async def busy(engine: Engine, timeout_s: float = 5.0) -> float:
    """Wait until the worker computes something; returns the seconds it took."""
    return await _ask_until(engine, timeout_s, lambda seen: seen.running > 0)


async def _ask_until(engine: Engine, timeout_s: float, condition: Callable[[EngineSnapshot], bool]) -> float:
    started_s = time.monotonic()
    while not condition(seen := await fresh(engine)):
        if time.monotonic() - started_s > timeout_s:
            raise TimeoutError(f"not within {timeout_s} s: {seen}")
        await asyncio.sleep(0.005)
    return time.monotonic() - started_s
