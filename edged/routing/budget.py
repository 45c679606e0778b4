"""What each route may still spend today: reserved before a call, settled after it."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Budget:
    """One route's daily allowance in micro-dollars; None is unlimited.

    ``day`` only moves forward: a clock that steps back cannot open a spent budget again.
    """

    limit_uusd: int | None
    day: int = 0
    spent_uusd: int = 0
    reserved_uusd: int = field(default=0)

    def reserve(self, amount_uusd: int, *, day: int) -> bool:
        """Set the worst case of one call aside; False where it does not fit."""
        if day > self.day:
            self.day, self.spent_uusd = day, 0
        if self.limit_uusd is not None and self.spent_uusd + self.reserved_uusd + amount_uusd > self.limit_uusd:
            return False
        self.reserved_uusd += amount_uusd
        return True

    def settle(self, reserved_uusd: int, spent_uusd: int) -> None:
        """Replace a reservation by what the call really cost."""
        self.reserved_uusd -= reserved_uusd
        self.spent_uusd += spent_uusd
