"""``edged serve``: run the daemon."""

import argparse
import logging
import os
import sys
from typing import Any

import uvloop

from edged import config
from edged.errors import ConfigError, EdgedError


def add_parser(subparsers: "argparse._SubParsersAction[Any]", common: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser("serve", parents=[common], help="run the daemon in the foreground")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    parser.set_defaults(func=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT: 0 after a clean end, else one readable message and a status.

    78 (EX_CONFIG) where the config is wrong: trying again would not help. 1 where anything else is.
    """
    logging.basicConfig(
        level=arguments.log_level.upper(), stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s"
    )
    try:
        path = arguments.config or config.default_path()
        loaded = config.load(path)
        tasks = config.load_tasks(config.tasks_directory(loaded, path), loaded)
        # Here, because a bad config is told without the server and the engine's libraries.
        from edged.daemon import Daemon

        uvloop.run(Daemon(loaded, tasks=tasks).run())
    except EdgedError as exc:
        print(exc.message, file=sys.stderr)
        return os.EX_CONFIG if isinstance(exc, ConfigError) else 1
    except OSError as exc:
        print(f"cannot serve: {exc.strerror or exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the daemon handles it itself
        return 130
    return 0
