"""A chat whose answer must be one of a few texts: they are scored behind it, and the likeliest is the answer."""

import json
from collections.abc import Sequence

from edged.chat.closed import Closed, closed
from edged.core import Chat, Request, Role, Target, ToolMode
from edged.core.questions import Judges, OptionsItem, Question, QuestionKind
from edged.dispatch.judging import ScoredCase
from edged.dispatch.local import Commit
from edged.dispatch.scoring import Scoring, Sitting
from edged.routing.decisions import item
from edged.routing.policy import Terms

MOST_LABELS = 32
"""Each option is computed, a generated answer only once: with more of them it is there sooner."""


class ClosedChat(ScoredCase):
    """One question: which of the answers. ``order`` is the place among them of each of the question's options."""

    def __init__(self, asked: Request, scoring: Scoring, answers: Closed, order: Sequence[int]) -> None:
        super().__init__(asked, scoring)
        self._answers = answers
        self._order = tuple(order)

    def settle(self, commit: Commit) -> None:
        """The answer is whole: what the cloud chose is known, where it chose one of them."""
        self.served_by = {0: commit.attempt.target}
        if commit.attempt.target is Target.CLOUD:
            try:
                self.labels = self.heard("".join(commit.attempt.texts[0]), (0,))
            except ValueError:
                self.labels = {}

    def second_opinion(self, places: Sequence[int]) -> tuple[Request, str]:  # noqa: ARG002 - there is only one
        assert self.scoring is not None
        verdict = self.scoring.sittings[0].verdict
        assert verdict is not None
        return self.asked, self._answers.answer(self._order[verdict.best])

    def heard(self, text: str, places: Sequence[int]) -> dict[int, int]:
        said = json.loads(text)
        for option, place in enumerate(self._order):
            if json.loads(self._answers.answer(place)) == said:
                return dict.fromkeys(places, option)
        raise ValueError("the answer is none of those asked for")


def closed_chat(request: Request, judges: Judges, allowed: Terms, *, model: str) -> ClosedChat | None:
    """The request as one whose answer is chosen; None where its answer is to be generated."""
    answers = _choosable(request)
    if answers is None:
        return None
    assert isinstance(request.input, Chat)
    task = judges.question_of(request)
    state = _only_question(request.input)
    if task is not None and state is not None and set(task.options) == set(answers.labels):
        order = tuple(answers.labels.index(option) for option in task.options)
        standard = judges.standard(request, task, model=model, threshold=allowed.confidence)
        asked = item(state, standard.question)
    else:
        order = tuple(range(len(answers.labels)))
        standard = judges.standard(
            request, _as_question(request.input, answers), model=model, threshold=allowed.confidence
        )
        asked = OptionsItem(request.input, answers.endings, answers.opening, told_apart=True)
    scoring = Scoring(
        request, [Sitting(standard, asked)], judges, write=lambda places: answers.answer(order[places[0]])
    )
    return ClosedChat(request, scoring, answers, order)


def _choosable(request: Request) -> Closed | None:
    """The answers to choose from, where nothing that was asked for needs one token after the other."""
    is_plain = request.n == 1 and request.top_logprobs is None and not request.stop and not request.sampling.logit_bias
    if not isinstance(request.input, Chat) or request.images or not is_plain:
        return None
    if request.tool_mode is not ToolMode.NONE:
        return None
    answers = closed(request.output)
    if answers is None or len(answers.labels) > MOST_LABELS:
        return None
    is_long_enough = request.max_tokens is None or request.max_tokens >= answers.most_bytes
    return answers if is_long_enough else None


def _only_question(chat: Chat) -> str | None:
    """The user's message, where the conversation has no other turn: what a task's own prompt is about."""
    said = [message for message in chat.messages if message.role is not Role.SYSTEM]
    return said[0].text if len(said) == 1 and said[0].role is Role.USER else None


def _as_question(chat: Chat, answers: Closed) -> Question:
    """What stays the same from one request to the next: all but the newest turn, and the answers."""
    told = "\n".join(f"{message.role}: {message.text or ''}" for message in chat.messages[:-1])
    return Question(
        name="answer",
        kind=QuestionKind.CHOICE,
        options=answers.labels,
        instructions=f"{told}\n{answers.opening}",
        are_names=True,
    )
