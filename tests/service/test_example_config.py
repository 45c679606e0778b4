"""The example config is the starter config: real, complete and safe."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from edged import config

TEXT = Path(__file__).parents[2].joinpath("systemd", "edged.toml").read_text(encoding="utf-8")
UNCOMMENTED = re.sub(r"(?m)^#(?=[\[a-z])", "", TEXT)


def sections(value: object) -> Iterator[BaseModel]:
    """Every section of a config, outermost first."""
    if isinstance(value, BaseModel):
        yield value
        for name in type(value).model_fields:
            yield from sections(getattr(value, name))
    if isinstance(value, tuple):
        for item in value:
            yield from sections(item)


def leaves(document: Any) -> set[str]:
    """Every key of a TOML document whose value is no table."""
    if isinstance(document, list):
        return set().union(*map(leaves, document)) if document else set()
    if not isinstance(document, dict):
        return set()
    inner = set().union(*map(leaves, document.values())) if document else set()
    return inner | {key for key, value in document.items() if not isinstance(value, dict)}


def test_the_example_loads_as_it_is_and_asks_no_cloud() -> None:
    """Cloud use is opt-in: a fresh install has one local model, one route and no provider."""
    loaded = config.parse(TEXT)
    assert loaded.upstreams == ()
    assert [(route.name, route.local, route.cloud) for route in loaded.routes] == [("auto", "smollm2-135m", ())]
    assert loaded.models[0].catalogue == "smollm2-135m-instruct"


def test_every_commented_out_example_is_real() -> None:
    """With each "#key" line uncommented the file loads, a provider and a second model included."""
    loaded = config.parse(UNCOMMENTED)
    assert [model.name for model in loaded.models] == ["smollm2-135m", "mine"]
    assert loaded.routes[0].cloud == ("cloud/big-model",)


def test_the_example_shows_every_key_there_is() -> None:
    """A key added to the config is added to the example; OpenRouter's own are in docs/upstreams.md."""
    known = {
        field.alias or name
        for section in sections(config.parse(UNCOMMENTED))
        for name, field in type(section).model_fields.items()
    }
    tables = {
        "server",
        "tasks",
        "ledger",
        "sampling",
        "thresholds",
        "budget",
        "hedge",
        "audit",
        "upstream_retries",
        "openrouter",
    }
    tables |= {"redact", "patterns", "employee_id"}  # the last is the example of a name of one's own
    assert known - tables == leaves(tomllib.loads(UNCOMMENTED)) - tables


def test_the_example_shows_the_defaults() -> None:
    """What is written beside a key is what leaving it out means; only the budget is tighter than the default."""
    loaded = config.parse(TEXT)
    assert loaded.server == config.ServerConfig()
    assert loaded.ledger == config.LedgerConfig()
    assert loaded.upstream_retries == config.RetriesConfig()
    assert loaded.models == (config.ModelConfig(name="smollm2-135m", catalogue="smollm2-135m-instruct"),)
    route = config.RouteConfig(name="auto", local="smollm2-135m", budget=config.BudgetConfig(usd_per_day=1.0))
    assert loaded.routes == (route,)


def test_the_example_fits_on_a_few_screens_and_explains_itself() -> None:
    """At most 200 lines."""
    assert len(TEXT.splitlines()) <= 200
