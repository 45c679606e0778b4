"""Tasks while requests come in: which request is whose, how its answer is judged, and what is remembered of it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from edged.calibration.artefact import Artefact
from edged.calibration.heads import HeadUnusable
from edged.chat.asked import definition, parsed
from edged.config import Config, ModelConfig, TaskFile, schema_sha256
from edged.config.tasks import ambiguous
from edged.core import Locality, OutputFormat, Request, Target
from edged.core.questions import Question, QuestionKind, Seen, Standard, Verdict
from edged.learning.learning import Learning
from edged.learning.observations import Observation, checked, packed
from edged.learning.pupil import Standing
from edged.learning.words import promise
from edged.routing.audit import is_sampled
from edged.routing.decisions import LabelPriors

log = logging.getLogger(__name__)

_SEED = 8
"""Another lot than the routes' audits draw."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStandard(Standard):
    """A standard with what it was taken from: a version that takes over meanwhile judges the next request."""

    standing: Standing

    @property
    def artefact(self) -> Artefact | None:
        return self.standing.artefact

    @property
    def serves_nothing(self) -> bool:
        """The cloud is asked of every request, whatever the box thinks of it."""
        return self.artefact is None or self.artefact.threshold is None


class TaskJudges:
    """Judges questions of tasks by what was measured of them, all others as they come."""

    def __init__(
        self,
        tasks: Sequence[TaskFile] = (),
        *,
        learning: Learning | None = None,
        model_of: Callable[[TaskFile], str] = lambda _: "",
    ) -> None:
        self._learning = learning
        self._local = {task.name: model_of(task) for task in tasks}
        self._named = {task.name: task for task in tasks if task.is_closed}
        self._all = {task.name: task for task in tasks}
        alike = ambiguous(tasks)
        self._by_schema = {
            (task.route, sha256): task for task in tasks if task.name not in alike for sha256 in task.schema_sha256s
        }
        self._priors = LabelPriors()
        self._told: set[tuple[str | None, str]] = set()

    def __repr__(self) -> str:
        return f"TaskJudges({sorted(self._all)}, {self._learning!r})"

    # -- whose request -----------------------------------------------------------------------------------------------

    def task_of(self, request: Request) -> TaskFile | None:
        """The task file that a request names, else whose schema it asks for; only of the route it asks.

        A name that is no task file's is a kind of query as ``[[route.task]]`` knows it.
        """
        asked = request.limits.task
        if asked is not None:
            task = self._all.get(asked)
            return task if task is not None and task.route == request.model else None
        sha256 = _output_sha256(request.output) if self._by_schema else None
        return None if sha256 is None else self._by_schema.get((request.model, sha256))

    def question_of(self, request: Request) -> Question | None:
        task = self.task_of(request)
        return task.question if task is not None and task.is_closed else None

    def _task(self, request: Request, question: Question) -> TaskFile | None:
        """The task of one question: it has the task's options, and says nothing of its own."""
        if question.kind is not QuestionKind.CHOICE:
            return None
        asked = request.limits.task
        if asked is not None:
            task = self._named.get(asked)
            found = task if task is not None and task.route == request.model else None
        else:
            found = self._by_schema.get((request.model, schema_sha256({"enum": list(question.options)})))
        if found is None or set(found.option_names) != set(question.options):
            return None
        return found if question.instructions in ("", found.instructions) else None

    # -- what holds --------------------------------------------------------------------------------------------------

    def standard(self, request: Request, question: Question, *, model: str, threshold: float) -> Standard:
        task = self._task(request, question)
        if task is None or self._learning is None:
            return Standard(question=question, threshold=threshold)
        standing = self._learning.standing(task.name)
        if self._local[task.name] != model:
            standing = Standing(problem=f"made for the model {self._local[task.name]}")
        artefact = standing.artefact
        certified = None if artefact is None else artefact.threshold
        learns = task.learn.enabled and _may_learn(request.clearance.label)
        return TaskStandard(
            question=replace(task.question, name=question.name),
            threshold=None if certified is None else max(certified, request.limits.min_confidence or 0.0),
            task=task.name,
            wants_state=learns or (artefact is not None and artefact.wants_state),
            is_audited=learns and _is_drawn(request.id, question.name, task.learn.audit_share),
            certificate=promise(artefact, standing.problem),
            standing=standing,
        )

    def judge(
        self,
        request: Request,
        standard: Standard,
        logprobs: Sequence[Sequence[float]],
        *,
        model: str,
        state: bytes | None,
    ) -> Verdict:
        artefact = standard.artefact if isinstance(standard, TaskStandard) else None
        if artefact is None:
            return self._priors.judge(standard.question, logprobs, tenant=request.tenant, model=model)
        try:
            judged = artefact.judge(logprobs, state)
        except HeadUnusable as exc:
            return self._unjudged(request, standard, logprobs, model, exc)
        return Verdict(probabilities=judged.probabilities, method=artefact.level.value, calibrated=judged.confidence)

    def _unjudged(
        self, request: Request, standard: Standard, logprobs: Sequence[Sequence[float]], model: str, exc: HeadUnusable
    ) -> Verdict:
        """What was promised does not hold for this answer: as good as the options' scores are, and never trusted."""
        if (standard.task, exc.message) not in self._told:
            self._told.add((standard.task, exc.message))
            log.warning("task=%s an answer cannot be judged: %s", standard.task, exc.message)
        plain = self._priors.judge(standard.question, logprobs, tenant=request.tenant, model=model)
        return replace(plain, calibrated=0.0)

    # -- what is remembered ------------------------------------------------------------------------------------------

    def note(self, seen: Seen) -> None:
        """Hand on what may be kept: of a task that learns, and of a request that carries no label."""
        standard = seen.standard
        if self._learning is None or not isinstance(standard, TaskStandard) or not _may_learn(seen.locality):
            return
        task, key = self._named.get(standard.task or ""), standard.standing.key
        if task is None or key is None or not task.learn.enabled:
            return
        sums, counts = packed(seen.logprobs)
        observation = Observation(
            at=seen.received_at,
            key=key.id,
            sums=sums,
            counts=counts,
            hidden=checked(seen.state),
            choice=seen.choice,
            confidence=seen.confidence,
            label=seen.label,
            is_unbiased=seen.is_audited or standard.serves_nothing,
            is_local=seen.served_by is Target.LOCAL,
            version=standard.standing.version,
        )
        self._learning.take(task.name, observation)


def local_model(task: TaskFile, config: Config) -> ModelConfig:
    """The local model of a task's route, as the route serves the task."""
    route = next(route for route in config.routes if route.name == task.route).serving(task.name)
    return next(model for model in config.models if model.name == route.local)


def _may_learn(label: Locality) -> bool:
    """Whether anything of a request may be kept, and asked of a cloud to learn from it."""
    return label is Locality.ANY


def _is_drawn(request_id: str, question: str, share: float) -> bool:
    return is_sampled(f"{request_id}/{question}", share=share, seed=_SEED)


def _output_sha256(output: OutputFormat) -> str | None:
    """The hash of the schema that an answer must have; None where it has none."""
    text = definition(output)
    return None if text is None else _definition_sha256(text)


@lru_cache(maxsize=256)
def _definition_sha256(text: str) -> str | None:
    schema = parsed(text)
    return None if schema is None else schema_sha256(schema)
