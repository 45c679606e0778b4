"""The report: one HTML file without outside requests."""

from dataclasses import dataclass

from edged.calibrate.outcome import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What was calibrated on what, and when."""

    task: str
    definition_sha256: str
    model: str
    model_sha256: str
    data: str
    made_at: str
    version: int
    options: tuple[str, ...]


def report(outcome: Outcome, provenance: Provenance) -> str:
    return f"<p>{outcome.sentence}</p>"
