"""What the task files come to on this box, and what their writer may not have meant."""

from collections.abc import Iterator
from pathlib import Path

from edged.cli.effects import Effect, Severity
from edged.config import Config, TaskFile, TaskProblem, read_tasks
from edged.config.tasks import ambiguous
from edged.learning.pupil import can_fit

_AT = ("tasks", "directory")


def task_effects(config: Config, directory: Path) -> Iterator[Effect]:
    """Everything that is wrong with a task file, or may surprise. Reads files, never the network."""
    tasks, problems = read_tasks(directory, config)
    for problem in problems:
        yield Effect(Severity.ERROR, _AT, _told(problem))
    for name, others in ambiguous(tasks).items():
        yield _warning(name, f"has the same schema as {', '.join(others)}: it serves only requests that name it")
    for task in tasks:
        yield from _task(task, config)


def _task(task: TaskFile, config: Config) -> Iterator[Effect]:
    route = next(route for route in config.routes if route.name == task.route).serving(task.name)
    if task.learn.enabled and not route.cloud:
        yield _warning(task.name, f'learn.enabled: the route "{route.name}" has no cloud to learn from')
    if task.learn.enabled and not can_fit():
        yield _warning(task.name, 'learn.enabled: labels are kept, but to fit needs: pip install "edged[calibrate]"')
    if (dataset := task.dataset_path) is not None and not dataset.is_file():
        yield _warning(task.name, f"dataset: {dataset} is not a file")


def _warning(name: str, message: str) -> Effect:
    return Effect(Severity.WARNING, _AT, f'task "{name}": {message}')


def _told(problem: TaskProblem) -> str:
    return ": ".join(filter(None, (problem.path.name, problem.key, problem.message)))
