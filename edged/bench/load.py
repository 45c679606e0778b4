"""Rounds of load, interleaved over the targets: A B A B, so that drift of the box meets all of them alike."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import aiohttp

from edged.bench.client import Ask, BenchError, Target, ask, first_model, open_session
from edged.bench.prompts import prompt, words_for
from edged.bench.stats import Answer, Figures, summarise

_WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure. In a round, ``concurrency`` clients each send ``requests`` one after the other."""

    concurrencies: tuple[int, ...] = (1, 4, 8)
    rounds: int = 3
    prompt_tokens: int = 128
    max_tokens: int = 64
    requests: int = 1
    chat: bool = True
    idle_timeout_s: float = 120.0
    seed: str = "edged"


@dataclass(frozen=True, slots=True)
class Round:
    """One round's figures, where they came from, and the first error where there was one."""

    target: str
    concurrency: int
    number: int
    figures: Figures
    counted: bool
    error: str | None


async def measure(plan: Plan, targets: Sequence[Target], on_round: Callable[[Round], None]) -> list[Round]:
    """Warm every target up, then run all rounds. Raises: BenchError where a target does not answer at all."""
    done: list[Round] = []
    async with open_session(plan.idle_timeout_s) as session:
        named = [
            target if target.model else replace(target, model=await first_model(session, target)) for target in targets
        ]
        words = await _warm_up(session, plan, named)
        for concurrency in plan.concurrencies:
            for number in range(plan.rounds):
                for target in named:
                    done.append(
                        await _round(session, plan, target, concurrency=concurrency, number=number, words=words)
                    )
                    on_round(done[-1])
    return done


async def _warm_up(session: aiohttp.ClientSession, plan: Plan, targets: Sequence[Target]) -> int:
    """One short answer of each target, so that nothing is loaded while it is measured; the words a prompt needs."""
    words = plan.prompt_tokens
    for number, target in enumerate(targets):
        text = prompt(words, seed=f"{plan.seed}/warm-up/{number}")
        answer = await ask(session, target, Ask(text, _WARM_UP_TOKENS, plan.chat))
        if answer.error is not None:
            raise BenchError(f"{target.name}: {target.url}: {answer.error}")
        if number == 0:
            words = words_for(plan.prompt_tokens, tried_words=words, got_tokens=answer.prompt_tokens)
    return words


async def _round(
    session: aiohttp.ClientSession, plan: Plan, target: Target, *, concurrency: int, number: int, words: int
) -> Round:
    async def client(index: int) -> list[Answer]:
        seeds = [f"{plan.seed}/{concurrency}/{number}/{index}/{turn}" for turn in range(plan.requests)]
        return [await ask(session, target, Ask(prompt(words, seed=seed), plan.max_tokens, plan.chat)) for seed in seeds]

    started_s = time.perf_counter()
    per_client = await asyncio.gather(*(client(index) for index in range(concurrency)))
    wall_s = time.perf_counter() - started_s
    answers = [answer for answers in per_client for answer in answers]
    return Round(
        target.name,
        concurrency,
        number,
        summarise(answers, wall_s),
        any(answer.counted for answer in answers),
        next((answer.error for answer in answers if answer.error), None),
    )
