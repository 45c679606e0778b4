"""/metrics: what is counted, under which labels, in the format that scrapers read."""

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_builders import serving

from edged.core import EngineSnapshot, EngineState
from edged.metrics import Metrics


def samples(text):
    """Every sample as {(name, labels): value}."""
    families = text_string_to_metric_families(text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(found, name, **labels):
    return found.get((name, frozenset(labels.items())))


def test_every_request_is_counted_once_by_what_became_of_it():
    """Local, cloud and refused requests, their tokens, attempts and cost; labels are names of the config alone."""

    async def main():
        async with serving() as port:
            await port.ask()
            await port.ask(edged={"min_confidence": 1.0})
            await port.ask(model="nobody/../etc")
            async with port.get("/metrics") as response:
                assert response.headers["Content-Type"].startswith("text/plain")
                text = await response.text()
            found = samples(text)
            name = "edged_requests_total"
            ok = {"route": "auto", "status": "ok"}
            assert value(found, name, served_by="local", reason="within_budget", **ok) == 1
            assert value(found, name, served_by="cloud", reason="low_confidence", **ok) == 1
            assert value(found, name, route="", served_by="none", reason="no_route", status="rejected") == 1
            assert sum(v for (n, _), v in found.items() if n == name) == 3
            tokens = "edged_completion_tokens_total"
            assert value(found, tokens, target="local", outcome="served") == 4
            assert value(found, tokens, target="local", outcome="discarded") == 1
            assert value(found, tokens, target="cloud", outcome="served") == 2
            cost = value(found, "edged_cost_usd_total", upstream="cloud")
            assert cost == pytest.approx(sum(record.cost_uusd for record in port.records) / 1e6)
            assert value(found, "edged_ttft_seconds_count", served_by="cloud") == 1
            assert "etc" not in text

    asyncio.run(main())


def test_gauges_are_read_when_scraped():
    """What is true now, not when the last request ended."""
    metrics, load = Metrics(), {"running": 3, "prefill_tps": None}

    def engines():
        return {"small": EngineSnapshot(state=EngineState.READY, slots=4, **load)}

    metrics.watch(engines, lambda: {"edged_ledger_queued_records": 2.0})
    found = samples(metrics.render().decode())
    assert value(found, "edged_model_running", model="small") == 3
    assert value(found, "edged_model_ready", model="small") == 1
    assert value(found, "edged_model_prefill_tokens_per_second", model="small") == 0
    assert value(found, "edged_ledger_queued_records") == 2
    load["running"] = 0
    assert value(samples(metrics.render().decode()), "edged_model_running", model="small") == 0
