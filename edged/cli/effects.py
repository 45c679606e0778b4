"""What a valid config would do on this box, and what its owner may not have meant: model files, keys, money, memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from edged.config import Config, ModelConfig, RouteConfig, SpendingConfig, UpstreamConfig, resolve_secret
from edged.dispatch.veil import Veil
from edged.errors import CatalogueError, ConfigError
from edged.toml_index import Location
from edged.upstream.pricing import stale_prices

_GIB = 1 << 30


class Severity(StrEnum):
    """An error keeps something from working; a warning is something to have meant."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Effect:
    """One consequence of the config, at the key that causes it."""

    severity: Severity
    at: Location
    message: str


def effects(config: Config) -> Iterator[Effect]:
    """Look at everything the config refers to. Reads files, never the network."""
    yield from _server(config)
    for number, model in enumerate(config.models):
        yield from _model(model, ("model", number))
    for number, upstream in enumerate(config.upstreams):
        yield from _upstream(upstream, ("upstream", number), config)
    for number, route in enumerate(config.routes):
        yield from _route(route, ("route", number), everybody=config.budget)
    yield from _redaction(config)
    yield from _shape(config)


def _error(at: Location, message: str) -> Effect:
    return Effect(Severity.ERROR, at, message)


def _warning(at: Location, message: str) -> Effect:
    return Effect(Severity.WARNING, at, message)


def _shape(config: Config) -> Iterator[Effect]:
    if not config.upstreams:
        yield _warning((), "no [[upstream]]: every answer is local, however slow or unsure")
    if not config.routes:
        yield _warning((), 'no [[route]]: "auto" does not exist, requests must name a model')
    needs = [need for need in map(_memory_bytes, config.models) if need is not None]
    available = psutil.virtual_memory().available
    if sum(needs) > available:
        yield _warning(
            ("model",),
            f"the models need about {sum(needs) / _GIB:.1f} GiB (weights and slots x context_tokens of KV cache), "
            f"{available / _GIB:.1f} GiB are available: lower slots, context_tokens or kv_tokens",
        )


def _server(config: Config) -> Iterator[Effect]:
    server = config.server
    if not server.is_loopback:
        yield _warning(("server", "listen"), f"{server.listen} is beyond loopback: whoever has a key can use the box")
    for number, reference in enumerate(server.api_keys):
        yield from _secret(reference, ("server", "api_keys", number))
    for number, key in enumerate(config.api_keys):
        yield from _secret(key.key, ("api_key", number, "key"))


# -- models ----------------------------------------------------------------------------------------------------------


def _model(model: ModelConfig, at: Location) -> Iterator[Effect]:
    if model.file is not None:
        yield from _model_file(model.file, (*at, "file"))
    if model.catalogue is not None:
        yield from _catalogue_model(model.catalogue, model.context_tokens, at)
    cores = len(os.sched_getaffinity(0))
    if model.threads != "auto" and model.threads > cores:
        yield _warning((*at, "threads"), f"{model.threads} threads on {cores} usable cores are slower than {cores}")


def _model_file(path: Path, at: Location) -> Iterator[Effect]:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as exc:
        yield _error(at, f"{path}: cannot be read: {exc.strerror}")
        return
    if magic != b"GGUF":
        yield _error(at, f"{path}: is not a GGUF file")


def _catalogue_model(name: str, context_tokens: int, at: Location) -> Iterator[Effect]:
    from edged import catalogue

    try:
        entry = catalogue.find(name, catalogue.load())
        if context_tokens > entry.context_tokens:
            trained = f"the {entry.context_tokens} tokens the model was trained on"
            yield _warning((*at, "context_tokens"), f"{context_tokens} is beyond {trained}")
    except CatalogueError as exc:
        yield _error((*at, "catalogue"), exc.message)
        return
    try:
        catalogue.resolve(name)
    except CatalogueError as exc:
        pull = f"edged models pull {name}"
        hint = "" if pull in exc.message else f"; run: {pull}"
        yield _error((*at, "catalogue"), exc.message + hint)


def _memory_bytes(model: ModelConfig) -> int | None:
    """What the worker of a catalogue model needs; only the weights of another file are known without loading it."""
    from edged import catalogue

    try:
        if model.catalogue is not None:
            return catalogue.find(model.catalogue, catalogue.load()).memory_bytes(model.pool_tokens)
        return None if model.file is None else model.file.stat().st_size
    except (CatalogueError, OSError):
        return None


# -- providers -------------------------------------------------------------------------------------------------------


def _upstream(upstream: UpstreamConfig, at: Location, config: Config) -> Iterator[Effect]:
    if upstream.api_key is not None:
        yield from _secret(upstream.api_key, (*at, "api_key"))
    if upstream.api_key is not None and _is_clear_text(upstream.base_url):
        yield _warning((*at, "base_url"), "http:// beyond this box: the key and every prompt travel in clear text")
    for number, model in enumerate(upstream.models):
        if model.input_usd_per_mtok == 0 or model.output_usd_per_mtok == 0:
            yield _warning((*at, "model", number), f'"{model.name}" has a price of 0: no budget ever stops it')
    yield from _old_prices(upstream, at, config.budget.prices_stale_after_days)
    used = {name for route in config.routes for name in route.cloud}
    if not any(f"{upstream.name}/{model.name}" in used for model in upstream.models):
        yield _warning(at, f'no route has "{upstream.name}/..." in its cloud list: only requests that name it reach it')


def _redaction(config: Config) -> Iterator[Effect]:
    try:
        Veil(config).check()
    except ConfigError as exc:
        yield _error(("redact",), exc.message.removeprefix("redact."))


def _old_prices(upstream: UpstreamConfig, at: Location, after_days: int) -> Iterator[Effect]:
    old = dict(stale_prices([upstream], today=datetime.now(UTC).date(), after_days=after_days))
    for number, model in enumerate(upstream.models):
        if (age_days := old.get(f"{upstream.name}/{model.name}")) is not None:
            message = f"read {age_days} days ago: spend and budgets may be wrong (a warning after {after_days} days)"
            yield _warning((*at, "model", number, "prices_as_of"), message)


def _is_clear_text(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in {"localhost", "127.0.0.1", "::1"}


def _secret(reference: str, at: Location) -> Iterator[Effect]:
    kind, _, rest = reference.partition(":")
    if kind == "credential" and "CREDENTIALS_DIRECTORY" not in os.environ:
        yield _warning(at, f"{reference} is readable only under systemd: the unit needs LoadCredential={rest}:FILE")
        return
    try:
        resolve_secret(reference)
    except ConfigError as exc:
        yield _error(at, exc.message)
        return
    if kind == "file" and Path(rest).stat().st_mode & 0o077:
        yield _warning(at, f"{rest} can be read by other users: chmod 600 {rest}")


def _route(route: RouteConfig, at: Location, *, everybody: SpendingConfig) -> Iterator[Effect]:
    if not route.cloud:
        return
    match route.budget.usd_per_day:
        case None if everybody.usd_per_day is None:
            yield _warning((*at, "budget"), f'route "{route.name}" may spend without limit: set budget.usd_per_day')
        case 0:
            yield _warning((*at, "budget", "usd_per_day"), f'0: route "{route.name}" never asks its cloud')
