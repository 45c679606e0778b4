"""docs/reasons.md holds every reason, and nothing it says is stale."""

import re
from pathlib import Path

import pytest

from edged.config import BudgetConfig, ModelConfig, RedactConfig, RetriesConfig, RouteConfig, Thresholds, UpstreamConfig
from edged.core import Reason

DOC = (Path(__file__).parent.parent / "docs" / "reasons.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", DOC, flags=re.DOTALL | re.MULTILINE))
KEYS = {
    name
    for section in (Thresholds, BudgetConfig, RouteConfig, ModelConfig, UpstreamConfig, RedactConfig, RetriesConfig)
    for name in section.model_fields
}
ASKED = {"locality", "deadline_ms", "min_confidence", "max_cost_usd"}


def test_every_reason_has_its_section_and_every_section_its_reason():
    """The closed list, in its order."""
    assert list(SECTIONS) == [reason.value for reason in Reason]


@pytest.mark.parametrize("reason", [reason.value for reason in Reason])
def test_a_section_says_rule_threshold_remedy_and_shows_a_line(reason):
    """What happened, which key decides it, what to do, and how it looks."""
    section = SECTIONS[reason]
    for part in ("Rule", "Threshold", "What to do"):
        assert section.count(f"- **{part}:**") == 1
    example = re.search(r"```\n(.+)\n```", section).group(1)
    cells = example.split("  ")
    assert len(cells) == 10
    assert cells[4] == reason


@pytest.mark.parametrize("reason", [reason.value for reason in Reason])
def test_the_keys_a_section_names_exist(reason):
    """A threshold is a real key of the config, or a field of the request's edged object."""
    line = re.search(r"\*\*Threshold:\*\*(.*?)\n- \*\*What", SECTIONS[reason], flags=re.DOTALL).group(1)
    named = {word for span in re.findall(r"`([^`]+)`", line) for word in re.findall(r"^(?:\[+[\w.]+\]+ )?(\w+)", span)}
    assert named <= KEYS | ASKED | {"eager"}


def test_the_overview_places_every_reason():
    """No reason is missing from the table at the top."""
    overview = DOC[: DOC.index("## within_budget")]
    assert set(re.findall(r"`(\w+)`", overview)) >= {reason.value for reason in Reason}
