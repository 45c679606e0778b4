"""``[server]``, ``[ledger]`` and ``[tasks]``."""

import ipaddress
from pathlib import Path

from pydantic import Field, field_validator

from edged.config.secrets import SecretReference, check_reference
from edged.config.section import Seconds, Section


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


class LedgerConfig(Section):
    """``[ledger]``"""

    path: Path = Path("ledger.db")
    keep_days: int = Field(default=30, ge=1, le=3650)
    store_text: bool = False


class TasksConfig(Section):
    """``[tasks]``: where the task files lie; a relative directory starts at the config file's."""

    directory: Path = Path("tasks")
