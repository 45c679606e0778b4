"""The storm itself: clients, failing upstreams and a tormentor around a real daemon, and then the evidence."""

import asyncio
import contextlib
import json
import random
import signal
import tempfile
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil

from edged import ledger
from edged.chaos.box import CLIENT_KEYS, MODELS, UPSTREAM_KEY, Box, daemon
from edged.chaos.client import PATIENCE_S, Heard, perform
from edged.chaos.evidence import Call, Evidence
from edged.chaos.live import LiveProbe, are_busy
from edged.chaos.plan import MARK, Ask, Faults, Planned, asks, mark
from edged.core import Record
from edged.testing.upstream import Reply, ScriptedUpstream, Seen

CLIENTS = 8
LOCAL_PROBES = 5
SETTLE_S = 30.0
_PAUSE_S = 0.3
_READY_SHARE = 0.8  # of the torments wait for a loaded model; the others may meet one that loads
_FIRST_TORMENT_S = (2.0, 5.0)
_TORMENT_EVERY_S = (6.0, 20.0)
_TRUST = {"far": "cloud", "near": "site"}
_PAGE_ROWS = 500


@dataclass(frozen=True, slots=True)
class Options:
    """One run. The same seed plans the same requests and faults; who meets whom also depends on the box."""

    seconds: float
    seed: int
    model: Path


@dataclass(slots=True)
class Result:
    """The evidence, and what was injected by kind."""

    evidence: Evidence
    injected: Counter[str]
    reloads: bool


class Upstream:
    """One scripted provider with its own log."""

    def __init__(self, seed: int, name: str) -> None:
        self.name = name
        self.log: list[tuple[Seen, Planned]] = []
        self._faults = Faults(seed, name)
        self.server = ScriptedUpstream(models=("m",), respond=self._respond)

    def _respond(self, seen: Seen) -> Reply:
        planned = self._faults.plan(seen.body)
        self.log.append((seen, planned))
        return planned.reply

    def calls(self) -> list[Call]:
        """Every call it saw, priced as ``box`` says: a micro-dollar per prompt token, two per completion token."""
        return [self._call(seen, planned) for seen, planned in self.log]

    def _call(self, seen: Seen, planned: Planned) -> Call:
        text = json.dumps(seen.body.get("messages"))
        found = MARK.search(text)
        usage = seen.counted or {}
        completion_tokens = usage.get("completion_tokens", 0) if seen.completed else 0
        return Call(
            upstream=self.name,
            mark=found[0] if found else "",
            fault=planned.fault,
            text=text,
            authorization=seen.headers.get("Authorization", ""),
            ended=seen.ended.is_set(),
            counted_uusd=usage.get("prompt_tokens", 0) + 2 * completion_tokens,
        )


