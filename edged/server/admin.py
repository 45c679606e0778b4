"""Health and metrics."""

from collections.abc import Mapping

from aiohttp import web

from edged.config import Config
from edged.core import BudgetSnapshot, EngineState
from edged.dispatch.dispatcher import Dispatcher
from edged.engine.host import Engine
from edged.metrics import Metrics

_RETRY_AFTER_S = 2
_USD = 1_000_000


class AdminApi:
    """Live is not ready: live answers whenever the event loop does, ready only while requests can be answered."""

    def __init__(self, config: Config, dispatcher: Dispatcher, engines: Mapping[str, Engine], metrics: Metrics) -> None:
        self._config = config
        self._dispatcher = dispatcher
        self._engines = engines
        self._metrics = metrics

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/health/live", self.live),
            web.get("/health/ready", self.ready),
            web.get("/health", self.ready),
            web.get("/metrics", self.metrics),
            web.get("/edged/budgets", self.budgets),
        ]

    async def live(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "live"})

    async def ready(self, _request: web.Request) -> web.Response:
        models = {name: engine.state.value for name, engine in self._engines.items()}
        ready = is_ready(self._config, self._engines) and not self._dispatcher.draining
        upstreams = self._dispatcher.upstreams
        body = {
            "status": "ready" if ready else "not_ready",
            "models": models,
            "draining": self._dispatcher.draining,
            "upstreams": upstreams.states(),
            "offline": upstreams.offline,
        }
        if ready:
            return web.json_response(body)
        return web.json_response(body, status=503, headers={"Retry-After": str(_RETRY_AFTER_S)})

    async def budgets(self, _request: web.Request) -> web.Response:
        """What every budget's day stands at, in dollars; null is no limit."""
        return web.json_response({"budgets": [_budget(one) for one in self._dispatcher.money.snapshot()]})

    async def metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), content_type="text/plain", charset="utf-8")


def is_ready(config: Config, engines: Mapping[str, Engine]) -> bool:
    """Whether anything can answer: a loaded model, one that loads on demand, or a configured upstream."""
    return bool(config.upstreams) or any(map(_answers, engines.values()))


def _answers(engine: Engine) -> bool:
    """A model whose last load failed has to show first that it can be loaded."""
    return engine.state is EngineState.READY or (engine.state is EngineState.UNLOADED and engine.problem is None)


def _budget(budget: BudgetSnapshot) -> dict[str, str | float | None]:
    remaining = budget.remaining_uusd
    return {
        "scope": budget.scope.value,
        "name": budget.name,
        "limit_usd": None if budget.limit_uusd is None else budget.limit_uusd / _USD,
        "spent_usd": budget.spent_uusd / _USD,
        "estimated_usd": budget.estimated_uusd / _USD,
        "reserved_usd": budget.reserved_uusd / _USD,
        "remaining_usd": None if remaining is None else remaining / _USD,
    }
