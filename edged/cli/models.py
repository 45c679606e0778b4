"""``edged models list | show | pull | verify | remove | optimize``."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edged import catalogue, config
from edged.catalogue import Entry, Fit, Installed, Pull, State, Store, Weights, optimized
from edged.cli.progress import listener, resumable, say
from edged.cli.tables import Columns, plain
from edged.errors import CatalogueError, ConfigError


def add_parser(subparsers: "argparse._SubParsersAction[Any]", common: argparse.ArgumentParser) -> None:
    """Register ``models``; ``common`` holds ``--config``, and ``func`` takes the arguments to an exit code."""
    models = subparsers.add_parser("models", help="list, show, pull, verify, remove and optimize model files")
    actions = models.add_subparsers(dest="action", required=True, metavar="list|show|pull|verify|remove|optimize")
    place = argparse.ArgumentParser(add_help=False, parents=[common])
    place.add_argument("--dir", type=Path, help="the models directory (default: models/ in the state directory)")

    listing = actions.add_parser("list", parents=[place], help="the catalogue and what of it is installed")
    listing.add_argument("--json", action="store_true", help="one JSON array on standard output")
    show = actions.add_parser(
        "show", parents=[place], help="what is known of one model, and what it was measured to do"
    )
    show.add_argument("name", help="a name from the list")
    show.add_argument("--json", action="store_true", help="one JSON object on standard output")
    pull = actions.add_parser("pull", parents=[place], help="fetch a model and check its digest")
    pull.add_argument("name", nargs="?", help="a name from the list (default: the models the config uses)")
    verify = actions.add_parser("verify", parents=[place], help="hash installed files again")
    verify.add_argument("name", nargs="?", help="a name from the list (default: everything installed)")
    remove = actions.add_parser("remove", parents=[place], help="delete a model and what is left of its pulls")
    remove.add_argument("name", help="a name from the list")

    best = _optimize_parser(actions, place)

    chosen = ((listing, _list), (show, _show), (pull, _pull), (verify, _verify), (remove, _remove), (best, _optimize))
    for parser, action in chosen:
        parser.set_defaults(func=run, run_action=action)


def _optimize_parser(
    actions: "argparse._SubParsersAction[Any]", place: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        "optimize",
        parents=[place],
        help="find the weight format that suits this CPU",
        description="Writes the model in other weight formats, measures speed, memory, accuracy and the worth of its "
        "confidence on this box, and installs the fastest that is not measurably worse beside the published file. "
        "Interrupted, it goes on where it was.",
    )
    parser.add_argument("name", help="a name from the list")
    parser.add_argument("--quick", action="store_true", help="two formats, few questions, short requests: a first look")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured before")
    parser.add_argument("--yes", action="store_true", help="install the choice without asking")
    parser.add_argument("--revert", action="store_true", help="use the published file again, delete the optimized one")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    return parser


def run(args: argparse.Namespace) -> int:
    """Do what was asked: 0 done, 1 with one line on standard error, 130 interrupted."""
    action: Callable[[argparse.Namespace], int] = args.run_action
    return resumable(lambda: action(args))


def _list(args: argparse.Namespace) -> int:
    store = Store(args.dir)
    used_by = _users(args)
    entries = catalogue.load().values()
    rows = [_row(entry, store.status(entry), catalogue.in_use(store, entry), used_by) for entry in entries]
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(_table(rows))
    return 0


def _show(args: argparse.Namespace) -> int:
    entry, store = _named(args.name), Store(args.dir)
    weights = catalogue.in_use(store, entry)
    if args.json:
        row = _row(entry, store.status(entry), weights, _users(args))
        print(json.dumps({**row, "title": entry.title, "calibrations": _calibrations(entry)}, indent=2))
        return 0
    facts = (entry.title, f"{_size(entry.bytes)}, {entry.context_tokens} tokens of context, {entry.licence}")
    print("\n".join([f"{entry.name}: {store.status(entry).state}", *facts, f"chat: {entry.chat.notes}"]))
    if not entry.calibrations:
        print("\nnot calibrated on any public task: edged calibrate TASK tells what it can do in yours")
        return 0
    print("\nMeasured on public tasks, to know what to expect; what holds on this box: edged calibrate TASK")
    for found in entry.calibrations:
        auroc = "-" if found.auroc is None else f"{found.auroc:.3f}"
        other = "" if found.model_sha256 == weights.sha256 else "; with other weights than those in use here"
        print(f"  {found.sentence}\n    accuracy {found.accuracy:.3f}, AUROC {auroc}, level {found.level}")
        print(f"    {found.data}, {found.date}, edged {found.edged}, weights {found.model_sha256[:8]}{other}")
    return 0


def _calibrations(entry: Entry) -> list[dict[str, Any]]:
    return [found.model_dump(mode="json") for found in entry.calibrations]


def _pull(args: argparse.Namespace) -> int:
    entries = [_named(args.name)] if args.name is not None else _configured(args)
    store = Store(args.dir)
    for entry in entries:
        present = store.status(entry).state is State.INSTALLED
        with listener(_transfer, shown=_size) as heard:
            found = Pull(entry, store, heard).run()
        print(f"{entry.name}: {'already installed' if present else 'installed'}: {found.path}")
        if not present:
            say(f"{entry.name}: another weight format may be faster on this CPU: edged models optimize {entry.name}")
    return 0


def _verify(args: argparse.Namespace) -> int:
    store = Store(args.dir)
    names = catalogue.load().values() if args.name is None else [_named(args.name)]
    present = [entry for entry in names if args.name or store.status(entry).state is not State.MISSING]
    if not present:
        print("no model is installed")
    bad = [entry for entry in present if not _verified(store, entry)]
    return 1 if bad else 0


def _verified(store: Store, entry: Entry) -> bool:
    """Hash one model's files and say how they are, on the stream it belongs to."""
    found = store.verify(entry)
    if found.state is not State.INSTALLED:
        say(f"{found.name}: {found.state}: run: edged models pull {found.name}")
        return False
    print(f"{found.name}: ok: {found.path}")
    if damaged := optimized.damaged(store, entry):
        say(f"{found.name}: the {damaged.weight_format} weights are damaged: run: edged models optimize {found.name}")
    return damaged is None


