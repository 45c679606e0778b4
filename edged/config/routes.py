"""``[[route]]``: public model names with their policy."""

from typing import Literal, Self

from pydantic import Field, model_validator

from edged.config.section import Name, Seconds, Section, refuse_duplicates
from edged.core import Locality, Release


class Thresholds(Section):
    """``[route.thresholds]``: 0 turns the confidence check off."""

    confidence: float = Field(default=0.5, ge=0, le=1)
    ttft_s: Seconds = 2.0
    itl_s: Seconds = 0.5
    queue: int = Field(default=8, ge=0)


class BudgetConfig(Section):
    """``[route.budget]``: 0 = no cloud spend; omitted = unlimited."""

    usd_per_day: float | None = Field(default=None, ge=0, le=1_000_000)


class HedgeConfig(Section):
    """``[route.hedge]``: ask the cloud too when a local answer is late; without ``after_s``, past its measured p95."""

    enabled: bool = False
    max_share: float = Field(default=0.05, ge=0, le=1)
    after_s: Seconds | None = None


class AuditConfig(Section):
    """``[route.audit]``: the share of kept local answers that is compared with the cloud's; 0 turns it off."""

    share: float = Field(default=0.0, ge=0, le=1)
    seed: int = Field(default=0, ge=0)


class RouteConfig(Section):
    """``[[route]]``: a public model name with its policy."""

    name: Name
    local: str = ""
    cloud: tuple[str, ...] = ()
    locality: Locality = Locality.ANY
    release: Release = Release.GUARDED
    hold_tokens: int = Field(default=16, ge=1, le=4096)
    priority: Literal["interactive", "background"] = "interactive"
    thresholds: Thresholds = Thresholds()
    budget: BudgetConfig = BudgetConfig()
    hedge: HedgeConfig = HedgeConfig()
    audit: AuditConfig = AuditConfig()

    @model_validator(mode="after")
    def _can_answer(self) -> Self:
        if not self.local and not self.cloud:
            raise ValueError("needs a local model, a cloud list, or both")
        if self.locality is Locality.LOCAL_ONLY and not self.local:
            raise ValueError('locality "local_only" needs a local model')
        if self.locality is Locality.CLOUD_ONLY and not self.cloud:
            raise ValueError('locality "cloud_only" needs a cloud list')
        refuse_duplicates(list(self.cloud), "cloud")
        return self
