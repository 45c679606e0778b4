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


class TaskThresholds(Section):
    """``[route.task.thresholds]``: what is not said here is as in ``[route.thresholds]``."""

    confidence: float | None = Field(default=None, ge=0, le=1)
    ttft_s: Seconds | None = None
    itl_s: Seconds | None = None
    queue: int | None = Field(default=None, ge=0)


class TaskConfig(Section):
    """``[[route.task]]``: who serves one kind of query on this route; what is not said is as the route says."""

    name: Name
    local: str | None = None
    cloud: tuple[str, ...] | None = None
    thresholds: TaskThresholds = TaskThresholds()

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        refuse_duplicates(list(self.cloud or ()), "cloud")
        return self


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
    keep_author: bool = True
    tasks: tuple[TaskConfig, ...] = Field(default=(), alias="task")

    @model_validator(mode="after")
    def _can_answer(self) -> Self:
        if not self.local and not self.cloud:
            raise ValueError("needs a local model, a cloud list, or both")
        if self.locality is Locality.LOCAL_ONLY and not self.local:
            raise ValueError('locality "local_only" needs a local model')
        if self.locality is Locality.CLOUD_ONLY and not self.cloud:
            raise ValueError('locality "cloud_only" needs a cloud list')
        refuse_duplicates(list(self.cloud), "cloud")
        refuse_duplicates([task.name for task in self.tasks], "task")
        for task in self.tasks:
            local, cloud = self._served_by(task)
            if not local and not cloud:
                raise ValueError(f'task "{task.name}": needs a local model, a cloud list, or both')
            if self.locality is Locality.LOCAL_ONLY and not local:
                raise ValueError(f'task "{task.name}": locality "local_only" needs a local model')
            if self.locality is Locality.CLOUD_ONLY and not cloud:
                raise ValueError(f'task "{task.name}": locality "cloud_only" needs a cloud list')
        return self

    def _served_by(self, task: TaskConfig) -> tuple[str, tuple[str, ...]]:
        return self.local if task.local is None else task.local, self.cloud if task.cloud is None else task.cloud

    def serving(self, task: str) -> Self:
        """This route as it serves one task."""
        found = next((known for known in self.tasks if known.name == task), None)
        if found is None:
            return self
        local, cloud = self._served_by(found)
        said = found.thresholds.model_dump(exclude_none=True)
        thresholds = self.thresholds.model_copy(update=said)
        return self.model_copy(update={"local": local, "cloud": cloud, "thresholds": thresholds})
