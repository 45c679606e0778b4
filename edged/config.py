"""The config file: frozen sections, unknown keys refused, secrets by reference.

``load`` reads TOML and returns one immutable ``Config`` or raises ``ConfigError`` with every problem it found.
"""

import ipaddress
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from edged.core import Locality, Release
from edged.errors import ConfigError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$")]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
_REFERENCE = re.compile(r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:/.+|credential:[A-Za-z0-9._-]+)$")


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Secret:
    """A credential whose text never shows in a repr, a log line or an error."""

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one header it goes into."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(***)"


def check_reference(value: str) -> str:
    """Accept ``env:NAME``, ``file:/path`` or ``credential:NAME``; refuse an inline secret without repeating it."""
    if not _REFERENCE.match(value):
        raise ValueError('must be "env:NAME", "file:/path" or "credential:NAME", never the key itself')
    return value


SecretReference = str


def resolve_secret(reference: str) -> Secret:
    """Read the secret behind a reference.

    Raises: ConfigError where the variable or file is missing or empty.
    """
    kind, _, rest = reference.partition(":")
    if kind == "env":
        text = os.environ.get(rest, "")
    else:
        path = Path(rest) if kind == "file" else Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent")) / rest
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"cannot read the secret {reference}: {type(exc).__name__}") from exc
    if not text.strip():
        raise ConfigError(f"the secret {reference} is empty or not set")
    return Secret(text.strip())


class ServerConfig(Section):
    """``[server]``"""

    listen: str = "127.0.0.1:8080"
    api_keys: tuple[SecretReference, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = Field(default=16_777_216, ge=1_024)
    drain_s: Seconds = 30.0
    keep_alive_s: Seconds = 75.0
    write_timeout_s: Seconds = 30.0
    max_connections: int = Field(default=512, ge=1)

    _keys_are_references = field_validator("api_keys")(
        lambda keys: tuple(check_reference(key) for key in keys),
    )

    @property
    def host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.listen.rpartition(":")[2])

    @field_validator("listen")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        host, _, port = value.rpartition(":")
        if not host or not port.isdigit() or int(port) > 65_535:  # noqa: PLR2004
            raise ValueError('must be "HOST:PORT", for example "127.0.0.1:8080"')
        return value

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @model_validator(mode="after")
    def _keys_beyond_loopback(self) -> Self:
        if not self.is_loopback and not self.api_keys:
            raise ValueError("listen: an address beyond loopback needs at least one entry in api_keys")
        return self


class LedgerConfig(Section):
    """``[ledger]``"""

    path: Path = Path("ledger.db")
    keep_days: int = Field(default=30, ge=1, le=3650)
    store_text: bool = False


class SamplingDefaults(Section):
    """``[model.sampling]``: used where the request asks for nothing else."""

    temperature: float = Field(default=0.7, ge=0, le=2)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=40, ge=0)
    min_p: float = Field(default=0.05, ge=0, le=1)
    repeat_penalty: float = Field(default=1.0, gt=0, le=2)


