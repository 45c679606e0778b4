"""``edged calibrate``: ask the local model about labelled items, fit, certify, store what may be served."""

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edged import config
from edged.calibrate.cloud import DaemonCloud, daemon_cloud
from edged.calibrate.dataset import Dataset, check_labels, read
from edged.calibrate.outcome import Outcome, Target, percent
from edged.calibrate.report import Provenance, report
from edged.calibrate.results import FORM, Results
from edged.calibrate.run import Calibration, Plan
from edged.calibration.artefact import Level
from edged.calibration.shelf import Shelf
from edged.catalogue.identity import model_sha256
from edged.cli.progress import listener, resumable, say
from edged.cli.tables import Columns, print_table
from edged.config import Config, TaskFile
from edged.daemon import locate
from edged.dispatch.head_keys import head_key
from edged.dispatch.tasks import local_model
from edged.errors import ConfigError

_NICENESS = 10
_STEPS = {Level.ZERO_SHOT: "L0", Level.MAP: "L1", Level.FEATURES: "L2", Level.HIDDEN: "L3"}
_HEADER = ("LEVEL", "ACCURACY", "AUROC", "AURC", "BRIER", "ECE", "GAIN (LOW)", "")


def add_parser(subparsers: "argparse._SubParsersAction[Any]", common: argparse.ArgumentParser) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "calibrate",
        parents=[common],
        help="measure what the local model can be trusted with in one task",
        description="Puts labelled items of a task to the local model, fits how its confidence is to be read on one "
        "half of them and certifies on the other what may be served. Interrupted, it goes on where it was.",
    )
    parser.add_argument("task", help="the name of a task file")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help='lines of {"input": ..., "answer": ...} (default: the task\'s dataset)',
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--max-error", type=_share, metavar="A", help="the error allowed among served answers, such as 0.05"
    )
    target.add_argument(
        "--cloud-share", type=_share, metavar="S", help="the share to send to the cloud instead, such as 0.15"
    )
    parser.add_argument(
        "--confidence", type=_share, metavar="C", help="with which the error is kept (default: the task's)"
    )
    parser.add_argument("--limit", type=_count, metavar="N", help="use so many items, always the same ones")
    parser.add_argument(
        "--from-cloud", action="store_true", help="ask the route's upstreams for the labels; this costs money"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE.html", help="where the report goes (default: beside the artefact)"
    )
    parser.add_argument("--fresh", action="store_true", help="forget what the model said before")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """0 calibrated, uncertified included; 1 with one line on standard error; 130 interrupted."""
    return resumable(lambda: _calibrate(args))


def _calibrate(args: argparse.Namespace) -> int:
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError('calibrating needs scikit-learn: pip install "edged[calibrate]"')
    path = Path(args.config) if args.config else config.default_path()
    loaded = config.load(path)
    task = _task(args.task, loaded, path)
    model = local_model(task, loaded)
    data = _data(args, task)
    dataset = read(data, task, limit=args.limit)
    cloud = _cloud(args, loaded, dataset)
    warnings = (*dataset.warnings, *(() if cloud else check_labels(dataset.labelled, task)))
    for warning in warnings:
        say(f"{data.name}: {warning}")
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)  # the worker inherits it; where it is refused, it is not needed less
    plan = Plan(
        task=task,
        model=model,
        key=head_key(task, model, model_sha256(model)),
        dataset=dataset,
        target=_target(args, task),
        made_at=datetime.now(UTC).isoformat(timespec="seconds"),
        locate=lambda: locate(model),
        cloud=cloud,
    )
    state = config.state_directory()
    results = Results(state / "calibrate", plan.key, form=FORM, fresh=args.fresh)
    try:
        outcome, found = _run(plan, results)
    finally:
        results.close()
    number = Shelf(state / "tasks").put(outcome.artefact)
    provenance = _provenance(plan, data, number)
    where = args.report or state / "tasks" / task.name / "report.html"
    where.write_text(report(outcome, provenance), encoding="utf-8")
    warnings = (*warnings, *found)
    if args.json:
        print(json.dumps(_as_json(outcome, provenance, where, warnings), indent=2))
    else:
        _show(outcome, task, number, where)
    return 0


def _run(plan: Plan, results: Results) -> tuple[Outcome, tuple[str, ...]]:
    """The outcome and what there is to be warned of, which is said even where there is no outcome."""
    with listener(_counts) as heard:
        calibration = Calibration(plan, results, heard)
        try:
            outcome = asyncio.run(calibration.run())
        finally:
            for warning in calibration.warnings:
                heard.note(warning)
    return outcome, tuple(calibration.warnings)


