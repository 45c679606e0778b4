"""``edged tasks``: what is known of each task, what is promised of its local answers, and what became of promises."""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edged import config
from edged.calibration.artefact import Artefact, LabelSource
from edged.calibration.heads import HeadUnusable
from edged.calibration.shelf import Shelf
from edged.catalogue.identity import model_sha256
from edged.cli.reading import columns, command, console, printable
from edged.config import Config, TaskFile
from edged.dispatch.head_keys import head_key
from edged.dispatch.tasks import local_model
from edged.errors import ConfigError, EdgedError, LedgerError
from edged.learning import journal
from edged.learning.forgetting import forget
from edged.learning.journal import Event
from edged.learning.pupil import can_fit, why_nothing_is_in_use
from edged.learning.store import read
from edged.learning.words import promise
from edged.ledger import NoLedger, Share, shares

_SHOWN_DAYS = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """Observations by what is known of them. ``unbiased``: of the cloud's, those the lot fell on."""

    cloud: int = 0
    unbiased: int = 0
    unlabelled: int = 0
    outdated: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """All there is to say about a task."""

    task: TaskFile
    labels: Labels
    version: int | None
    artefact: Artefact | None
    problem: str | None
    events: Sequence[Event]
    days: Sequence[Share]
    quarters: Sequence[Share]

    @property
    def is_stale(self) -> bool:
        return self.version is not None and self.problem is not None

    @property
    def sentence(self) -> str:
        return promise(self.artefact, self.problem)

    @property
    def last_roll_back(self) -> Event | None:
        return next((event for event in reversed(self.events) if event.what == "rolled_back"), None)


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "tasks",
        parents=[common],
        help="show each task's labels, certificate and local share",
        description="What the box knows of each task file: labels, the version in use and what it promises, whether "
        "it is stale, and how much of the task the box answers itself.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one task, in detail")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--roll-back", action="store_true", help="take the version in use back, for the one before it")
    group.add_argument("--forget", action="store_true", help="delete everything learnt of the task from its requests")
    parser.set_defaults(func=run)


@command
def run(args: argparse.Namespace) -> None:
    """Print what is known, or change it."""
    path = Path(args.config or config.default_path())
    loaded = config.load(path)
    tasks = config.load_tasks(config.tasks_directory(loaded, path), loaded)
    if (args.roll_back or args.forget) and args.name is None:
        raise ConfigError("say which task: edged tasks NAME --roll-back, or --forget")
    if args.forget:
        _forget(args.name)
        return
    chosen = [task for task in tasks if args.name in (None, task.name)]
    if not chosen and args.name is not None:
        known = ", ".join(task.name for task in tasks) or "there is none"
        raise ConfigError(f'the task "{args.name}" does not exist (known: {known})')
    if args.roll_back:
        _roll_back(args.name)
        return
    found = [look(task, loaded) for task in chosen]
    if args.json:
        print(json.dumps({"tasks": [as_json(known) for known in found]}))
    elif args.name is not None:
        _print_one(found[0])
    else:
        _print_all(found)


def look(task: TaskFile, loaded: Config) -> Known:
    """Gather what the files of a task, its model and the ledger say. Raises: LedgerError."""
    directory = config.state_directory() / "tasks" / task.name
    shelf = Shelf(directory.parent)
    versions = shelf.versions(task.name)
    current = next((version for version in versions if version.is_current), None)
    artefact, problem, key_id = None, None, ""
    try:
        model = local_model(task, loaded)
        key = head_key(task, model, model_sha256(model))
        key_id = key.id
        artefact = shelf.current(key)
    except HeadUnusable as exc:
        problem = exc.message
    except (EdgedError, OSError) as exc:
        problem = f"the model's file cannot be read: {exc}"
    if artefact is None and problem is None:
        problem = why_nothing_is_in_use(versions)
    days, quarters = _shares(loaded, task)
    return Known(
        task=task,
        labels=_labels(directory, key_id),
        version=current.number if current else None,
        artefact=artefact,
        problem=problem,
        events=_events(directory),
        days=days,
        quarters=quarters,
    )


def _labels(directory: Path, key_id: str) -> Labels:
    counts: Counter[str] = Counter()
    try:
        for seen in read(directory):
            if seen.key != key_id:
                counts["outdated"] += 1
            elif seen.label is None:
                counts["unlabelled"] += 1
            else:
                counts["cloud"] += 1
                counts["unbiased"] += seen.is_unbiased
        size_bytes = (directory / "observations").stat().st_size if counts else 0
    except OSError as exc:
        raise LedgerError(f"{directory}: what was learnt cannot be read: {exc.strerror}") from exc
    return Labels(**counts, bytes=size_bytes)


def _events(directory: Path) -> list[Event]:
    try:
        return journal.read(directory)
    except OSError:
        return []


def _shares(loaded: Config, task: TaskFile) -> tuple[Sequence[Share], Sequence[Share]]:
    try:
        return shares(loaded.ledger_path, task.name)
    except NoLedger:
        return (), ()


