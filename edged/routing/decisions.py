"""From the odds of each option's tokens to an answer with a confidence. Pure but for what ``LabelPriors`` remembers.

A model likes some words better than others, whatever it is asked. Where the same options are asked about again and
again, that liking is known: the mean of an option's log-probability over recent states. Taken off, it leaves what the
state itself says. Where options come once, the mean over each one's own tokens is all there is to compare by.
"""

import hashlib
import json
import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from enum import StrEnum

from edged.core.questions import OptionsItem, Question, QuestionKind, Verdict, plain_scores

FEWEST_STATES = 10
"""Before so many states of a question were seen, what its options are liked is not known. Of 140 SNIPS sentences .743
are right with it, .757 with 5, .671 with 30; so few as 5 could well be of one kind."""
RECENT_STATES = 300
REMEMBERED_QUESTIONS = 256


class Method(StrEnum):
    """How options were compared."""

    LABEL_PRIOR = "label_prior"
    MEAN_LOGPROB = "mean_logprob"
    STEPWISE = "stepwise"


def judge(
    logprobs: Sequence[Sequence[float]], prior: Sequence[float] | None = None, *, are_names: bool = False
) -> Verdict:
    """Compare options by their tokens' log-probabilities; ``prior``: the usual sum of each, where it is known."""
    if prior is None and are_names:
        return Verdict(probabilities=stepwise(logprobs), method=Method.STEPWISE)
    method = Method.MEAN_LOGPROB if prior is None else Method.LABEL_PRIOR
    return Verdict(probabilities=softmax(plain_scores(logprobs, prior)), method=method)


def softmax(scores: Sequence[float]) -> tuple[float, ...]:
    """Probabilities in proportion to e^score."""
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = math.fsum(weights)
    return tuple(weight / total for weight in weights)


def stepwise(logprobs: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """How likely each option is where one is written token by token and nothing else may be.

    Which options share a token is read off its log-probability: the same token behind the same text has the same.
    """
    found = [0.0] * len(logprobs)
    waiting = [(tuple(range(len(logprobs))), 0, 1.0)]
    while waiting:
        places, depth, mass = waiting.pop()
        over = [place for place in places if len(logprobs[place]) == depth]
        for place in places if len(places) == 1 else over:
            found[place] = mass / len(places)
        groups = _alike([place for place in places if place not in over], logprobs, depth) if len(places) > 1 else []
        left = mass * (1 - len(over) / len(places))
        odds = softmax([logprobs[group[0]][depth] for group in groups]) if groups else ()
        waiting += [(group, depth + 1, left * share) for group, share in zip(groups, odds, strict=True)]
    return tuple(found)


_SAME_TOKEN = 0.05
"""Nats between two readings of one token's log-probability, at most: see ARCHITECTURE.md."""


def _alike(places: Sequence[int], logprobs: Sequence[Sequence[float]], depth: int) -> list[tuple[int, ...]]:
    """The places by their token at this depth, the likeliest first."""
    groups: list[tuple[int, ...]] = []
    for place in sorted(places, key=lambda place: -logprobs[place][depth]):
        if groups and logprobs[groups[-1][0]][depth] - logprobs[place][depth] < _SAME_TOKEN:
            groups[-1] += (place,)
        else:
            groups.append((place,))
    return groups


class LabelPriors:
    """The recent sums of each option of the questions asked most recently, kept apart by API key and model.

    Only numbers are kept, no text: a question is known by its hash.
    """

    def __init__(self) -> None:
        self._seen: OrderedDict[tuple[str, str, str], deque[tuple[float, ...]]] = OrderedDict()

    def __repr__(self) -> str:
        return f"LabelPriors(questions={len(self._seen)})"

    def judge(self, question: Question, logprobs: Sequence[Sequence[float]], *, tenant: str, model: str) -> Verdict:
        """Compare a question's options, by what is known of them so far, and remember these."""
        recent = self._recent((tenant, model, question_sha256(question)))
        prior = None
        if len(recent) >= FEWEST_STATES:
            prior = [math.fsum(sums) / len(recent) for sums in zip(*recent, strict=True)]
        recent.append(tuple(math.fsum(tokens) for tokens in logprobs))
        return judge(logprobs, prior, are_names=question.are_names)

    def _recent(self, key: tuple[str, str, str]) -> deque[tuple[float, ...]]:
        recent = self._seen.setdefault(key, deque(maxlen=RECENT_STATES))
        self._seen.move_to_end(key)
        while len(self._seen) > REMEMBERED_QUESTIONS:
            self._seen.popitem(last=False)
        return recent


def question_sha256(question: Question) -> str:
    """Of all that changes what the model is asked; the question's own name does not."""
    said = [
        question.kind.value,
        question.instructions,
        question.options,
        question.notes,
        [(example.state, example.answer) for example in question.examples],
        question.input_word,
        question.answer_word,
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


# -- prompts ---------------------------------------------------------------------------------------------------------


def item(state: str, question: Question) -> OptionsItem:
    """The text whose continuations are compared.

    With examples the question comes first: it stays in the cache from one state to the next. Else the state comes
    first: every question about it shares its cells.
    """
    asked = "\n".join(filter(None, (question.instructions, *_notes(question))))
    options = tuple(f" {option}" for option in question.options)
    if not question.examples:
        return OptionsItem(f"{state}\n\nQuestion: {asked}\nAnswer:", options)
    before, behind = question.input_word, question.answer_word
    told = [f"{before}: {example.state}\n{behind}: {example.answer}" for example in question.examples]
    return OptionsItem("\n\n".join(filter(None, (asked, *told, f"{before}: {state}\n{behind}:"))), options)


def _notes(question: Question) -> tuple[str, ...]:
    """What each option means; without a word on any, and with examples, the options speak for themselves."""
    if any(question.notes):
        pairs = zip(question.options, question.notes, strict=True)
        return tuple(f"- {option}: {note}" if note else f"- {option}" for option, note in pairs)
    if question.examples or question.kind is QuestionKind.NOUL:
        return ()
    return ("Options: " + ", ".join(question.options),)
