"""What ``edged split`` shows of the budgets' day."""

import io

import pytest
from rich.console import Console

from edged.cli import budgets
from edged.core import BudgetSnapshot, DayMark, KeptMoney, Scope

MARK = DayMark(number=3, date=20_782, open_s=10.0, wall_s=0.0)


def a_budget(scope, name, limit, spent, **fields):
    return BudgetSnapshot(scope=scope, name=name, limit_uusd=limit, spent_uusd=spent, **fields)


MONEY = KeptMoney(
    MARK,
    (
        a_budget(Scope.ALL, "", 5_000_000, 1_500_000, estimated_uusd=250_000),
        a_budget(Scope.ROUTE, "auto", 1_000_000, 990_000, reserved_uusd=20_000),
        a_budget(Scope.ROUTE, "quiet", None, 0),
        a_budget(Scope.KEY, "kitchen", None, 12),
    ),
)


def test_every_budget_that_matters_has_a_line():
    """Spent, estimated, reserved, limit and what is left; who has no limit and spent nothing is left out."""
    console = Console(width=120, file=io.StringIO(), record=True)
    console.print(budgets.table(MONEY))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[0][:3] == ["budget", "of", "2026-11-25"]
    assert ["everybody", "$1.5", "$0.25", "$0", "$5", "$3.5"] in lines
    assert ["route", "auto", "$0.99", "$0", "$0.02", "$1", "$0"] in lines
    assert ["key", "kitchen", "$0.000012", "$0", "$0", "-", "-"] in lines
    assert not any("quiet" in line for line in lines)


@pytest.mark.parametrize("money", [KeptMoney(), KeptMoney(MARK, (a_budget(Scope.ALL, "", None, 0),))])
def test_without_any_money_there_is_no_table(money):
    """A box that never asked the cloud has nothing to show."""
    assert budgets.table(money) is None


def test_scripts_get_every_budget_in_dollars():
    """null is no limit."""
    document = budgets.as_json(MONEY)
    assert document["day"] == "2026-11-25"
    assert document["budgets"][0]["remaining_usd"] == 3.5
    assert document["budgets"][3] == {
        "scope": "key",
        "name": "kitchen",
        "spent_usd": 0.000012,
        "estimated_usd": 0.0,
        "reserved_usd": 0.0,
        "limit_usd": None,
        "remaining_usd": None,
    }
    assert budgets.as_json(KeptMoney()) is None
