"""What was measured of the local models, the upstreams and the box's heat, and what the policy learns of it."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from edged.config import Config
from edged.core import Outcome, Target
from edged.dispatch import sensors
from edged.dispatch.trace import AttemptTrace, Trace
from edged.routing.heat import Reading, Throttle
from edged.routing.latency import Learned
from edged.routing.pace import LocalPace, UpstreamPace
from edged.routing.policy import Terms

log = logging.getLogger(__name__)

SENSE_EVERY_S = 10.0
_PACED_TOKENS = 8
"""Fewer completion tokens say nothing of the time per token."""

_TOO_LATE = frozenset({"deadline_exceeded", "first_token_timeout"})
"""A call given up for these took at least as long as it lasted."""


class Forecasts:
    """One pace per local model and per ``UPSTREAM/model``. ``tend`` reads the sensors beside."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], float] = time.monotonic,
        read: Callable[[], Reading] = sensors.read,
    ) -> None:
        self._clock = clock
        self._read = read
        self.throttle = Throttle()
        self.local = {model.name: LocalPace() for model in config.models}
        self.upstreams = {
            f"{upstream.name}/{model.name}": UpstreamPace.assuming(
                ttft_s=upstream.expected_ttft_s, token_s=1 / upstream.expected_tokens_per_s
            )
            for upstream in config.upstreams
            for model in upstream.models
        }

    def __repr__(self) -> str:
        return f"Forecasts({self.throttle.heat}, local={list(self.local)}, upstreams={list(self.upstreams)})"

    def inform(self, allowed: Terms, *, model: str, ready: Sequence[str]) -> Terms:
        """The terms with what is known of the local model and of the first upstream that would be asked."""
        outlook = self.upstreams[ready[0]].outlook(now_s=self._clock()) if ready else None
        return replace(allowed, learned=self._learned(model), outlook=outlook)

    def _learned(self, model: str) -> Learned:
        pace, now_s = self.local.get(model), self._clock()
        speed = self.throttle.heat.speed
        if pace is None:
            return Learned(speed=speed)
        return Learned(pace.curve(now_s=now_s), pace.current_bias(now_s=now_s), speed)

    def note(self, trace: Trace) -> None:
        """Learn from a request that is over."""
        for attempt in trace.attempts:
            if attempt.target is Target.CLOUD:
                self._note_call(attempt)
            elif attempt.backend in self.local:
                self._note_local(attempt, self.local[attempt.backend])

    def _note_call(self, attempt: AttemptTrace) -> None:
        pace, now_s = self.upstreams.get(attempt.public_name), self._clock()
        if pace is None or attempt.ended_s is None:
            return
        if attempt.first_token_s is not None:
            pace.ttft.note(attempt.first_token_s - attempt.started_s, now_s=now_s)
        elif attempt.error in _TOO_LATE:
            pace.ttft.note(attempt.ended_s - attempt.started_s, now_s=now_s)
        tokens = attempt.usage.completion_tokens if attempt.usage else 0
        if attempt.outcome is Outcome.SERVED and attempt.first_token_s is not None and tokens >= _PACED_TOKENS:
            last_s = attempt.last_chunk_s or attempt.ended_s
            pace.token.note((last_s - attempt.first_token_s) / tokens, now_s=now_s)

    def _note_local(self, attempt: AttemptTrace, pace: LocalPace) -> None:
        now_s = self._clock()
        usage, prefill_s = attempt.usage, attempt.timings.prefill_s
        if usage is not None and prefill_s:
            cached = usage.cached_tokens
            tokens, speed = usage.prompt_tokens - cached, self.throttle.heat.speed
            pace.note_prompt(start_tokens=cached, tokens=tokens, prefill_s=prefill_s, now_s=now_s, speed=speed)
        if attempt.raw_wait_s is not None and attempt.first_token_s is not None:
            measured_s = attempt.first_token_s - attempt.reviewed_s
            pace.note_wait(predicted_s=attempt.raw_wait_s, measured_s=measured_s, now_s=now_s)

    async def tend(self) -> None:
        """Read the sensors every few seconds, for ever; a change of state is a line in the log."""
        while True:
            was = self.throttle.heat.throttled
            heat = self.throttle.note(await asyncio.to_thread(self._read), now_s=self._clock())
            if heat.throttled is not was:
                log.warning(
                    "heat throttled=%s temperature_c=%s speed=%.2f", heat.throttled, heat.temperature_c, heat.speed
                )
            await asyncio.sleep(SENSE_EVERY_S)
