"""One calibration: ask the model what has not been asked yet, then fit and certify."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from edged.calibrate import outcome
from edged.calibrate.dataset import Dataset, Item, halves
from edged.calibrate.levels import Answered, Scored
from edged.calibrate.local import Generated, Local, chat_request, loaded
from edged.calibrate.outcome import About, Outcome, Target
from edged.calibrate.results import Line, Results, item_id, of_scores
from edged.calibration.artefact import LabelSource
from edged.calibration.heads import HeadKey
from edged.config import ModelConfig, TaskFile
from edged.errors import ConfigError, ContextOverflow, EdgedError, EngineError, WorkerLost
from edged.routing.audit import Said, canonical, compare
from edged.routing.confidence import free_text_score, structured_score
from edged.routing.features import features

_TRIES = 3
_PAUSE_S = 1.0


class Listener(Protocol):
    """Hears how far a calibration is, in items, and what else there is to say."""

    def progress(self, stage: str, done: int, total: int, /) -> None: ...

    def note(self, text: str) -> None: ...


class LabelsEnded(EdgedError):
    """The cloud gives no more labels: what there is must do. The message says why."""

    code = "labels_ended"


class CloudLabels(Protocol):
    """Asks the route's upstreams what the right answer is, within its budget and labels."""

    async def option(self, task: TaskFile, text: str) -> int | None:
        """The chosen option's place; None where the answer is none of them. Raises: LabelsEnded."""
        ...

    async def answer(self, task: TaskFile, text: str) -> str | None:
        """Raises: LabelsEnded."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be calibrated. ``cloud`` is None where the labels are gold."""

    task: TaskFile
    model: ModelConfig
    key: HeadKey
    dataset: Dataset
    target: Target
    made_at: str
    locate: Callable[[], Path]
    cloud: CloudLabels | None = None


