"""``edged serve``: run the daemon."""

import argparse
import asyncio
import logging
import sys
from typing import Any

from edged import config
from edged.errors import EdgedError


def add_parser(subparsers: "argparse._SubParsersAction[Any]", common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser("serve", parents=[common], help="run the daemon in the foreground")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT: 0 after a clean end, 1 with one readable message where it cannot start."""
    logging.basicConfig(
        level=arguments.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        loaded = config.load(arguments.config or config.default_path())
        from edged.daemon import (
            Daemon,
        )  # the server and the engine's libraries are not needed to say that a config is bad

        asyncio.run(Daemon(loaded).run())
    except EdgedError as exc:
        print(exc.message, file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"cannot serve: {exc.strerror or exc}", file=sys.stderr)
        return 1
    return 0