class Storm:
    """One run around one daemon."""

    def __init__(self, options: Options, box: Box, upstreams: list[Upstream]) -> None:
        self._options = options
        self._box = box
        self._upstreams = upstreams
        self._asked: list[Ask] = []
        self._heard: list[Heard] = []
        self._injected: Counter[str] = Counter()
        self._local = 0
        self._disturbed = False

    async def run(self, stack: AsyncExitStack) -> Result:
        """Measure, storm, let it settle, cut the network, end; ``stack`` holds the upstreams and closes them."""
        box = self._box
        await box.ready()
        reloads = box.reloads
        before_s = await self._local_answers_s()
        probe = LiveProbe(box)
        started_s = time.monotonic()
        async with probe.running():
            await self._rage()
            await self._settle()
        minutes = (time.monotonic() - started_s) / 60
        await stack.aclose()
        self._injected["network_gone"] += 1
        cut_off_s = await self._local_answers_s()
        evidence = await self._rest(before_s, cut_off_s, probe, minutes)
        return Result(evidence, self._counted(), reloads)

    async def _rage(self) -> None:
        """Everything at once for so many seconds; every request is heard to its end."""
        until_s = time.monotonic() + self._options.seconds
        tormentor = asyncio.create_task(self._torment())
        await asyncio.gather(*(self._client(number, until_s) for number in range(CLIENTS)))
        tormentor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await tormentor
        for worker in self._box.workers():
            with contextlib.suppress(psutil.Error):
                worker.resume()

    async def _client(self, number: int, until_s: float) -> None:
        dice = random.Random(f"{self._options.seed}/pauses/{number}")  # noqa: S311 - a plan, not a secret
        for ask in asks(self._options.seed, number, models=MODELS, keys=len(CLIENT_KEYS)):
            if time.monotonic() >= until_s or not self._box.is_running:
                return
            self._heard.append(await self._ask(ask))
            busy = self._heard[-1].status >= 429  # noqa: PLR2004 - 429 and the 5xx
            await asyncio.sleep(dice.uniform(0, _PAUSE_S * (4 if busy else 1)))

    async def _ask(self, ask: Ask) -> Heard:
        self._asked.append(ask)
        return await perform(self._box.port, ask, CLIENT_KEYS[ask.key])

    async def _torment(self) -> None:
        """Kill, stop and pause workers at random; reload where the daemon can."""
        dice = random.Random(f"{self._options.seed}/torment")  # noqa: S311 - a plan, not a secret
        pause = _FIRST_TORMENT_S
        torments = ("worker_killed", "worker_stopped", "worker_paused", *(["reload"] if self._box.reloads else []))
        while True:
            await asyncio.sleep(dice.uniform(*pause))
            pause = _TORMENT_EVERY_S
            if dice.random() < _READY_SHARE and not await asyncio.to_thread(self._box.is_model_ready):
                continue
            torment, pause_s = dice.choice(torments), dice.uniform(0.2, 1.0)
            if torment == "reload":
                self._box.signal(signal.SIGHUP)
                self._injected[torment] += 1
                continue
            for worker in self._box.workers()[:1]:
                with contextlib.suppress(psutil.Error):
                    await _hurt(worker, torment, pause_s)
                    self._injected[torment] += 1

    async def _settle(self) -> None:
        """Wait until the daemon says that nothing is going on and every upstream has noticed the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S):
                while self._box.is_running and not await self._is_quiet():  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.1)

    async def _is_quiet(self) -> bool:
        gauges = await asyncio.to_thread(self._box.gauges)
        names = ("edged_in_flight_requests", "edged_audits_open", 'edged_model_running{model="small"}')
        is_ready = gauges.get('edged_model_ready{model="small"}') == 1
        ended = all(seen.ended.is_set() for upstream in self._upstreams for seen, _ in upstream.log)
        return is_ready and ended and not any(gauges.get(name) for name in names)

    async def _local_answers_s(self) -> tuple[float, ...]:
        """How long a few short answers of the pinned local model take, one after the other."""
        self._disturbed = self._disturbed or await are_busy()
        found = []
        for _ in range(LOCAL_PROBES):
            self._local += 1
            ask = Ask(
                mark=mark(self._local), model="small", key=0, label="local_only", form="text", stream=True, max_tokens=8
            )
            heard = await self._ask(ask)
            self._heard.append(heard)
            found.append(heard.total_s if heard.status == 200 else PATIENCE_S)  # noqa: PLR2004 - OK
        self._disturbed = self._disturbed or await are_busy()
        return tuple(found)

    async def _rest(
        self, before_s: tuple[float, ...], cut_off_s: tuple[float, ...], probe: LiveProbe, minutes: float
    ) -> Evidence:
        """Look at the daemon at rest, end it, and read what it kept."""
        box = self._box
        await self._settle()
        evidence = Evidence(
            secrets=(*CLIENT_KEYS, UPSTREAM_KEY),
            live_s=tuple(probe.seconds),
            live_set_aside_s=tuple(probe.set_aside_s),
            local_before_s=before_s,
            local_cut_off_s=cut_off_s,
            local_disturbed=self._disturbed,
            minutes=minutes,
        )
        if box.is_running:
            evidence.cpu_at_rest = await asyncio.to_thread(_cpu_share, box.workers())
            evidence.gauges = await asyncio.to_thread(box.gauges)
            evidence.budgets = tuple(await asyncio.to_thread(box.budgets))
            evidence.connections = box.client_connections()
            await asyncio.to_thread(box.end)
        evidence.exit_code, evidence.leftovers, evidence.log = box.exit_code, box.leftovers, box.log
        evidence.asks, evidence.heard = tuple(self._asked), tuple(self._heard)
        evidence.calls = tuple(call for upstream in self._upstreams for call in upstream.calls())
        evidence.records = await asyncio.to_thread(_records, box.ledger)
        return evidence

    def _counted(self) -> Counter[str]:
        """Everything that was injected, by kind: faults of upstreams, manners of clients, torments."""
        found = Counter(self._injected)
        found.update(planned.fault for upstream in self._upstreams for _, planned in upstream.log)
        found.update("client_left" for heard in self._heard if heard.left)
        found.update("client_slow" for heard in self._heard if heard.ask.read_pause_s)
        del found["none"]
        return found


async def run(options: Options) -> Result:
    """A whole storm in a directory of its own. Raises: RuntimeError where the daemon does not start, TimeoutError."""
    with tempfile.TemporaryDirectory(prefix="edged-chaos-") as directory:
        async with AsyncExitStack() as stack:
            upstreams = [Upstream(options.seed, name) for name in _TRUST]
            for upstream in upstreams:
                await stack.enter_async_context(upstream.server)
            urls = {upstream.name: (upstream.server.base_url, _TRUST[upstream.name]) for upstream in upstreams}
            with daemon(Path(directory), options.model, urls) as box:
                return await Storm(options, box, upstreams).run(stack)


async def _hurt(worker: psutil.Process, torment: str, pause_s: float) -> None:
    if torment == "worker_killed":
        worker.kill()
        return
    worker.suspend()
    if torment == "worker_paused":
        await asyncio.sleep(pause_s)
        worker.resume()


def _cpu_share(workers: list[psutil.Process]) -> float:
    """The share of a core these processes use over half a second."""

    def used_s() -> float:
        with contextlib.suppress(psutil.Error):
            return sum(sum(worker.cpu_times()[:2]) for worker in workers)
        return 0.0

    before_s = used_s()
    time.sleep(0.5)
    return max(0.0, used_s() - before_s) / 0.5


def _records(path: Path) -> tuple[Record, ...]:
    found: list[Record] = []
    seq = 0
    for _ in count():
        page = ledger.after(path, seq, limit=_PAGE_ROWS)
        if not page:
            break
        found += (record for _, record in page)
        seq = page[-1][0]
    return tuple(found)
