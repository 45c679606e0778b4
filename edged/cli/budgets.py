"""The budgets' day as ``edged split`` shows it: spent, limit and what is left, by whom."""

from datetime import date
from typing import Any

from rich.table import Table

from edged.cli.reading import columns, printable
from edged.core import BudgetSnapshot, KeptMoney, Scope
from edged.ledger.story import dollars

_FIRST_DAY = date(1970, 1, 1).toordinal()


def table(money: KeptMoney) -> Table | None:
    """One line per budget that was used or has a limit; None where there is none."""
    shown = [budget for budget in money.spent if _matters(budget)]
    if money.mark is None or not shown:
        return None
    lines = columns(f"budget of {_day(money)}", "spent", "estimated", "reserved", "limit", "left")
    for budget in shown:
        amounts = (budget.spent_uusd, budget.estimated_uusd, budget.reserved_uusd, budget.limit_uusd)
        lines.add_row(_name(budget), *map(_dollars, (*amounts, budget.remaining_uusd)))
    return lines


def as_json(money: KeptMoney) -> dict[str, Any] | None:
    """The same as one object; None where no day was ever noted."""
    return None if money.mark is None else {"day": _day(money), "budgets": [_as_json(one) for one in money.spent]}


def _as_json(budget: BudgetSnapshot) -> dict[str, Any]:
    return {
        "scope": budget.scope.value,
        "name": budget.name,
        "spent_usd": budget.spent_uusd / 1e6,
        "estimated_usd": budget.estimated_uusd / 1e6,
        "reserved_usd": budget.reserved_uusd / 1e6,
        "limit_usd": None if budget.limit_uusd is None else budget.limit_uusd / 1e6,
        "remaining_usd": None if budget.remaining_uusd is None else budget.remaining_uusd / 1e6,
    }


def _matters(budget: BudgetSnapshot) -> bool:
    return budget.limit_uusd is not None or bool(budget.spent_uusd or budget.reserved_uusd)


def _name(budget: BudgetSnapshot) -> str:
    return "everybody" if budget.scope is Scope.ALL else f"{budget.scope} {printable(budget.name)}"


def _day(money: KeptMoney) -> str:
    try:
        return "" if money.mark is None else date.fromordinal(money.mark.date + _FIRST_DAY).isoformat()
    except (OverflowError, ValueError):
        return "an impossible date"


def _dollars(uusd: int | None) -> str:
    return "-" if uusd is None else dollars(uusd)
