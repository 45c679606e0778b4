"""The health of the upstreams: who may be asked now, what each call said, and who can be reached at all.

Three kinds of trouble, kept apart: the way there (probed for free, in the background), our key (asked about rarely) and
the model behind it (a circuit breaker fed by calls). A provider's own "not before" comes on top.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from edged.config import RetriesConfig
from edged.errors import EdgedError, UpstreamBusy, UpstreamDenied, UpstreamError, UpstreamOffline
from edged.routing.breaker import KEY_SETTINGS, Breaker, BreakerSettings, Circuit, Finding, Permit, finding
from edged.routing.offline import Uplink
from edged.routing.retries import RetryBudget
from edged.upstream.client import UpstreamClient

log = logging.getLogger(__name__)

PROBE_EVERY_S = (1.5, 2.5)
"""While anything is unreachable; drawn anew each time, so that many boxes do not knock in step."""
_WONDER_SHARE = 1 / 3
"""Of the connect time-out: a call without a first token by then makes us wonder whether the way is open, and probes
know it of every upstream before the call gives up."""
_HEARD_S = 5.0
_CONFIRM_S = 0.2
_RETRY_S = 5.0


class UpstreamState(StrEnum):
    """Where one ``UPSTREAM/model`` stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    COOLING = "cooling"
    UNAUTHORISED = "unauthorised"
    OFFLINE = "offline"


@dataclass(slots=True, eq=False)
class _Target:
    upstream: str
    model: str
    breaker: Breaker
    access: Breaker
    key: Breaker
    wonder_s: float
    shown: UpstreamState = UpstreamState.CLOSED


@dataclass(slots=True, eq=False)
class Call:
    """One call under way."""

    name: str
    answer: Permit
    access: Permit
    key: Permit
    slow: asyncio.TimerHandle