@dataclass(slots=True)
class Calibration:
    """Runs a plan. What was asked is in ``results``, whatever happens; ``warnings`` grow while it runs."""

    plan: Plan
    results: Results
    listener: Listener
    warnings: list[str] = field(default_factory=list)
    asked: int = 0

    async def run(self) -> Outcome:
        """Raises: ConfigError where there are too few labels, EngineError, OSError."""
        plan = self.plan
        items = plan.dataset.items if plan.cloud is not None else plan.dataset.labelled
        if plan.cloud is None:
            self.warnings += self._ignored()
        try:
            if plan.task.is_closed and plan.cloud is not None:
                await self._ask_cloud(items, plan.cloud)
            else:
                await self._ask(items)
        except LabelsEnded as exc:
            self.warnings.append(f"the cloud gave no more labels: {exc.message}")
        if plan.task.is_closed and plan.cloud is not None:
            items = tuple(item for item in items if self._chosen(item) is not None)
            _check_count(items)
            await self._ask(items)
        found = [(item, line) for item in items if (line := self.results.get(self._id(item))) is not None]
        fitting_on = [item for item, line in found if not line.o]
        if lost := len(found) - len(fitting_on):
            self.warnings.append(f"left out because they are too long for the model (such requests escalate): {lost}")
        return await asyncio.to_thread(self._come_to, fitting_on)

    # -- asking ------------------------------------------------------------------------------------------------------

    async def _ask(self, items: Sequence[Item]) -> None:
        """Put every item that has no result yet to the local model."""
        pending = [item for item in items if self.results.get(self._id(item)) is None]
        total, done = len(items), len(items) - len(pending)
        if not pending:
            return
        if done:
            self.listener.note(f"going on: {done} of {total} items were asked before (--fresh starts anew)")
        self.listener.note(f"loading {self.plan.model.name} in a process of its own")
        async with loaded(self.plan.model, self.plan.locate) as local:
            self.listener.note(
                f"it takes about {local.memory_bytes / 1e6:.0f} MB of memory and the cores that are free, "
                "at a low priority; a running daemon goes on serving"
            )
            ask = self._ask_scores if self.plan.task.is_closed else self._ask_answer

            async def one(item: Item) -> None:
                self.results.add(await self._persistently(ask, local, item))
                self.asked += 1
                self.listener.progress("asking the local model", done + self.asked, total)

            self.listener.progress("asking the local model", done, total)
            await _side_by_side(pending, one, at_once=self.plan.model.slots)

    async def _persistently(self, ask: Callable[[Local, Item], Awaitable[Line]], local: Local, item: Item) -> Line:
        """Ask again where the worker was lost: it is started anew."""
        for _ in range(_TRIES - 1):
            try:
                return await ask(local, item)
            except ContextOverflow:
                return Line(self._id(item), o=True)
            except WorkerLost:
                await asyncio.sleep(_PAUSE_S)
        try:
            return await ask(local, item)
        except WorkerLost as exc:
            text = f"the model's worker died {_TRIES} times at line {item.line}: run it again to go on"
            raise EngineError(text) from exc

    async def _ask_scores(self, local: Local, item: Item) -> Line:
        return of_scores(self._id(item), *await local.score(self.plan.task, item.input))

    async def _ask_answer(self, local: Local, item: Item) -> Line:
        """The answer is compared at once: no text is kept."""
        task = self.plan.task
        said = await local.answer(chat_request(task, item.input, model=self.plan.model.name))
        gold = item.answer if self.plan.cloud is None else await self.plan.cloud.answer(task, item.input)
        right = gold is not None and said.is_whole and _agrees(said.text, gold, task)
        return Line(self._id(item), p=_score(said, task), f=_features(said, task), r=right)

    async def _ask_cloud(self, items: Sequence[Item], cloud: CloudLabels) -> None:
        """Have the cloud choose an option for every item that it was not asked about."""
        pending = [item for item in items if self.results.get(_cloud_id(item)) is None]
        done, total = len(items) - len(pending), len(items)

        async def one(item: Item) -> None:
            nonlocal done
            self.results.add(Line(_cloud_id(item), c=await cloud.option(self.plan.task, item.input)))
            done += 1
            self.listener.progress("asking the cloud", done, total)

        await _side_by_side(pending, one, at_once=self.plan.model.slots)

    # -- fitting -----------------------------------------------------------------------------------------------------

    def _come_to(self, items: Sequence[Item]) -> Outcome:
        plan = self.plan
        source = LabelSource.GOLD if plan.cloud is None else LabelSource.CLOUD
        about = About(key=plan.key, source=source, made_at=plan.made_at)
        self.listener.progress("fitting and certifying", 0, 1)
        come_to = self._of_scored if plan.task.is_closed else self._of_answered
        found = come_to(items, about)
        self.listener.progress("fitting and certifying", 1, 1)
        return found

    def _of_scored(self, items: Sequence[Item], about: About) -> Outcome:
        scored = [self._scored(item) for item in items]
        _check_count(scored)
        fitting, certifying = halves(scored)
        names = self.plan.task.option_names
        return outcome.of_scored(fitting, certifying, classes=names, target=self.plan.target, about=about)

    def _of_answered(self, items: Sequence[Item], about: About) -> Outcome:
        answered = [self._answered(item) for item in items]
        _check_count(answered)
        fitting, certifying = halves(answered)
        return outcome.of_answered(fitting, certifying, target=self.plan.target, about=about)

    def _scored(self, item: Item) -> Scored:
        line, label = self.results.get(self._id(item)), self._chosen(item)
        assert line is not None
        assert label is not None
        return line.scored(label)

    def _chosen(self, item: Item) -> int | None:
        """The place of the right option, by gold or by the cloud."""
        if self.plan.cloud is None:
            return None if item.answer is None else self.plan.task.option_names.index(item.answer)
        said = self.results.get(_cloud_id(item))
        return None if said is None else said.c

    def _answered(self, item: Item) -> Answered:
        line = self.results.get(self._id(item))
        assert line is not None
        return line.answered()

    def _id(self, item: Item) -> str:
        if self.plan.task.is_closed:
            return item_id(item.input)
        return (
            item_id(item.input, "gold", item.answer or "") if self.plan.cloud is None else item_id(item.input, "cloud")
        )

    def _ignored(self) -> tuple[str, ...]:
        missing = len(self.plan.dataset.items) - len(self.plan.dataset.labelled)
        return (f"left out because they have no answer (--from-cloud asks for it): {missing}",) if missing else ()


async def _side_by_side(items: Sequence[Item], one: Callable[[Item], Awaitable[None]], *, at_once: int) -> None:
    """Do every item, so many at once; the first error ends the rest and is raised as it is."""
    left = iter(items)

    async def work() -> None:
        for item in left:
            await one(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(work())
    except* (EdgedError, OSError) as errors:
        raise errors.exceptions[0] from None


def _cloud_id(item: Item) -> str:
    return item_id(item.input, "option of the cloud")


def _agrees(said: str, gold: str, task: TaskFile) -> bool:
    return compare(Said(said), Said(gold), is_json=task.answer_schema is not None, is_exact=False).agreed


def _score(said: Generated, task: TaskFile) -> float:
    """The zero-shot score; an answer without evidence has the lowest."""
    score = structured_score if task.answer_schema is not None else free_text_score
    return score(said.tokens) or 0.0


def _features(said: Generated, task: TaskFile) -> tuple[float, ...]:
    is_json = task.answer_schema is not None
    form_ok = canonical(said.text) is not None if is_json else bool(said.text.strip())
    return features(said.tokens, finish=said.finish, is_structured=is_json, form_ok=form_ok)


def _check_count(items: Sequence[object]) -> None:
    if len(items) < outcome.FEWEST_ITEMS:
        raise ConfigError(f"{len(items)} labelled items are too few: at least {outcome.FEWEST_ITEMS} are needed")
