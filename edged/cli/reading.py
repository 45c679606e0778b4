"""What the commands that read the ledger share: its path, ``--since``, safe printing, and errors as one line."""

import argparse
import functools
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from edged import config
from edged.core import Record
from edged.errors import ConfigError, LedgerError

WIDE_COLUMNS = 200
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def command(run: Callable[[argparse.Namespace], None]) -> Callable[[argparse.Namespace], int]:
    """Give a command its exit status: 0, or 1 with one readable line; a closed pipe or Ctrl-C ends it quietly."""

    @functools.wraps(run)
    def guarded(args: argparse.Namespace) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        try:
            run(args)
            sys.stdout.flush()
        except (ConfigError, LedgerError) as exc:
            print(f"edged: {printable(exc.message)}", file=sys.stderr)
            return 1
        except BrokenPipeError:
            _forget_stdout()
        except KeyboardInterrupt:
            return 130
        return 0

    return guarded


def _forget_stdout() -> None:
    """Point stdout nowhere, so that the interpreter's own last flush cannot fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def columns(first: str, *numbers: str) -> Table:
    """An empty table: a column of names, which may fold, and columns of numbers, which may not."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, overflow="fold")
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def ledger_path(args: argparse.Namespace) -> Path:
    """The ledger of the config the user means. Raises: ConfigError."""
    return config.load(Path(args.config or config.default_path())).ledger_path


def since(text: str) -> float | None:
    """``90s``, ``15m``, ``24h``, ``7d``, ``2w`` as seconds; ``all`` is None. For argparse's ``type``."""
    if text == "all":
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError(f'"{printable(text)}" is not a time such as 90s, 15m, 24h, 7d or all')
    return float(match[1]) * _UNITS_S[match[2]]


def console() -> Console:
    """Where tables go: coloured on a terminal; plain, and wide enough for any row, in a pipe."""
    if sys.stdout.isatty():
        return Console(highlight=False, markup=False, emoji=False)
    return Console(highlight=False, markup=False, emoji=False, color_system=None, width=WIDE_COLUMNS)


def printable(text: str) -> str:
    """The text with everything that could steer a terminal replaced: clients and providers chose parts of it."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text.replace("\t", "    "))


def as_json(record: Record) -> str:
    """A record as one line of JSON: its fields under their own names, and the cost in dollars."""
    return json.dumps(asdict(record) | {"cost_usd": record.cost_uusd / 1e6})