class ModelConfig(Section):
    """``[[model]]``: one local model, one worker process."""

    name: Name
    catalogue: Name | None = None
    file: Path | None = None
    context_tokens: int = Field(default=4096, ge=16, le=1_048_576)
    slots: int = Field(default=4, ge=1, le=64)
    kv_tokens: int | None = Field(default=None, ge=16)
    kv_format: Literal["f16", "q8_0"] = "f16"
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=256)] = "auto"
    gpu_layers: int = Field(default=0, ge=-1)
    main_gpu: int = Field(default=0, ge=0)
    offload_kv: bool = True
    prefill_chunk_tokens: int = Field(default=256, ge=8, le=8192)
    max_output_tokens: int = Field(default=2048, ge=1)
    one_tenant: bool = False
    load: Literal["start", "first_use"] = "start"
    keep_loaded_s: float = Field(default=0, ge=0, le=31_536_000)
    min_loaded_s: float = Field(default=30, ge=0, le=86_400)
    load_timeout_s: Seconds = 300.0
    heartbeat_timeout_s: Seconds = 5.0
    step_timeout_s: Seconds = 60.0
    sampling: SamplingDefaults = SamplingDefaults()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.catalogue is None) == (self.file is None):
            raise ValueError("needs exactly one of catalogue and file")
        return self

    @property
    def pool_tokens(self) -> int:
        """Cells of the KV pool: what ``kv_tokens`` says, else full contexts for five of eight slots.

        Cells are memory whether used or not, and few requests fill their context; those that do wait for each other.
        """
        return self.kv_tokens or self.context_tokens * -(-5 * self.slots // 8)


class UpstreamModelConfig(Section):
    """``[[upstream.model]]``: prices in dollars per million tokens, as providers publish them."""

    name: str = Field(min_length=1, max_length=200)
    context_tokens: int = Field(default=8192, ge=16)
    input_usd_per_mtok: float = Field(ge=0, le=10_000)
    output_usd_per_mtok: float = Field(ge=0, le=10_000)
    cached_input_usd_per_mtok: float | None = Field(default=None, ge=0, le=10_000)


class UpstreamConfig(Section):
    """``[[upstream]]``"""

    name: Name
    kind: Literal["openai"] = "openai"
    base_url: str = Field(pattern=r"^https?://[^\s/@]+(/[^\s?#@]*)?$")
    api_key: SecretReference | None = None
    connect_timeout_s: Seconds = 3.0
    first_token_timeout_s: Seconds = 10.0
    idle_timeout_s: Seconds = 30.0
    max_response_bytes: int = Field(default=33_554_432, ge=1_024)
    models: tuple[UpstreamModelConfig, ...] = Field(alias="model", min_length=1)

    @field_validator("api_key")
    @classmethod
    def _key_is_a_reference(cls, value: str | None) -> str | None:
        return None if value is None else check_reference(value)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        _refuse_duplicates([model.name for model in self.models], "model")
        return self


class Thresholds(Section):
    """``[route.thresholds]``: 0 turns the confidence check off."""

    confidence: float = Field(default=0.5, ge=0, le=1)
    ttft_s: Seconds = 2.0
    itl_s: Seconds = 0.5
    queue: int = Field(default=8, ge=0)


class BudgetConfig(Section):
    """``[route.budget]``: 0 = no cloud spend; omitted = unlimited."""

    usd_per_day: float | None = Field(default=None, ge=0)


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

    @model_validator(mode="after")
    def _can_answer(self) -> Self:
        if not self.local and not self.cloud:
            raise ValueError("needs a local model, a cloud list, or both")
        if self.locality is Locality.LOCAL_ONLY and not self.local:
            raise ValueError('locality "local_only" needs a local model')
        if self.locality is Locality.CLOUD_ONLY and not self.cloud:
            raise ValueError('locality "cloud_only" needs a cloud list')
        _refuse_duplicates(list(self.cloud), "cloud")
        return self


class Config(Section):
    """The whole file."""

    server: ServerConfig = ServerConfig()
    ledger: LedgerConfig = LedgerConfig()
    models: tuple[ModelConfig, ...] = Field(default=(), alias="model")
    upstreams: tuple[UpstreamConfig, ...] = Field(default=(), alias="upstream")
    routes: tuple[RouteConfig, ...] = Field(default=(), alias="route")

    @model_validator(mode="after")
    def _names_resolve(self) -> Self:
        """Every name a route uses exists, and no two things a client can ask for share a name."""
        local = [model.name for model in self.models]
        cloud = [f"{upstream.name}/{model.name}" for upstream in self.upstreams for model in upstream.models]
        _refuse_duplicates([upstream.name for upstream in self.upstreams], "upstream")
        _refuse_duplicates([*local, *(route.name for route in self.routes)], "model and route")
        for route in self.routes:
            if route.local and route.local not in local:
                raise ValueError(f'route "{route.name}": local = "{route.local}" is not a [[model]] (known: {local})')
            for name in route.cloud:
                if name not in cloud:
                    raise ValueError(f'route "{route.name}": cloud = "{name}" is not UPSTREAM/model (known: {cloud})')
        if not local and not cloud:
            raise ValueError("needs at least one [[model]] or [[upstream]]")
        return self

    @property
    def ledger_path(self) -> Path:
        return state_directory() / self.ledger.path


def _refuse_duplicates(names: list[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f'{what}: the name "{name}" is used twice')
        seen.add(name)


def state_directory() -> Path:
    """Where the ledger and the models live: ``$STATE_DIRECTORY`` under systemd, else the user's own state directory."""
    if directory := os.environ.get("STATE_DIRECTORY"):
        return Path(directory.split(":")[0])
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "edged"


def models_directory() -> Path:
    """Where pulled model files live."""
    return state_directory() / "models"


def default_path() -> Path:
    """The config file used without ``--config``: ``$EDGED_CONFIG``, ``/etc/edged/edged.toml``, then the user's own."""
    if path := os.environ.get("EDGED_CONFIG"):
        return Path(path)
    system = Path("/etc/edged/edged.toml")
    if system.exists():
        return system
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "edged" / "edged.toml"


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
        problems = tuple(_problem(error) for error in exc.errors(include_url=False, include_input=False))
        raise ConfigError(f"{source}: " + "; ".join(problems), problems) from exc


def _problem(error: Any) -> str:
    """One validation error as ``route[0].thresholds.confidence: what is wrong``."""
    key = ""
    for part in error["loc"]:
        key += f"[{part}]" if isinstance(part, int) else f".{part}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "unknown key"
    return f"{key.lstrip('.')}: {message}" if key else message
