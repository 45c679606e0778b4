"""What observations of one task come to: when a look is due, what it may promise, when a promise is broken. No I/O."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

import msgspec

from edged.calibration import artefact as artefacts
from edged.calibration import learning as learner
from edged.calibration.artefact import Artefact, LabelSource, Level, option_features
from edged.calibration.certificate import Certificate
from edged.calibration.heads import Head
from edged.calibration.learning import Aim, Progress, Proposal
from edged.config.tasks import TaskTarget
from edged.learning.child import Order, Result
from edged.learning.observations import Observation


class Lesson:
    """Counts what was noted of one task under one key: labels, and the audits of each version's local answers."""

    def __init__(self, target: TaskTarget, progress: Progress | None = None) -> None:
        self._aim = aim_of(target)
        self._audited: Counter[int] = Counter()
        self._wrong: Counter[int] = Counter()
        self.progress = progress or Progress()
        self.labels = 0
        self.unbiased = 0
        self.next_number = self.progress.fresh_from

    def __repr__(self) -> str:
        return f"Lesson(labels={self.labels}, unbiased={self.unbiased}, next_number={self.next_number})"

    def note(self, seen: Observation) -> None:
        self.next_number = max(self.next_number, seen.number + 1)
        if (is_right := seen.is_right) is None:
            return
        self.labels += 1
        self.unbiased += seen.is_unbiased
        if seen.is_unbiased and seen.is_local:
            self._audited[seen.version] += 1
            self._wrong[seen.version] += not is_right

    def is_due(self) -> bool:
        return self._aim is not None and learner.is_due(self.progress, self.labels)

    def began(self) -> Progress:
        """What is to be remembered before a look, for the case that its result is never heard: it counts as one."""
        return replace(self.progress, attempts=self.progress.attempts + 1, looked_at=self.labels)

    def broken(self, artefact: Artefact, version: int) -> str | None:
        """Why the version's promise does not hold, in numbers; None while nothing speaks against it."""
        return _broken(self._wrong[version], self._audited[version], artefact)


def aim_of(target: TaskTarget) -> Aim | None:
    """None where a share is asked for: that promises nothing."""
    return None if target.max_error is None else Aim(alpha=target.max_error, delta=target.delta)


def broken_before(artefact: Artefact, seen: Iterable[Observation]) -> str | None:
    """Whether an earlier version would have kept its promise on an unbiased sample that came later."""
    judged = [
        artefact.judge(one.logprobs, one.hidden).choice == one.label
        for one in seen
        if one.is_unbiased and one.label is not None and _would_serve(artefact, one)
    ]
    return _broken(judged.count(False), len(judged), artefact)


def _would_serve(artefact: Artefact, seen: Observation) -> bool:
    confidence = artefact.judge(seen.logprobs, seen.hidden).confidence
    return artefact.threshold is not None and confidence >= artefact.threshold


def _broken(wrong: int, served: int, artefact: Artefact) -> str | None:
    promised = artefact.certificate
    if promised is None or not served:
        return None
    if not learner.is_broken(wrong, served, Aim(alpha=promised.alpha, delta=promised.delta)):
        return None
    return (
        f"{wrong} of {served} audited local answers differed from the cloud's ({100 * wrong / served:.1f} %), "
        f"promised were at most {100 * promised.alpha:g} %"
    )


# -- in the process that fits ----------------------------------------------------------------------------------------


def fit(order: Order, observations: Sequence[Observation]) -> Result:
    """Look at everything that is labelled. Raises: ConfigError where scikit-learn is missing."""
    labelled = [seen for seen in observations if seen.label is not None]
    width = len(labelled[-1].hidden or b"") if labelled else 0
    alike = [seen for seen in labelled if len(seen.hidden or b"") == width]
    lessons = [_lesson(seen) for seen in alike]
    progress = msgspec.convert(order.progress, Progress)
    running = artefacts.read(order.running.encode()).head if order.running else None
    aim = Aim(alpha=order.max_error, delta=order.delta)
    proposal = learner.propose(lessons, order.options, aim, progress, running=running)
    artefact = None
    if proposal.head is not None and proposal.certificate is not None:
        level = Level.HIDDEN if width else Level.FEATURES
        artefact = _artefact(order, proposal, proposal.head, proposal.certificate, level=level, labels=len(lessons))
    return Result(
        artefact=None if artefact is None else artefacts.dump(artefact).decode(),
        progress=asdict(proposal.progress),
        why=proposal.why,
        labels=len(lessons),
    )


def _lesson(seen: Observation) -> learner.Lesson:
    assert seen.label is not None
    features = option_features(seen.logprobs, seen.hidden)
    return learner.Lesson(number=seen.number, features=features, label=seen.label, is_unbiased=seen.is_unbiased)


def _artefact(
    order: Order, proposal: Proposal, head: Head, certificate: Certificate, *, level: Level, labels: int
) -> Artefact:
    return Artefact(
        key=order.key,
        level=level,
        source=LabelSource.CLOUD,
        head=head,
        threshold=certificate.threshold,
        certificate=certificate,
        labels=labels,
        accuracy=proposal.accuracy or 0.0,
        auroc=proposal.auroc,
        ece=proposal.ece,
        made_at=order.made_at,
        note=proposal.why[:500],
    )
