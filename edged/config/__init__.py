"""The config file: frozen sections, unknown keys refused, secrets by reference.

``load`` reads TOML and returns one immutable ``Config`` or raises ``ConfigError`` with every problem it found.
"""

from edged.config.file import Config, load, parse
from edged.config.keys import ApiKeyConfig, named_secrets
from edged.config.models import ModelConfig, SamplingDefaults
from edged.config.openrouter import MaxPrice, OpenRouterConfig, ProviderPreferences
from edged.config.paths import default_path, models_directory, state_directory
from edged.config.redact import RedactConfig
from edged.config.retries import RetriesConfig
from edged.config.routes import BudgetConfig, RouteConfig, Thresholds
from edged.config.secrets import Secret, SecretReference, check_reference, resolve_secret
from edged.config.section import Name, Seconds, Section
from edged.config.server import LedgerConfig, ServerConfig, TasksConfig
from edged.config.spending import SpendingConfig
from edged.config.tasks import TaskFile, TaskProblem, load_tasks, read_tasks, schema_sha256, tasks_directory
from edged.config.upstreams import UpstreamConfig, UpstreamModelConfig

__all__ = [
    "ApiKeyConfig",
    "BudgetConfig",
    "Config",
    "LedgerConfig",
    "MaxPrice",
    "ModelConfig",
    "Name",
    "OpenRouterConfig",
    "ProviderPreferences",
    "RedactConfig",
    "RetriesConfig",
    "RouteConfig",
    "SamplingDefaults",
    "Seconds",
    "Secret",
    "SecretReference",
    "Section",
    "ServerConfig",
    "SpendingConfig",
    "TaskFile",
    "TaskProblem",
    "TasksConfig",
    "Thresholds",
    "UpstreamConfig",
    "UpstreamModelConfig",
    "check_reference",
    "default_path",
    "load",
    "load_tasks",
    "models_directory",
    "named_secrets",
    "parse",
    "read_tasks",
    "resolve_secret",
    "schema_sha256",
    "state_directory",
    "tasks_directory",
]
