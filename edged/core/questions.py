"""What a client asks that is answered by one of several given options, and what a model said of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from edged.core.answer import Timings, Usage
from edged.core.request import Chat, Request
from edged.core.words import Locality, Target


class QuestionKind(StrEnum):
    """CHOICE names one option; SCORE is a place on a scale; NOUL is how likely the answer is yes."""

    CHOICE = "choice"
    SCORE = "score"
    NOUL = "noul"


@dataclass(frozen=True, slots=True)
class Example:
    """A state and the option that answers the question about it."""

    state: str
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """``options`` are the texts that may answer it, ``notes`` what each of them means, where that is said.

    Of a SCORE they go from the lowest to the highest; of a NOUL they are yes and no. ``input_word`` and ``answer_word``
    stand before each state and each answer where there are examples. ``are_names``: the options are short labels, as
    likely as they are to be written; else a long option would be punished for its length.
    """

    name: str
    kind: QuestionKind
    options: tuple[str, ...]
    instructions: str = ""
    notes: tuple[str | None, ...] = ()
    examples: tuple[Example, ...] = ()
    input_word: str = "Input"
    answer_word: str = "Answer"
    are_names: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionsRequest(Request):
    """Questions about one ``state``. ``input`` is the state and the questions, as the ledger keeps a prompt.

    ``wants_state``: the scores are to come with each prompt's last hidden state.
    """

    state: str
    questions: tuple[Question, ...]
    wants_state: bool = False


@dataclass(frozen=True, slots=True)
class OptionsItem:
    """Texts that may stand behind a prompt; behind a chat they follow ``opening``, with which the answer begins.

    ``told_apart``: only so many tokens of each are looked at as tell it from the others.
    """

    prompt: str | Chat
    options: tuple[str, ...]
    opening: str = ""
    told_apart: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionScores:
    """Of each item and each of its options the log-probabilities (nats) of the option's tokens, in the order asked.

    ``states``: where they were asked for, of each item the last layer's output at the prompt's last token, behind the
    final norm: little-endian float16, as many as the model is wide.
    """

    logprobs: tuple[tuple[tuple[float, ...], ...], ...]
    usage: Usage
    timings: Timings
    states: tuple[bytes, ...] | None = None


def plain_scores(logprobs: Sequence[Sequence[float]], usual: Sequence[float] | None) -> list[float]:
    """What options are compared by where nothing was fitted: each one's sum less what it ``usual``ly is.

    Where that is not known, the mean per token.
    """
    if usual is None:
        return [math.fsum(tokens) / len(tokens) for tokens in logprobs]
    return [math.fsum(tokens) - known for tokens, known in zip(logprobs, usual, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``probabilities`` of the question's options in their order; ``method`` is how they were compared.

    ``calibrated`` is the measured probability that the likeliest option is right, where one was measured.
    """

    probabilities: tuple[float, ...]
    method: str
    calibrated: float | None = None

    @property
    def best(self) -> int:
        """The likeliest option's place."""
        return self.probabilities.index(max(self.probabilities))

    @property
    def confidence(self) -> float:
        """What thresholds compare with: as calibrated, else the probability of the likeliest option."""
        return max(self.probabilities) if self.calibrated is None else self.calibrated

    @property
    def margin(self) -> float:
        """How far the likeliest option is ahead of the next."""
        first, *others = sorted(self.probabilities, reverse=True)
        return first - others[0] if others else first

    @property
    def expected(self) -> float:
        """The mean place on the scale, counted from 0."""
        return sum(place * probability for place, probability in enumerate(self.probabilities))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standard:
    """What holds for one question of a request before it is scored.

    ``question`` is as it is put to the model: of a ``task`` (its name) it is the task's own. ``threshold`` is the
    confidence from which the answer is served as it is; None: this model's answer is not to be trusted at all.
    ``wants_state``: ``judge`` is to be given the prompt's last hidden state. ``is_audited``: the lot fell on it, so
    that the cloud is asked as well, whoever serves. ``certificate`` says what is promised, for people to read.
    """

    question: Question
    threshold: float | None
    task: str | None = None
    wants_state: bool = False
    is_audited: bool = False
    certificate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One question that was answered, to learn from. No text of the state is in it.

    ``logprobs`` are those of each option's tokens, ``state`` the prompt's last hidden state where ``wants_state`` asked
    for it. ``choice`` is the local option with its ``confidence``; ``label`` is the option the cloud chose, None where
    it was not asked or did not answer. ``is_audited`` marks the unbiased sample. ``received_at`` is Unix time, a label.
    """

    request_id: str
    standard: Standard
    model: str
    tenant: str
    locality: Locality
    logprobs: tuple[tuple[float, ...], ...]
    state: bytes | None
    choice: int
    confidence: float
    served_by: Target
    label: int | None
    is_audited: bool
    received_at: float

    @property
    def task(self) -> str | None:
        return self.standard.task


class Judges(Protocol):
    """Knows tasks, and what the model's scores of an option are worth. All of it returns at once."""

    def question_of(self, request: Request) -> Question | None:
        """The question of the task that a request names, or whose set of answers it asks for; None: there is none."""
        ...

    def standard(self, request: Request, question: Question, *, model: str, threshold: float) -> Standard:
        """What holds for a question put to the local ``model``; ``threshold`` is what route and request ask together.

        Called once for each question of a request that is about to be scored.
        """
        ...

    def judge(
        self,
        request: Request,
        standard: Standard,
        logprobs: Sequence[Sequence[float]],
        *,
        model: str,
        state: bytes | None,
    ) -> Verdict:
        """From the log-probabilities of each option's tokens to an answer with a confidence."""
        ...

    def note(self, seen: Seen) -> None:
        """A question was answered; once for each, when all is known of it that will ever be."""
        ...
