"""Small builders: only what matters to a rule shows in its test."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from edged.engine.decode import DecodeLoop, Stop
from edged.engine.protocol import Params
from edged.engine.sequence import Sequence
from edged.testing.engine import FakeRunner

WAIT_S = 10


def a_params(**changes) -> Params:
    return msgspec.structs.replace(Params.greedy(16), **changes)


@contextmanager
def on_its_thread(loop: DecodeLoop, runner: FakeRunner) -> Iterator[threading.Thread]:
    """The loop at work; it ends with the block, whatever the runner was told to wait for."""
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield thread
    finally:
        runner.resume()
        loop.post(Stop())
        thread.join(WAIT_S)
        assert not thread.is_alive()


def a_sequence(tokens, *, id="a", choice=0, tenant="", generated=(), **params) -> Sequence:  # noqa: A002 - its name
    return Sequence(
        id=id,
        choice=choice,
        tenant=tenant,
        tokens=[*tokens, *generated],
        prompt_tokens=len(tokens),
        params=a_params(**params),
        submitted_s=0.0,
    )
