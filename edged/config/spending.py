"""``[budget]``: what everybody together may spend, and how money is counted."""

from typing import Literal

from pydantic import Field

from edged.config.section import Section


class SpendingConfig(Section):
    """``[budget]``: ``usd_per_day`` 0 = no cloud spend at all; omitted = unlimited."""

    usd_per_day: float | None = Field(default=None, ge=0, le=1_000_000)
    day_starts: Literal["utc", "local"] = "utc"
    when_ledger_fails: Literal["local", "serve"] = "local"
    prices_stale_after_days: int = Field(default=180, ge=1, le=3650)
