"""The whole file: read, checked, and every problem named."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from edged.config.keys import ApiKeyConfig
from edged.config.models import ModelConfig
from edged.config.paths import state_directory
from edged.config.redact import RedactConfig
from edged.config.retries import RetriesConfig
from edged.config.routes import RouteConfig
from edged.config.section import Section, refuse_duplicates
from edged.config.server import LedgerConfig, ServerConfig, TasksConfig
from edged.config.spending import SpendingConfig
from edged.config.upstreams import UpstreamConfig
from edged.core import Locality, Trust
from edged.errors import ConfigError


class Config(Section):
    """The whole file."""

    server: ServerConfig = ServerConfig()
    ledger: LedgerConfig = LedgerConfig()
    tasks: TasksConfig = TasksConfig()
    budget: SpendingConfig = SpendingConfig()
    redact: RedactConfig = RedactConfig()
    api_keys: tuple[ApiKeyConfig, ...] = Field(default=(), alias="api_key")
    upstream_retries: RetriesConfig = RetriesConfig()
    models: tuple[ModelConfig, ...] = Field(default=(), alias="model")
    upstreams: tuple[UpstreamConfig, ...] = Field(default=(), alias="upstream")
    routes: tuple[RouteConfig, ...] = Field(default=(), alias="route")

    @model_validator(mode="after")
    def _strangers_need_a_key(self) -> Self:
        if not self.server.is_loopback and not self.server.api_keys and not self.api_keys:
            raise ValueError("server.listen: an address beyond loopback needs an [[api_key]] or server.api_keys")
        return self

    @model_validator(mode="after")
    def _names_resolve(self) -> Self:
        """Every name a route uses exists, and no two things a client can ask for share a name."""
        local = [model.name for model in self.models]
        cloud = [f"{upstream.name}/{model.name}" for upstream in self.upstreams for model in upstream.models]
        refuse_duplicates([upstream.name for upstream in self.upstreams], "upstream")
        refuse_duplicates([*local, *(route.name for route in self.routes)], "model and route")
        for route in self.routes:
            _refuse_unknown(f'route "{route.name}"', route.local, route.cloud, local=local, cloud=cloud)
            for task in route.tasks:
                where = f'route "{route.name}": task "{task.name}"'
                _refuse_unknown(where, task.local, task.cloud or (), local=local, cloud=cloud)
            self._site_can_answer(route)
            self._fits_its_model(route)
        if not local and not cloud:
            raise ValueError("needs at least one [[model]] or [[upstream]]")
        return self

    def _fits_its_model(self, route: RouteConfig) -> None:
        """Upstreams are asked for chat only: what a local model embeds or ranks has nowhere else to go."""
        purpose = next((model.purpose for model in self.models if model.name == route.local), "chat")
        if purpose != "chat" and route.cloud:
            text = f'route "{route.name}": cloud must be empty, as local = "{route.local}" has purpose = "{purpose}"'
            raise ValueError(text)

    def _site_can_answer(self, route: RouteConfig) -> None:
        if route.locality is not Locality.SITE_ONLY or route.local:
            return
        if all(self.trust_of(name) is not Trust.SITE for name in route.cloud):
            text = f'route "{route.name}": locality "site_only" needs a local model or an upstream with trust = "site"'
            raise ValueError(text)

    def trust_of(self, name: str) -> Trust:
        """Whose machine answers for ``UPSTREAM/model``; of a name that is not known, a stranger's."""
        upstream = name.partition("/")[0]
        return next((known.trust for known in self.upstreams if known.name == upstream), Trust.CLOUD)

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        """What a key is for exists."""
        refuse_duplicates([key.name for key in self.api_keys], "api_key")
        cloud = [f"{upstream.name}/{model.name}" for upstream in self.upstreams for model in upstream.models]
        known = [*(route.name for route in self.routes), *(model.name for model in self.models), *cloud]
        for key in self.api_keys:
            for name in key.routes:
                if name not in known:
                    raise ValueError(f'api_key "{key.name}": routes = "{name}" does not exist (known: {known})')
        return self

    def key_of(self, tenant: str) -> ApiKeyConfig | None:
        """The ``[[api_key]]`` of this name; None for callers without one."""
        return next((key for key in self.api_keys if key.name == tenant), None)

    @property
    def has_budgets(self) -> bool:
        """Whether anything limits what the cloud may cost."""
        of_routes = (route.budget.usd_per_day for route in self.routes)
        of_keys = (key.usd_per_day for key in self.api_keys)
        return any(usd is not None for usd in (self.budget.usd_per_day, *of_routes, *of_keys))

    @property
    def ledger_path(self) -> Path:
        return state_directory() / self.ledger.path


def _refuse_unknown(
    where: str, asked: str | None, clouds: Iterable[str], *, local: list[str], cloud: list[str]
) -> None:
    if asked and asked not in local:
        raise ValueError(f'{where}: local = "{asked}" is not a [[model]] (known: {local})')
    for name in clouds:
        if name not in cloud:
            raise ValueError(f'{where}: cloud = "{name}" is not UPSTREAM/model (known: {cloud})')


def load(path: Path) -> Config:
    """Read and validate a config file.

    Raises: ConfigError with one line per problem, each naming the key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: cannot be read: {reason}") from exc
    return parse(text, source=str(path))


def parse(text: str, *, source: str = "config") -> Config:
    """Validate the text of a config file. Raises: ConfigError."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{source}: not valid TOML: {exc}", (str(exc),)) from exc
    try:
        return Config.model_validate(document)
    except ValidationError as exc:
        problems = tuple(f"{key}: {message}" if key else message for key, message in validation_problems(exc))
        raise ConfigError(f"{source}: " + "; ".join(problems), problems) from exc


def validation_problems(exc: ValidationError) -> list[tuple[str, str]]:
    """Each error's key, ``route[0].thresholds.confidence``, and what is wrong there."""
    return [_problem(error) for error in exc.errors(include_url=False, include_input=False)]


def _problem(error: Any) -> tuple[str, str]:
    key = ""
    for part in error["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    message = error["msg"].removeprefix("Value error, ")
    return key.lstrip("."), "unknown key" if error["type"] == "extra_forbidden" else message
