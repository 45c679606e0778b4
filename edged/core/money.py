"""What is said of money: whose it is, how much of it is left, and which of it is promised to calls under way."""

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """Whose a budget is."""

    ALL = "all"
    ROUTE = "route"
    KEY = "key"


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSnapshot:
    """One budget's day in micro-dollars. ``limit_uusd`` None is unlimited; ``estimated`` is a part of ``spent``."""

    scope: Scope
    name: str
    limit_uusd: int | None
    spent_uusd: int
    estimated_uusd: int = 0
    reserved_uusd: int = 0

    @property
    def remaining_uusd(self) -> int | None:
        """What a new call may still reserve; None without a limit."""
        return None if self.limit_uusd is None else max(0, self.limit_uusd - self.spent_uusd - self.reserved_uusd)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """The worst case of one call, set aside before it is made. ``tenant`` is the API key's name."""

    id: str
    request_id: str
    upstream: str
    model: str
    route: str
    tenant: str
    amount_uusd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DayMark:
    """The current day of all budgets, as a restart needs it.

    ``number`` counts the days opened; ``date`` is its calendar day, counted from 1970; ``open_s`` is how long it has
    been open; ``wall_s`` is what the clock showed when this was noted.
    """

    number: int
    date: int
    open_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class KeptMoney:
    """What the ledger knows of the current day: its mark, what is spent, and calls whose end was never noted.

    ``mark`` is None where no day was ever noted.
    """

    mark: DayMark | None = None
    spent: tuple[BudgetSnapshot, ...] = ()
    open: tuple[Reservation, ...] = ()
