"""The commands. Each module registers its own parser and returns an exit code."""

import argparse
import sys
from pathlib import Path

from edged import __version__
from edged.cli import audit, calibrate, check, explain, models, serve, split, tail, tasks

_COMMANDS = (serve, check, models, calibrate, tasks, split, tail, explain, audit)


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code is 0 where it did what was asked."""
    arguments = _parser().parse_args(argv)
    code: int = arguments.func(arguments)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edged",
        description="Answers from small local models; asks a cloud provider only when it must, and says why.",
    )
    parser.add_argument("--version", action="version", version=f"edged {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config",
        type=Path,
        metavar="PATH",
        help="the config file (default: $EDGED_CONFIG, /etc/edged/edged.toml, then ~/.config/edged/edged.toml)",
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(subparsers, common)
    return parser


if __name__ == "__main__":
    sys.exit(main())
