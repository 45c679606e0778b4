"""A daemon that loads the model given as its argument, prints the worker's pid and waits to be killed."""

import asyncio
import sys
from pathlib import Path

from real_engine import running


async def main() -> None:
    async with running(Path(sys.argv[1])) as engine:
        print(engine.pid, flush=True)  # noqa: T201 - the test reads it
        await asyncio.sleep(600)


asyncio.run(main())
