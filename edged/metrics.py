"""Prometheus metrics: how often and how long; the ledger says what happened. One registry per daemon."""

from collections.abc import Callable, Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edged.core import BudgetSnapshot, EngineSnapshot, EngineState, Outcome, Record

_LATENCY_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)
_ERROR_BUCKETS_S = (-5, -2, -1, -0.5, -0.2, -0.1, 0, 0.1, 0.2, 0.5, 1, 2, 5, 15)
_LOADED = (EngineState.LOADING, EngineState.READY)
"""A worker holds, or is about to hold, the model's memory."""
_USD = 1_000_000


class Metrics:
    """Counts records as they are written; gauges are read when scraped."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("route", "served_by", "reason", "status")
        self._requests = Counter("edged_requests", "Requests by outcome", labels, registry=self.registry)
        self._tokens = Counter(
            "edged_completion_tokens",
            "Generated tokens by target and outcome",
            ("target", "outcome"),
            registry=self.registry,
        )
        self._prompt_tokens = Counter(
            "edged_prompt_tokens",
            "Tokens of prompts, and of texts to embed or rank, by target and outcome",
            ("target", "outcome"),
            registry=self.registry,
        )
        self._cost = Counter("edged_cost_usd", "Cloud cost in dollars", ("upstream",), registry=self.registry)
        self._attempts = Counter(
            "edged_attempts", "Attempts by backend and outcome", ("backend", "outcome"), registry=self.registry
        )
        self._ttft = Histogram(
            "edged_ttft_seconds",
            "Receipt to first token sent",
            ("served_by",),
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._load_wait = Histogram(
            "edged_load_wait_seconds",
            "Part of the time to the first token that went into a cold load",
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._error = Histogram(
            "edged_ttft_prediction_error_seconds",
            "Measured minus predicted time to the local model's first token",
            buckets=_ERROR_BUCKETS_S,
            registry=self.registry,
        )
        self._saved = Counter(
            "edged_saved_tokens", "Tokens not generated because an answer was stopped early", registry=self.registry
        )
        self._total = Histogram(
            "edged_request_seconds",
            "Receipt to end",
            ("served_by",),
            buckets=_LATENCY_BUCKETS_S,
            registry=self.registry,
        )

    def observe(self, record: Record) -> None:
        """Count one finished request."""
        served_by = record.served_by.value
        self._requests.labels(record.route or "", served_by, record.reason.value, record.status.value).inc()
        self._total.labels(served_by).observe(record.total_s)
        if record.ttft_s is not None:
            self._ttft.labels(served_by).observe(record.ttft_s)
        if record.timings.load_s:
            self._load_wait.observe(record.timings.load_s)
        if record.prediction_error_s is not None:
            self._error.observe(record.prediction_error_s)
        for attempt in record.attempts:
            self._saved.inc(attempt.saved_tokens)
            self._attempts.labels(attempt.backend, attempt.outcome.value).inc()
            outcome = "served" if attempt.outcome is Outcome.SERVED else "discarded"
            self._tokens.labels(attempt.target.value, outcome).inc(attempt.usage.completion_tokens)
            self._prompt_tokens.labels(attempt.target.value, outcome).inc(attempt.usage.prompt_tokens)
            if attempt.cost_uusd:
                self._cost.labels(attempt.backend).inc(attempt.cost_uusd / _USD)

    def watch(
        self,
        engines: Callable[[], Mapping[str, EngineSnapshot]],
        gauges: Callable[[], Mapping[str, float]],
        upstreams: Callable[[], Mapping[str, str]] = dict,
    ) -> None:
        """Read these when scraped: per model, single numbers by metric name, and states by ``UPSTREAM/model``."""
        self.registry.register(_Live(engines, gauges, upstreams))

    def watch_budgets(self, budgets: Callable[[], Iterable[BudgetSnapshot]]) -> None:
        """Read these when scraped: what every budget's day stands at."""
        self.registry.register(_Budgets(budgets))

    def render(self) -> bytes:
        """The text exposition format, version 0.0.4."""
        return generate_latest(self.registry)


class _Live(Collector):
    def __init__(
        self,
        engines: Callable[[], Mapping[str, EngineSnapshot]],
        gauges: Callable[[], Mapping[str, float]],
        upstreams: Callable[[], Mapping[str, str]],
    ) -> None:
        self._engines = engines
        self._gauges = gauges
        self._upstreams = upstreams

    def collect(self) -> Iterable[Metric]:
        snapshots = self._engines()
        yield _per_model("edged_model_ready", snapshots, lambda s: float(s.state is EngineState.READY))
        yield _per_model("edged_model_loaded", snapshots, lambda s: float(s.state in _LOADED))
        yield _per_model("edged_model_load_seconds", snapshots, lambda s: s.last_load_s or 0.0)
        yield _per_model("edged_model_load_median_seconds", snapshots, lambda s: s.median_load_s or 0.0)
        yield _per_model("edged_model_running", snapshots, lambda s: s.running)
        yield _per_model("edged_model_waiting", snapshots, lambda s: s.waiting)
        yield _per_model("edged_model_prefill_tokens_per_second", snapshots, lambda s: s.prefill_tps or 0.0)
        yield _per_model("edged_model_decode_tokens_per_second", snapshots, lambda s: s.decode_tps or 0.0)
        states = GaugeMetricFamily("edged_upstream_state", "1 for the state it is in", labels=["upstream", "state"])
        for upstream, state in self._upstreams().items():
            states.add_metric([upstream, state], 1)
        yield states
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(name, name.replace("_", " "), value=value)


class _Budgets(Collector):
    def __init__(self, budgets: Callable[[], Iterable[BudgetSnapshot]]) -> None:
        self._budgets = budgets

    def collect(self) -> Iterable[Metric]:
        budgets = tuple(self._budgets())
        yield _per_budget("spent", "Spent today", budgets, lambda b: b.spent_uusd)
        yield _per_budget("estimated", "Part of today's spend that is an estimate", budgets, lambda b: b.estimated_uusd)
        yield _per_budget("reserved", "Set aside for calls under way", budgets, lambda b: b.reserved_uusd)
        yield _per_budget("limit", "May be spent a day; absent without a limit", budgets, lambda b: b.limit_uusd)
        yield _per_budget("remaining", "Left of today's limit", budgets, lambda b: b.remaining_uusd)


def _per_budget(
    what: str, help_text: str, budgets: Iterable[BudgetSnapshot], read: Callable[[BudgetSnapshot], int | None]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"edged_budget_{what}_usd", f"{help_text}, in dollars", labels=["scope", "name"])
    for budget in budgets:
        if (value := read(budget)) is not None:
            family.add_metric([budget.scope.value, budget.name], value / _USD)
    return family


def _per_model(
    name: str, snapshots: Mapping[str, EngineSnapshot], read: Callable[[EngineSnapshot], float]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, name.replace("_", " "), labels=["model"])
    for model, snapshot in snapshots.items():
        family.add_metric([model], read(snapshot))
    return family
