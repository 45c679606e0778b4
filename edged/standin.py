"""A stand-in cloud for demonstrations: ``python -m edged.standin --port N``.

An OpenAI-compatible provider on loopback whose every answer says that it is a stand-in. It costs nothing, needs no key,
and ends with SIGTERM, SIGINT or its parent process.
"""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from edged.testing.upstream import Reply, ScriptedUpstream, Seen, last_words

MODEL = "stand-in-model"
MARK = "[stand-in cloud]"
_CHUNK_DELAY_S = 0.02
_PARENT_POLL_S = 0.5
_QUOTED_CHARACTERS = 200


def answer(seen: Seen) -> Reply:
    """A scripted answer, marked as one."""
    question = " ".join(last_words(seen.body).split())[:_QUOTED_CHARACTERS]
    text = f'{MARK} This is a scripted answer; no real model was asked. The question was: "{question}"'
    return Reply(text=text, model=MODEL, chunk_delay_s=_CHUNK_DELAY_S, headers={"X-Stand-In": "true"})


async def serve(port: int) -> None:
    """Answer on ``127.0.0.1:port`` until told to stop. Prints one line when ready."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    orphaned = asyncio.create_task(_stop_with_parent(stop))
    async with ScriptedUpstream(port=port, respond=answer, models=(MODEL,), keep_log=100) as upstream:
        sys.stdout.write(f"stand-in cloud ready: {upstream.base_url} model {MODEL}\n")
        sys.stdout.flush()
        await stop.wait()
    orphaned.cancel()


async def _stop_with_parent(stop: asyncio.Event) -> None:
    """A process whose parent died gets another one."""
    parent = os.getppid()
    while os.getppid() == parent:  # noqa: ASYNC110 - the system offers no event for this that works everywhere
        await asyncio.sleep(_PARENT_POLL_S)
    stop.set()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Exit status 1 where the port cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m edged.standin", description="A stand-in cloud on loopback.")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 takes a free one")
    port = parser.parse_args(arguments).port
    if not 0 <= port <= 65_535:  # noqa: PLR2004 - the range of ports
        parser.error("--port: must be between 0 and 65535")
    try:
        asyncio.run(serve(port))
    except OSError as exc:
        sys.stderr.write(f"stand-in cloud: port {port} cannot be used: {exc.strerror}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
