"""What an edge box really meets, each as one measurement of one running server. Numbers are returned, never judged."""

import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import aiohttp
import psutil

from edged.bench.client import Ask, BenchError, Target, ask
from edged.bench.prompts import prompt
from edged.bench.stats import Answer

SHARED_PROMPT_WORDS = 490
LONG_PROMPT_WORDS = 2400
_DECODE_PROMPT_WORDS = 24
_SETTLE_S = 1.5


async def decode_rate(session: aiohttp.ClientSession, target: Target, *, clients: int, tokens: int, seed: str) -> float:
    """Tokens per second of all clients together, from their first tokens on."""
    asks = [Ask(prompt(_DECODE_PROMPT_WORDS, seed=f"{seed}/{i}"), tokens) for i in range(clients)]
    answers = await _together(session, target, asks)
    begun_s = max(_ttft(answer) for answer in answers)
    ended_s = max(answer.total_s for answer in answers)
    late = sum(answer.completion_tokens * _share_after(answer, begun_s) for answer in answers)
    return late / (ended_s - begun_s)


async def stream_rate(session: aiohttp.ClientSession, target: Target, request: Ask) -> float:
    """Tokens per second of one client, from its first token on, however many come in a piece."""
    answer = _whole(target, await ask(session, target, request))
    if answer.completion_tokens <= 1:
        raise BenchError(f"{target.name}: an answer of one token has no rate")
    return (answer.completion_tokens - 1) / (answer.total_s - _ttft(answer))


async def shared_prefix_ttft(session: aiohttp.ClientSession, target: Target, *, clients: int, seed: str) -> float:
    """Median TTFT of clients that arrive together with one long system prompt, never seen before, and own questions."""
    system = prompt(SHARED_PROMPT_WORDS, seed=f"{seed}/system")
    asks = [Ask(f"Question {i}: what is {i} + {i}?", 16, system=system) for i in range(clients)]
    answers = await _together(session, target, asks)
    return median(_ttft(answer) for answer in answers)


async def newcomer(session: aiohttp.ClientSession, target: Target, *, tokens: int, seed: str) -> tuple[float, float]:
    """The longest gap of a running stream while a long prompt arrives, and that prompt's TTFT, in seconds."""
    running = asyncio.create_task(ask(session, target, Ask(prompt(32, seed=f"{seed}/running"), tokens)))
    await asyncio.sleep(_SETTLE_S)
    sent_s = time.perf_counter()
    late = _whole(target, await ask(session, target, Ask(prompt(LONG_PROMPT_WORDS, seed=f"{seed}/late"), 4)))
    waited_s = time.perf_counter() - sent_s
    answer = _whole(target, await running)
    times = [_SETTLE_S, *(p.at_s for p in answer.pieces if _SETTLE_S <= p.at_s <= _SETTLE_S + waited_s)]
    if answer.total_s < _SETTLE_S + waited_s / 2:
        raise BenchError(f"{target.name}: the running stream ended before the newcomer was served: more --tokens")
    gaps = [b - a for a, b in itertools.pairwise(times)]
    return max(gaps), _ttft(late)


async def idle_ttft(session: aiohttp.ClientSession, target: Target, *, seed: str) -> float:
    """TTFT of the same long prompt with nobody else there."""
    answer = await ask(session, target, Ask(prompt(LONG_PROMPT_WORDS, seed=seed), 4))
    return _ttft(_whole(target, answer))


async def many_requests(session: aiohttp.ClientSession, target: Target, *, clients: int, each: int, seed: str) -> None:
    """Short requests one after the other from every client."""

    async def client(index: int) -> None:
        for turn in range(each):
            _whole(target, await ask(session, target, Ask(prompt(16, seed=f"{seed}/{index}/{turn}"), 4)))

    await asyncio.gather(*(client(index) for index in range(clients)))


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Another process that uses one core all the time."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(_SETTLE_S)
        yield
    finally:
        process.kill()
        process.wait()


def resident_bytes(pid: int) -> int:
    """Resident memory of a process and all its children; pages they share are counted in each."""
    root = psutil.Process(pid)
    return sum(process.memory_info().rss for process in (root, *root.children(recursive=True)))


async def _together(session: aiohttp.ClientSession, target: Target, asks: Sequence[Ask]) -> list[Answer]:
    answers = await asyncio.gather(*(ask(session, target, one) for one in asks))
    return [_whole(target, answer) for answer in answers]


def _whole(target: Target, answer: Answer) -> Answer:
    if answer.error is not None:
        raise BenchError(f"{target.name}: {answer.error}")
    return answer


def _ttft(answer: Answer) -> float:
    """The first piece of text; an answer without any is all there is at its end."""
    return answer.pieces[0].at_s if answer.pieces else answer.total_s


def _share_after(answer: Answer, at_s: float) -> float:
    """The share of an answer's pieces that came after a moment."""
    return sum(piece.at_s > at_s for piece in answer.pieces) / max(1, len(answer.pieces))
