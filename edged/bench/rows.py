"""The table of ``bench engine``: each line a kind of work, measured beside a reference in the same run."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table: medians, the median of the ratios pair by pair, and the aim."""

    work: str
    unit: str
    edged: float
    reference: float
    ratio: float
    aim: str
    reached: bool
    rounds: int


def print_rows(rows: Sequence[Row]) -> None:
    table = Table(title="edged beside llama-server, ratios of pairs measured in turn")
    for column in ("work", "edged", "reference", "ratio", "aim", ""):
        table.add_column(column)
    for row in rows:
        verdict = "reached" if row.reached else "missed"
        table.add_row(
            row.work, f"{row.edged:.3g} {row.unit}", f"{row.reference:.3g}", f"{row.ratio:.3g} x", row.aim, verdict
        )
    Console().print(table)
