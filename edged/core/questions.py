"""What a client asks that is answered by one of several given options, and what a model said of each."""

from dataclasses import dataclass
from enum import StrEnum

from edged.core.answer import Timings, Usage
from edged.core.request import Request


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

    Of a SCORE they go from the lowest to the highest; of a NOUL they are yes and no.
    """

    name: str
    kind: QuestionKind
    options: tuple[str, ...]
    instructions: str = ""
    notes: tuple[str | None, ...] = ()
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionsRequest(Request):
    """Questions about one ``state``. ``input`` is the state and the questions, as the ledger keeps a prompt."""

    state: str
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class OptionsItem:
    """Texts that may stand behind a prompt."""

    prompt: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionScores:
    """Of each item and each of its options the log-probabilities (nats) of the option's tokens, in the order asked."""

    logprobs: tuple[tuple[tuple[float, ...], ...], ...]
    usage: Usage
    timings: Timings
