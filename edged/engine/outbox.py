"""Tokens on their way out: a reader gets a few at a time, so that the box computes instead of waking processes."""

from collections.abc import Callable, Iterable

import msgspec

from edged.engine.protocol import Emission, StepDone

STREAM_INTERVAL_S = 0.03
"""Tokens of steps that follow each other faster than this travel together: nobody reads faster, and on a small box the
daemon and the client wake on the very cores that compute the next token."""


class Outbox:
    """Joins what several steps add to a choice. First and last tokens never wait. One owner: the decode thread."""

    def __init__(self, publish: Callable[[StepDone], None]) -> None:
        self._publish = publish
        self._held: dict[tuple[str, int], Emission] = {}
        self._sent_s = 0.0

    def add(self, emissions: Iterable[Emission], *, now_s: float, urgent: bool) -> None:
        """Take one step's news; send everything held where it is ``urgent``, is an ending, or the interval is over."""
        for emission in emissions:
            key = (emission.id, emission.choice)
            held = self._held.get(key)
            self._held[key] = _joined(held, emission) if held else emission
            urgent = urgent or emission.finish is not None
        if urgent or now_s - self._sent_s >= STREAM_INTERVAL_S:
            self._sent_s = now_s
            self.flush()

    def flush(self) -> None:
        """Send what is held: the next step lasts long, or there is none."""
        if self._held:
            self._publish(StepDone(tuple(self._held.values())))
            self._held = {}

    def forget(self, request_id: str) -> None:
        """Drop what is held for a request that ended otherwise."""
        self._held = {key: emission for key, emission in self._held.items() if emission.id != request_id}


def _joined(first: Emission, then: Emission) -> Emission:
    return msgspec.structs.replace(
        then,
        text=first.text + then.text,
        tokens=first.tokens + then.tokens,
        tool_calls=first.tool_calls + then.tool_calls,
    )