def _remove(args: argparse.Namespace) -> int:
    freed_bytes = Store(args.dir).remove(_named(args.name))
    print(f"{args.name}: {f'removed, {_size(freed_bytes)} freed' if freed_bytes else 'was not installed'}")
    return 0


def _optimize(args: argparse.Namespace) -> int:
    from edged.cli import optimize

    return optimize.run(args)


# -- what the config says ------------------------------------------------------------------------------------------


def _named(name: str) -> Entry:
    return catalogue.find(name, catalogue.load())


def _configured(args: argparse.Namespace) -> list[Entry]:
    """The catalogue models of the config file. Raises: ConfigError, CatalogueError."""
    loaded = config.load(_config_path(args))
    names = list(dict.fromkeys(model.catalogue for model in loaded.models if model.catalogue))
    if not names:
        raise CatalogueError("the config uses no catalogue model: name one")
    return [_named(name) for name in names]


def _users(args: argparse.Namespace) -> dict[str, list[str]]:
    """Which ``[[model]]`` uses which entry. Only a config that was asked for must be there and valid."""
    asked = getattr(args, "config", None) is not None
    if not asked and not _config_path(args).exists():
        return {}
    try:
        loaded = config.load(_config_path(args))
    except ConfigError as exc:
        if asked:
            raise
        say(exc.message)
        return {}
    users: dict[str, list[str]] = {}
    for model in loaded.models:
        if model.catalogue:
            users.setdefault(model.catalogue, []).append(model.name)
    return users


def _config_path(args: argparse.Namespace) -> Path:
    path = getattr(args, "config", None)
    return config.default_path() if path is None else Path(path)


# -- what is printed -----------------------------------------------------------------------------------------------


def _row(entry: Entry, found: Installed, weights: Weights, used_by: dict[str, list[str]]) -> dict[str, Any]:
    return {
        "name": entry.name,
        "path": str(found.path),
        "bytes": found.bytes,
        "state": str(found.state),
        "catalogue_bytes": entry.bytes,
        "sha256": entry.sha256,
        "licence": entry.licence,
        "context_tokens": entry.context_tokens,
        "used_by": used_by.get(entry.name, []),
        "calibrated": len({found.task for found in entry.calibrations}),
        "weights": {
            "format": weights.weight_format,
            "sha256": weights.sha256,
            "path": str(weights.path),
            "optimized": str(weights.fit),
        },
    }


def _table(rows: list[dict[str, Any]]) -> str:
    header = ("NAME", "STATE", "SIZE", "CONTEXT", "LICENCE", "WEIGHTS", "CALIBRATED", "USED BY", "PATH")
    return plain(header, [_line(row) for row in rows])


def _line(row: dict[str, Any]) -> Columns:
    size = _size(row["bytes"] or row["catalogue_bytes"])
    used_by = ",".join(row["used_by"]) or "-"
    return (
        *(row["name"], row["state"], size, str(row["context_tokens"]), row["licence"]),
        *(_weights(row["weights"]), _tasks(row["calibrated"]), used_by, row["path"]),
    )


def _weights(weights: dict[str, str]) -> str:
    """The format a worker would load with the start of its digest, and why an optimized file is not it."""
    unused = weights["optimized"] not in (Fit.USED, Fit.NONE)
    note = f" (optimized: {weights['optimized']})" if unused else ""
    return f"{weights['format']} {weights['sha256'][:8]}{note}"


def _tasks(count: int) -> str:
    return "-" if not count else "1 task" if count == 1 else f"{count} tasks"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def _transfer() -> tuple[Any, ...]:
    from rich.progress import DownloadColumn, TransferSpeedColumn

    return (DownloadColumn(), TransferSpeedColumn())
