"""From the cloud's answers to a head of the box's own, certified again and again without the statement wearing out.

What is stated is agreement with whoever gave the labels. Where that is the cloud, the true error of local answers is
at most the stated one plus the cloud's own.

Three rules make the statement hold, whatever happens in between:

1. *The sample is unbiased.* A head is certified on requests that were labelled whatever the box thought of them: all of
   those that came while nothing was served locally, later only those that the audit lot fell on. Requests that were
   escalated because the box was unsure are for fitting alone.
2. *Nothing certifies what it taught.* While nothing runs, every second request is kept for certifying. Once a head
   runs, what is escalated depends on its threshold, and so on the very items that certified it. Therefore a new head
   is certified only by what came after the last one took over; the running head's threshold may be found anew with
   everything that was unbiased and did not fit it.
3. *Every look at certifying labels costs.* The k-th certification of a task spends delta / (k (k + 1)) of its delta;
   all of them together spend no more than delta. Whether to look is decided by the fitting items alone.

So with probability 1 - delta *every* certificate that a task ever gets holds, for traffic that stays as it is. Whether
it does is watched by a test that may be looked at after every audit (``is_broken``).

Sources: fixed-sequence testing as in Angelopoulos et al., "Learn then Test" (2021), the order of hypotheses found on
other data as in Laufer-Goldshtein et al., "Efficiently controlling multiple risks with Pareto testing" (2023);
Clopper-Pearson bounds; Ville's inequality for a mixture of likelihood ratios (Robbins, 1970).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edged.calibration.certificate import Certificate
from edged.calibration.heads import Head, Vector

FIRST_LOOK_LABELS = 60
GROWTH = 1.25
"""A look at the data follows when there is a quarter more of it."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """One labelled request. ``number`` counts a task's requests upwards and is never given twice.

    ``is_unbiased``: the cloud was asked whatever the box thought of it: nothing was served locally at the time, or the
    audit lot fell on it (whoever served it).
    """

    number: int
    features: Vector
    label: int
    is_unbiased: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What must be remembered of a task from one fit to the next, and over restarts. Numbers alone.

    ``attempts`` certifications were tried. ``looked_at`` labels were there at the last look. Unbiased requests from
    ``fresh_from`` on have had no part in any head; those from ``head_from`` on had none in the running one.
    """

    attempts: int = 0
    looked_at: int = 0
    fresh_from: int = 0
    head_from: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """At most ``alpha`` of local answers may differ from the labels; ``delta`` is 1 - confidence."""

    alpha: float
    delta: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """What a look came to. ``progress`` is to be stored whatever else happens.

    ``head`` with its ``certificate`` takes over; None: all stays as it is, for the reason in ``why``. ``is_new`` is
    False where it is the running head with another threshold. ``accuracy``, ``auroc`` and ``ece`` are those on the
    certifying items.
    """

    progress: Progress
    why: str
    head: Head | None = None
    certificate: Certificate | None = None
    is_new: bool = False
    accuracy: float | None = None
    auroc: float | None = None
    ece: float | None = None


def is_due(progress: Progress, labels: int) -> bool:
    """Whether a look at so many labelled requests may find something new."""
    return labels >= max(FIRST_LOOK_LABELS, progress.looked_at * GROWTH)


def propose(
    lessons: Sequence[Lesson], classes: Sequence[str], aim: Aim, progress: Progress, *, running: Head | None = None
) -> Proposal:
    """Fit a head, see whether it is worth a certification, and if so certify it. Takes seconds; pure.

    ``running`` is the head in use, None where nothing is served locally. Raises: ConfigError without scikit-learn.
    """
    raise NotImplementedError


def rolled_back(progress: Progress, next_number: int) -> Progress:
    """What holds once a running certificate was found broken: what came so far may fit, and certifies nothing more."""
    return replace(progress, fresh_from=next_number, head_from=None)


def is_broken(wrong: int, served: int, aim: Aim) -> bool:
    """Whether audits of ``served`` local answers, ``wrong`` of them, contradict the certificate.

    May be asked after every audit: a certificate that holds is called broken with probability ``delta`` at most, ever.
    """
    raise NotImplementedError