def as_json(known: Known) -> dict[str, Any]:
    """The object of one task that ``--json`` prints."""
    artefact, task, rolled_back = known.artefact, known.task, known.last_roll_back
    return {
        "name": task.name,
        "route": task.route,
        "options": len(task.options),
        "target": task.target.model_dump(),
        "learns": task.learn.enabled,
        "can_fit": can_fit(),
        "labels": asdict(known.labels),
        "version": known.version,
        "stale": known.is_stale,
        "problem": known.problem,
        "certificate": known.sentence,
        "certified": bool(artefact and artefact.certificate),
        "level": artefact.level.value if artefact else None,
        "source": artefact.source.value if artefact else None,
        "threshold": artefact.threshold if artefact else None,
        "bound": artefact.certificate.bound if artefact and artefact.certificate else None,
        "fitted_on": artefact.labels if artefact else 0,
        "made_at": artefact.made_at if artefact else None,
        "local_share": {
            "by_day": [{"day": one.part, "requests": one.requests, "local": one.local} for one in known.days],
            "by_quarter": [{"requests": one.requests, "local": one.local} for one in known.quarters],
        },
        "last_roll_back": None if rolled_back is None else {"at": rolled_back.at, "why": rolled_back.why},
    }


# -- for people ------------------------------------------------------------------------------------------------------


def _print_all(found: Sequence[Known]) -> None:
    out = console()
    if not found:
        out.print("There is no task file: see docs/tasks.md.")
        return
    table = columns("task", "labels", "unbiased", "version", "local share")
    for known in found:
        version = "-" if known.version is None else f"{known.version}{' stale' if known.is_stale else ''}"
        counts = (str(known.labels.cloud), str(known.labels.unbiased))
        table.add_row(printable(known.task.name), *counts, version, _over_time(known.quarters))
    out.print(table)
    for known in found:
        out.print(f"\n{printable(known.task.name)}: {printable(known.sentence)}")


def _print_one(known: Known) -> None:
    out = console()
    labels, task, artefact = known.labels, known.task, known.artefact
    out.print(f"{printable(task.name)} on the route {printable(task.route)}: {printable(known.sentence)}")
    if known.is_stale:
        out.print(f"version {known.version} is not used: {printable(known.problem or '')}")
    if artefact is not None:
        whose = "labels of your own" if artefact.source is LabelSource.GOLD else "the cloud's answers"
        out.print(f"version {known.version}, {artefact.level.value}, made {artefact.made_at} from {whose}")
    out.print(
        f"labels: {labels.cloud} from the cloud, {labels.unbiased} of them the unbiased sample; "
        f"{labels.unlabelled} answers without, {labels.outdated} outdated; {labels.bytes} bytes"
    )
    out.print(f"learning: {_learning(task)}")
    if (back := known.last_roll_back) is not None:
        out.print(f"last rolled back {back.at}: {printable(back.why)}")
    if known.days:
        table = columns("day", "requests", "local", "share")
        for one in known.days[-_SHOWN_DAYS:]:
            table.add_row(one.part, str(one.requests), str(one.local), f"{100 * one.share:.1f} %")
        out.print()
        out.print(table)
        out.print(f"\nlocal share, in quarters of all its requests: {_over_time(known.quarters)}")


def _learning(task: TaskFile) -> str:
    if not task.learn.enabled:
        return "off"
    if not can_fit():
        return 'keeps labels, but cannot fit: pip install "edged[calibrate]"'
    return f"on; {100 * task.learn.audit_share:g} % of the requests are asked of the cloud to keep it honest"


def _over_time(quarters: Sequence[Share]) -> str:
    return " -> ".join(f"{100 * one.share:.0f} %" for one in quarters) or "-"


# -- what changes something ------------------------------------------------------------------------------------------


def _roll_back(name: str) -> None:
    directory = config.state_directory() / "tasks"
    why = "taken back by hand"
    try:
        before = next((version.number for version in Shelf(directory).versions(name) if version.is_current), None)
        if before is None:
            raise ConfigError(f'the task "{name}" has no version in use')
        number = Shelf(directory).roll_back(name, why)
        journal.note(directory / name, Event(at=journal.now(), what="rolled_back", why=why, version=before))
    except OSError as exc:
        raise ConfigError(f"{directory / name}: cannot be written: {exc.strerror}") from exc
    print(
        f"version {before} is taken back; " + (f"version {number} is in use" if number else "the task is uncertified")
    )


def _forget(name: str) -> None:
    """Whatever the config says now: a task whose file is gone is forgotten as well."""
    try:
        versions = forget(config.state_directory() / "tasks", name)
    except (OSError, ValueError) as exc:
        raise ConfigError(f'the task "{name[:100]}" cannot be forgotten: {exc}') from exc
    if versions is None:
        raise ConfigError(f'nothing was learnt of the task "{name[:100]}"')
    print(f"forgotten: all observations, and {versions} versions fitted on them")
