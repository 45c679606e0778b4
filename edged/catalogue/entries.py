"""The catalogue: one TOML file per model, every key checked. A name is only ever a key of the loaded table."""

import datetime as dt
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, InstanceOf, ValidationError

from edged.catalogue.sources import Origin, parse_origin
from edged.config import Section
from edged.errors import CatalogueError

ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class MemoryNeed(Section):
    """``[memory]``: f16 KV cache per token of the pool, and what the worker needs beside weights and cache."""

    kv_bytes_per_token: int = Field(gt=0)
    runtime_bytes: int = Field(ge=0)


class ChatNotes(Section):
    """``[chat]``: what the file's own template is and does; ``none`` for a model that was never taught to chat."""

    template: Literal["chatml", "gemma", "llama3", "none", "other"]
    default_system_prompt: str | None = None
    tools: bool
    notes: str = ""


class Calibration(Section):
    """``[[calibration]]``: what `edged calibrate` measured of this model in one public task, and on what.

    ``labels`` in all, half of them to certify on: ``accuracy`` and ``auroc`` are those of that half. ``coverage`` is
    the share certified with ``max_error`` at ``confidence``; 0: uncertified. ``model_sha256`` is the file's that was
    measured: with other weights the numbers say nothing.
    """

    task: str = Field(min_length=1, max_length=100)
    data: str = Field(min_length=1, max_length=200)
    data_url: str = Field(pattern=r"^https://\S+$")
    classes: int = Field(ge=2, le=255)
    labels: int = Field(ge=20)
    level: Literal["zero_shot", "map", "features", "hidden"]
    accuracy: float = Field(ge=0, le=1)
    auroc: float | None = Field(default=None, ge=0, le=1)
    max_error: float = Field(gt=0, lt=1)
    confidence: float = Field(ge=0.5, lt=1)
    coverage: float = Field(ge=0, le=1)
    date: dt.date
    edged: str = Field(min_length=1, max_length=40)
    model_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @property
    def sentence(self) -> str:
        """``SNIPS intents (7 classes, 340 labels): serves 98 % with at most 5 % error, confidence 90 %``."""
        what = f"{self.task} ({self.classes} classes, {self.labels} labels)"
        target = f"at most {self.max_error * 100:g} % error, confidence {self.confidence * 100:g} %"
        served = f"serves {self.coverage * 100:.0f} % with" if self.coverage else "uncertified for"
        return f"{what}: {served} {target}"


class Entry(Section):
    """One model. ``sources`` are tried in order; ``context_tokens`` is the length it was trained on."""

    name: ModelName
    title: str = Field(min_length=1, max_length=200)
    sources: tuple[Annotated[InstanceOf[Origin], BeforeValidator(parse_origin)], ...] = Field(min_length=1)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    licence: str = Field(min_length=1, max_length=100)
    licence_url: str = Field(pattern=r"^https://\S+$")
    context_tokens: int = Field(ge=16)
    memory: MemoryNeed
    chat: ChatNotes
    calibrations: tuple[Calibration, ...] = Field(default=(), alias="calibration", max_length=50)

    def memory_bytes(self, pool_tokens: int) -> int:
        """Estimate what a worker with a KV pool of that many tokens needs."""
        return self.bytes + pool_tokens * self.memory.kv_bytes_per_token + self.memory.runtime_bytes


Catalogue = Mapping[str, Entry]


def load() -> Catalogue:
    """Read the catalogue that came with edged, then the operator's own in ``$EDGED_CATALOGUE``, which wins by name.

    Raises: CatalogueError naming the file and the key.
    """
    entries = dict(load_directory(_shipped_directory()))
    if own := os.environ.get("EDGED_CATALOGUE"):
        entries |= load_directory(Path(own))
    return MappingProxyType(entries)


def load_directory(directory: Path) -> Catalogue:
    """Read every ``*.toml`` of one directory. Raises: CatalogueError naming the file and the key."""
    if not directory.is_dir():
        raise CatalogueError(f"the catalogue directory {directory} does not exist")
    entries = (_read(path) for path in sorted(directory.glob("*.toml")))
    return MappingProxyType({entry.name: entry for entry in entries})


def find(name: str, catalogue: Catalogue) -> Entry:
    """Look a name up. Raises: CatalogueError listing the names there are."""
    if entry := catalogue.get(name):
        return entry
    shown = name if len(name) <= 80 else name[:80] + "..."  # noqa: PLR2004 - keeps the error on one line
    raise CatalogueError(f"no model {shown!a} in the catalogue (known: {', '.join(sorted(catalogue))})")


def _shipped_directory() -> Path:
    """The installed package carries its catalogue as ``edged/_models``; a checkout has ``models/`` beside it."""
    package = Path(__file__).parents[1]
    installed = package / "_models"
    return installed if installed.is_dir() else package.parent / "models"


def _read(path: Path) -> Entry:
    try:
        entry = Entry.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as exc:
        raise CatalogueError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise CatalogueError(f"{path}: not valid TOML: {exc}") from exc
    except ValidationError as exc:
        raise CatalogueError(f"{path}: " + "; ".join(_problems(exc))) from exc
    if entry.name != path.stem:
        raise CatalogueError(f'{path}: name: "{entry.name}" must equal the file\'s name "{path.stem}"')
    return entry


def _problems(exc: ValidationError) -> list[str]:
    """One ``key: what is wrong`` per problem."""
    return [
        f"{'.'.join(str(part) for part in error['loc'])}: {error['msg'].removeprefix('Value error, ')}"
        for error in exc.errors(include_url=False, include_input=False)
    ]