class Upstreams:
    """Every configured ``UPSTREAM/model``. Each ``begin`` is followed by one ``end``; ``tend`` runs beside."""

    def __init__(
        self,
        client: UpstreamClient,
        *,
        retries: RetriesConfig | None = None,
        breaker: BreakerSettings | None = None,
        keys: BreakerSettings = KEY_SETTINGS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._clock = clock
        self._targets: dict[str, _Target] = {}
        for config in client.upstreams:
            key, wonder_s = Breaker(keys), config.connect_timeout_s * _WONDER_SHARE
            for model in config.models:
                target = _Target(config.name, model.name, Breaker(breaker), Breaker(keys), key, wonder_s)
                self._targets[f"{config.name}/{model.name}"] = target
        self.uplink = Uplink([config.name for config in client.upstreams])
        retries = retries or RetriesConfig()
        self.retries = RetryBudget(share=retries.share, floor_per_minute=retries.floor_per_minute)
        self._late_since_s: dict[str, float] = {}
        self._doubt = asyncio.Event()
        self._tended = False
        self._offline_since_s: float | None = None

    def __repr__(self) -> str:
        states = {name: state.value for name, state in self.states().items()}
        return f"Upstreams({states}, {self.retries!r})"

    # -- who may be asked ---------------------------------------------------------------------------------------------

    @property
    def offline(self) -> bool:
        """No upstream at all can be reached."""
        return self._tended and self.uplink.offline

    def ready(self, names: Sequence[str]) -> list[str]:
        """Those that may be asked now, in order; where failures keep all away, one may be asked now and then."""
        ready = [name for name in names if self.refusal(name) is None]
        return ready or [name for name in names if self.refusal(name, gentle=True) is None][:1]

    def refusal(self, name: str, *, gentle: bool = False) -> UpstreamError | None:
        """Why this one is not asked now; None where it may be.

        1. It cannot be reached.
        2. It refuses our key, or this model to us.
        3. It asked to be left alone.
        4. It failed too often.
        """
        target, now_s = self._targets[name], self._clock()
        if self._is_down(target.upstream):  # 1
            what = f"the upstream {target.upstream!r} cannot be reached from here"
            return UpstreamOffline(what, upstream=target.upstream, retry_after_s=_RETRY_S)
        denied_s = max(target.key.wait_s(now_s=now_s), target.access.wait_s(now_s=now_s))
        if denied_s > 0:  # 2
            what = f"the upstream {name!r} refuses our key; it is asked again in {denied_s:.0f} s"
            return UpstreamDenied(what, upstream=target.upstream, retry_after_s=denied_s)
        cooldown_s = self._client.cooldown_s(target.upstream, target.model)
        if cooldown_s > 0:  # 3
            what = f"the upstream {target.upstream!r} asked to be left alone for {cooldown_s:.1f} s"
            return UpstreamBusy(what, upstream=target.upstream, retry_after_s=cooldown_s)
        wait_s = target.breaker.wait_s(now_s=now_s, gentle=gentle)
        if wait_s > 0:  # 4
            what = f"the upstream {name!r} failed too often; it is asked again in {wait_s:.1f} s"
            return UpstreamBusy(what, upstream=target.upstream, retry_after_s=wait_s)
        return None

    def why_not(self, names: Iterable[str]) -> UpstreamError | None:
        """What a client hears where none may be asked: the refusal that ends first."""
        refusals = [refusal for name in names if (refusal := self.refusal(name)) is not None]
        return min(refusals, key=lambda refusal: refusal.retry_after_s or 0.0, default=None)

    def unreachable(self, names: Iterable[str]) -> bool:
        """Whether none of these can be reached."""
        return all(self._is_down(self._targets[name].upstream) for name in names)

    def state(self, name: str) -> UpstreamState:
        """The first of the reasons ``refusal`` knows, whether or not the time for another try has come."""
        target, now_s = self._targets[name], self._clock()
        if self._is_down(target.upstream):
            return UpstreamState.OFFLINE
        if any(b.state(now_s=now_s) is not Circuit.CLOSED for b in (target.key, target.access)):
            return UpstreamState.UNAUTHORISED
        if self._client.cooldown_s(target.upstream, target.model) > 0:
            return UpstreamState.COOLING
        return UpstreamState(target.breaker.state(now_s=now_s).value)

    def states(self) -> Mapping[str, UpstreamState]:
        return {name: self.state(name) for name in self._targets}

    def _is_down(self, upstream: str) -> bool:
        """Known to be unreachable, while somebody looks whether it still is: without probes, calls have to."""
        return self._tended and self.uplink.is_down(upstream)

    def count_request(self) -> None:
        """A request is about to make its first call."""
        self.retries.request(now_s=self._clock())

    def may_retry(self) -> bool:
        """Leave for one more call of a request, taken from the budget."""
        return self.retries.take(now_s=self._clock())

    # -- what calls say -----------------------------------------------------------------------------------------------

    def begin(self, name: str) -> Call:
        """A call to ``name`` is made now."""
        target, now_s = self._targets[name], self._clock()
        return Call(
            name,
            answer=target.breaker.begin(now_s=now_s),
            access=target.access.begin(now_s=now_s),
            key=target.key.begin(now_s=now_s),
            slow=asyncio.get_running_loop().call_later(target.wonder_s, self._wonder, target.upstream, now_s),
        )

    def end(self, call: Call, error: EdgedError | None) -> None:
        """The call has its first token, or failed before it."""
        target, found = self._targets[call.name], finding(error)
        self._judge(call, found)
        if found is Finding.UNREACHED:
            self._missed(target.upstream)
        elif error is None or (isinstance(error, UpstreamError) and error.answered is not None):
            self._reached(target.upstream)
        elif found is Finding.BAD:
            self._wonder(target.upstream, self._clock())
        if error is not None or target.shown is not UpstreamState.CLOSED:
            self._tell([call.name])

    def drop(self, call: Call) -> None:
        """The call was given up for reasons of our own."""
        self._judge(call, Finding.NOTHING)

    def broke_off(self, name: str) -> None:
        """An answer ended with an error after its first token."""
        target = self._targets[name]
        target.breaker.bad(now_s=self._clock())
        self._wonder(target.upstream, self._clock())
        self._tell([name])

    def _judge(self, call: Call, found: Finding) -> None:
        call.slow.cancel()
        target, now_s = self._targets[call.name], self._clock()
        is_good = found is Finding.GOOD
        target.breaker.end(call.answer, good={Finding.GOOD: True, Finding.BAD: False}.get(found), now_s=now_s)
        target.access.end(call.access, good=True if is_good else _no(found is Finding.FORBIDDEN), now_s=now_s)
        target.key.end(call.key, good=True if is_good else _no(found is Finding.DENIED), now_s=now_s)

    # -- the way there ------------------------------------------------------------------------------------------------

    async def tend(self) -> None:
        """While anything is in doubt, find out who can be reached; for ever."""
        self._tended = True
        try:
            while True:
                await self._doubt.wait()
                self._doubt.clear()
                await self._probe()
                while self.uplink.suspects:
                    every_s = random.uniform(*PROBE_EVERY_S)  # noqa: S311 - jitter, no secret
                    await asyncio.sleep(_CONFIRM_S if self.uplink.is_open_question else every_s)
                    await self._probe()
        finally:
            self._tended = False

    async def _probe(self) -> None:
        """One round: every suspect, and all others not heard from lately."""
        now_s = self._clock()
        late = {name for name, since_s in self._late_since_s.items() if self.uplink.is_quiet(name, since_s=since_s)}
        suspects = {*self.uplink.suspects, *late}
        self._late_since_s.clear()
        names = sorted(suspects | self.uplink.quiet(since_s=now_s - _HEARD_S)) if suspects else []
        for name, reaches in zip(names, await asyncio.gather(*map(self._client.reaches, names)), strict=True):
            (self._reached if reaches else self._missed)(name)
        self._tell(self._targets)

    def _wonder(self, upstream: str, since_s: float) -> None:
        """Nothing good has come since then: look, unless another call has heard from it."""
        self._late_since_s[upstream] = since_s
        self._doubt.set()

    def _missed(self, upstream: str) -> None:
        self.uplink.missed(upstream)
        self._doubt.set()
        self._tell_uplink()

    def _reached(self, upstream: str) -> None:
        """Back after an outage, it begins anew: what failed meanwhile was the way there."""
        was_down = self._is_down(upstream)
        self.uplink.reached(upstream, now_s=self._clock())
        for target in self._targets.values():
            if was_down and target.upstream == upstream:
                target.breaker.reset()
        self._tell_uplink()

    # -- the log ------------------------------------------------------------------------------------------------------

    def _tell_uplink(self) -> None:
        if self.offline and self._offline_since_s is None:
            self._offline_since_s = self._clock()
            log.warning("offline: no upstream can be reached; requests stay on the box until one can")
        elif not self.offline and self._offline_since_s is not None:
            log.warning("online again after %.1f s", self._clock() - self._offline_since_s)
            self._offline_since_s = None

    def _tell(self, names: Iterable[str]) -> None:
        """One line for each change of state."""
        for name in names:
            target, state = self._targets[name], self.state(name)
            if state is target.shown:
                continue
            level = logging.INFO if state is UpstreamState.CLOSED else logging.WARNING
            log.log(level, "upstream=%s state=%s was=%s%s", name, state, target.shown, _ADVICE.get(state, ""))
            target.shown = state


_ADVICE = {
    UpstreamState.UNAUTHORISED: ": it refuses our key or account (401, 402, 403); check api_key of this [[upstream]]"
}


def _no(is_bad: bool) -> bool | None:
    return False if is_bad else None
