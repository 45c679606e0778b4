"""``edged check``: everything that is wrong with a config, with the line, and what it would do on this box."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edged import config
from edged.cli.effects import Severity, effects
from edged.cli.task_effects import task_effects
from edged.config_lines import find_problems, key_text
from edged.errors import ConfigError
from edged.toml_index import Location, TomlIndex


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """One line of the report; line 0 is the file as a whole."""

    line: int
    key: str
    severity: Severity
    message: str

    def as_text(self, path: Path) -> str:
        """``PATH:LINE: error: KEY: MESSAGE``, as compilers write it, so that editors can jump to it."""
        place = f"{path}:{self.line}" if self.line else str(path)
        return ": ".join(part for part in (place, self.severity, self.key, self.message) if part)


def add_parser(subparsers: Any, common: argparse.ArgumentParser) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "check",
        parents=[common],
        help="say what is wrong with a config file",
        description="Validates a config, then looks at what it refers to: model files, keys, prices, memory. "
        "Exits with 1 when something is wrong, with 0 on mere warnings.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print what is found; 0 where the daemon would run as written."""
    path = Path(args.config) if args.config else config.default_path()
    findings = check(path)
    names = _task_names(path)
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    if args.json:
        problems = [asdict(finding) for finding in findings]
        print(
            json.dumps({"path": str(path), "ok": errors == 0, "errors": errors, "problems": problems, "tasks": names})
        )
        return min(errors, 1)
    for finding in findings:
        print(_printable(finding.as_text(path)))
    if names:
        print(f"tasks: {_printable(', '.join(names))}")
    print(f"{path}: {_count(errors, 'error')}, {_count(len(findings) - errors, 'warning')}")
    return min(errors, 1)


def check(path: Path) -> list[Finding]:
    """Every finding about a config file, in line order."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        return [Finding(0, "", Severity.ERROR, f"cannot be read: {exc.strerror}")]
    except UnicodeDecodeError as exc:
        return [Finding(exc.object.count(b"\n", 0, exc.start) + 1, "", Severity.ERROR, "is not UTF-8 text")]
    return sorted(_findings(text, path))


def _findings(text: str, path: Path) -> Iterator[Finding]:
    problems = find_problems(text)
    for problem in problems:
        yield Finding(problem.line, problem.key, Severity.ERROR, problem.message)
    if problems:
        return
    try:
        loaded = config.parse(text)
    except ConfigError as exc:  # a rule that find_problems does not know of
        yield Finding(0, "", Severity.ERROR, exc.message)
        return
    index = TomlIndex(text)
    for effect in effects(loaded):
        yield Finding(_line(index, effect.at), key_text(effect.at), effect.severity, effect.message)
    for effect in task_effects(loaded, config.tasks_directory(loaded, path)):
        yield Finding(_line(index, effect.at), key_text(effect.at), effect.severity, effect.message)


def _task_names(path: Path) -> list[str]:
    """The tasks there are, for people to see that theirs are among them."""
    try:
        loaded = config.load(path)
    except ConfigError:
        return []
    tasks, _ = config.read_tasks(config.tasks_directory(loaded, path), loaded)
    return [task.name for task in tasks]


def _line(index: TomlIndex, at: Location) -> int:
    """The line of a location; arrays of tables may be written in the plural."""
    return index.line_of(at) or index.line_of((f"{at[0]}s", *at[1:]) if at else ())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
