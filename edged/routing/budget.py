"""What may still be spent today: by everybody, by route, by API key. Reserved before a call, settled after it. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from edged.core import BudgetSnapshot, Reservation, Scope


class Account(NamedTuple):
    """Who a budget belongs to; the one of everybody together has no name."""

    scope: Scope
    name: str = ""

    def __str__(self) -> str:
        return f"the {self.scope} {self.name!r}" if self.name else "everybody together"


EVERYBODY = Account(Scope.ALL)


@dataclass(frozen=True, slots=True)
class Hold:
    """A reservation with the accounts it is taken from, and the output limit per choice that it pays for."""

    reservation: Reservation
    accounts: tuple[Account, ...]
    max_tokens: int

    @property
    def amount_uusd(self) -> int:
        return self.reservation.amount_uusd


@dataclass(slots=True)
class Budget:
    """One account's day in micro-dollars; ``limit_uusd`` None is unlimited. ``estimated`` is a part of ``spent``."""

    limit_uusd: int | None
    spent_uusd: int = 0
    estimated_uusd: int = 0
    reserved_uusd: int = field(default=0)

    def has_room_for(self, amount_uusd: int) -> bool:
        """What is free always fits, also where a provider has charged more than was reserved."""
        if amount_uusd == 0:
            return True
        return self.limit_uusd is None or self.spent_uusd + self.reserved_uusd + amount_uusd <= self.limit_uusd

    def settle(self, reserved_uusd: int, spent_uusd: int, *, estimated: bool = False) -> None:
        """Replace a reservation by what the call really cost."""
        self.reserved_uusd -= reserved_uusd
        self.spent_uusd += spent_uusd
        self.estimated_uusd += spent_uusd if estimated else 0


class Budgets:
    """Every account's budget; one reservation is taken from all it concerns, or from none."""

    def __init__(self, limits_uusd: Mapping[Account, int | None]) -> None:
        self._budgets = {account: Budget(limit) for account, limit in limits_uusd.items()}

    def __repr__(self) -> str:
        return f"Budgets({', '.join(f'{a.scope} {a.name}: {b.spent_uusd}' for a, b in self._budgets.items())})"

    def __getitem__(self, account: Account) -> Budget:
        return self._budgets[account]

    def known(self, accounts: Iterable[Account]) -> tuple[Account, ...]:
        """Those of the accounts that are kept at all."""
        return tuple(account for account in accounts if account in self._budgets)

    def is_limited(self, accounts: Sequence[Account]) -> bool:
        return any(self._budgets[account].limit_uusd is not None for account in accounts)

    def reserve(self, accounts: Sequence[Account], amount_uusd: int) -> Account | None:
        """Set the worst case of one call aside in all of them, or in none and return the account that is full."""
        for account in accounts:
            if not self._budgets[account].has_room_for(amount_uusd):
                return account
        for account in accounts:
            self._budgets[account].reserved_uusd += amount_uusd
        return None

    def settle(self, accounts: Sequence[Account], reserved_uusd: int, spent_uusd: int, *, estimated: bool) -> None:
        """Replace a reservation by what the call really cost."""
        for account in accounts:
            self._budgets[account].settle(reserved_uusd, spent_uusd, estimated=estimated)

    def restore(self, kept: BudgetSnapshot) -> None:
        """Take over what an earlier run had spent today; an account no longer configured is forgotten."""
        if budget := self._budgets.get(Account(kept.scope, kept.name)):
            budget.spent_uusd, budget.estimated_uusd = kept.spent_uusd, kept.estimated_uusd

    def exhaust(self) -> None:
        """Nothing is known of today's spend, so whatever has a limit has reached it."""
        for budget in self._budgets.values():
            if budget.limit_uusd is not None:
                budget.spent_uusd = budget.estimated_uusd = budget.limit_uusd

    def new_day(self) -> None:
        """Nothing is spent yet; calls under way stay reserved and will count as spent today."""
        for budget in self._budgets.values():
            budget.spent_uusd = budget.estimated_uusd = 0

    def snapshot(self, accounts: Iterable[Account] | None = None) -> tuple[BudgetSnapshot, ...]:
        """These accounts, or all in the order of the config."""
        return tuple(self._snapshot(account) for account in (self._budgets if accounts is None else accounts))

    def _snapshot(self, account: Account) -> BudgetSnapshot:
        budget = self._budgets[account]
        return BudgetSnapshot(
            scope=account.scope,
            name=account.name,
            limit_uusd=budget.limit_uusd,
            spent_uusd=budget.spent_uusd,
            estimated_uusd=budget.estimated_uusd,
            reserved_uusd=budget.reserved_uusd,
        )