def _cloud(args: argparse.Namespace, loaded: Config, dataset: Dataset) -> DaemonCloud | None:
    """Who gives the labels, where the data does not: the cloud, through a daemon that must be there."""
    if dataset.labelled and not args.from_cloud:
        return None
    cloud = daemon_cloud(loaded)
    cloud.check()
    say(f"asking the cloud for up to {len(dataset.items)} labels, within the route's budget: right means it agrees")
    return cloud


# -- what is calibrated --------------------------------------------------------------------------------------------


def _task(name: str, loaded: Config, path: Path) -> TaskFile:
    directory = config.tasks_directory(loaded, path)
    tasks, problems = config.read_tasks(directory, loaded)
    found = next((task for task in tasks if task.name == name), None)
    if found is not None:
        return found
    if problems:
        raise ConfigError("; ".join(map(str, problems)))
    known = ", ".join(sorted(task.name for task in tasks)) or f"no task file in {directory}"
    raise ConfigError(f"no task {name!a} (known: {known})")


def _data(args: argparse.Namespace, task: TaskFile) -> Path:
    if args.data is not None:
        return Path(args.data)
    if task.dataset_path is None:
        raise ConfigError(f'the task "{task.name}" names no dataset: give one with --data FILE')
    return task.dataset_path


def _target(args: argparse.Namespace, task: TaskFile) -> Target:
    """What the task asks for, unless the command asks for something else."""
    confidence = task.target.confidence if args.confidence is None else args.confidence
    asked = args.max_error is not None or args.cloud_share is not None
    target = args if asked else task.target
    return Target(max_error=target.max_error, cloud_share=target.cloud_share, delta=round(1 - confidence, 9))


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"must be a number, not {text}") from exc
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 1, not {text}")
    return share


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return int(text)


def _provenance(plan: Plan, data: Path, number: int) -> Provenance:
    return Provenance(
        task=plan.task.name,
        definition_sha256=plan.task.definition_sha256,
        model=plan.model.name,
        model_sha256=plan.key.model_sha256,
        data=data.name,
        made_at=plan.made_at,
        version=number,
        options=plan.task.option_names,
    )


# -- what is printed -----------------------------------------------------------------------------------------------


def _show(outcome: Outcome, task: TaskFile, number: int, where: Path) -> None:
    artefact = outcome.artefact
    print_table(_HEADER, [_line(tried) for tried in outcome.tried])
    print(f"\nfitted on {outcome.fitted} items, tested on {outcome.certified_on} others: ", end="")
    numbers = (artefact.accuracy, artefact.auroc, artefact.ece)
    print(", ".join(f"{name} {_number(n)}" for name, n in zip(("accuracy", "AUROC", "ECE"), numbers, strict=True)))
    if outcome.target.max_error is not None:
        print(f"at {percent(outcome.target.max_error)} error a perfect score could serve {percent(outcome.most_share)}")
    if outcome.artefact.threshold is None and outcome.labels_needed is not None:
        print(f"labels needed: about {outcome.labels_needed}")
    print(f"\n{task.name}: {outcome.sentence}")
    print(f"artefact {number} of the task is used from now on; report: {where}")


def _line(tried: Any) -> Columns:
    name = f"{_STEPS[tried.level]} {tried.level.value}"
    if tried.problem is not None:
        return (name, *("-",) * 6, tried.problem)
    gain = "-" if tried.gain is None else f"{tried.gain:+.4f} ({tried.gain_low:+.4f})"
    numbers = (tried.accuracy, tried.auroc, tried.aurc, tried.brier, tried.ece)
    return (name, *map(_number, numbers), gain, "used" if tried.used else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _as_json(outcome: Outcome, provenance: Provenance, where: Path, warnings: tuple[str, ...]) -> dict[str, Any]:
    artefact = outcome.artefact
    certificate = artefact.certificate
    return {
        **asdict(provenance),
        "sentence": outcome.sentence,
        "certified": certificate is not None,
        "level": artefact.level,
        "source": artefact.source,
        "labels": artefact.labels,
        "fitted": outcome.fitted,
        "certified_on": outcome.certified_on,
        "accuracy": artefact.accuracy,
        "auroc": artefact.auroc,
        "ece": artefact.ece,
        "threshold": artefact.threshold,
        "certificate": None if certificate is None else asdict(certificate),
        "served_share": outcome.served_share,
        "served_error": outcome.served_error,
        "most_share": outcome.most_share,
        "labels_needed": outcome.labels_needed,
        "levels": [asdict(tried) for tried in outcome.tried],
        "warnings": warnings,
        "report": str(where),
    }


def _counts() -> tuple[Any, ...]:
    from rich.progress import MofNCompleteColumn

    return (MofNCompleteColumn(),)
