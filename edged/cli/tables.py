"""Tables for people and for pipes."""

import sys
from collections.abc import Sequence

Columns = tuple[str, ...]


def print_table(header: Columns, lines: Sequence[Columns]) -> None:
    """Draw it on a terminal, else print plain aligned columns."""
    if not sys.stdout.isatty():
        print(plain(header, lines))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, box=SIMPLE, pad_edge=False)
    for line in lines:
        table.add_row(*map(Text, line))
    Console().print(table)


def plain(header: Columns, lines: Sequence[Columns]) -> str:
    """Left-aligned columns, two blanks between them."""
    rows = [header, *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
