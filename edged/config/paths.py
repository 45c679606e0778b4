"""Where things lie on this box."""

import os
from pathlib import Path


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
