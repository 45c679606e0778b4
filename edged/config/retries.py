"""``[upstream_retries]``: how many calls may be made beyond one per request."""

from pydantic import Field

from edged.config.section import Section


class RetriesConfig(Section):
    """``[upstream_retries]``: in every minute, ``share`` of the requests that ask the cloud, plus the floor."""

    share: float = Field(default=0.2, ge=0, le=1)
    floor_per_minute: int = Field(default=10, ge=0, le=100_000)
