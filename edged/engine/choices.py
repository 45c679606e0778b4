"""The choices being generated: the sampler, text and form of each, and the tokens a computed step leads to.

Owned by the decode thread. A guessed token is taken only where the sequence's own sampler, masked and penalised as
ever, chooses that very token from the distribution computed at its place: drafts change when, never what is chosen.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np

from edged.core import FinishReason
from edged.engine.answer import AnswerText, Said
from edged.engine.form import Constraint
from edged.engine.protocol import CallRow, Emission, Params, TokenRow
from edged.engine.runner import Runner, Sampler
from edged.engine.scheduler import Row
from edged.engine.sequence import Sequence
from edged.engine.signals import Signal, SignalReader

_IMPOSSIBLE = np.float32(-np.inf)


@dataclass(slots=True)
class _Choice:
    """What a sequence needs beyond the scheduler's view."""

    answer: AnswerText
    sampler: Sampler
    constraint: Constraint | None = None
    markup: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Next:
    """One token more of a choice."""

    token: int
    said: Said
    rows: tuple[TokenRow, ...]
    finish: FinishReason | None


@dataclass(frozen=True, slots=True)
class Advance:
    """What a row led to, and how many of its guesses came."""

    emission: Emission
    accepted: int


class Choices:
    """The open choices, by sequence."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._signals = SignalReader(runner.vocabulary.size_tokens)
        self._open: dict[Sequence, _Choice] = {}

    def __repr__(self) -> str:
        return f"Choices(open={len(self._open)})"

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._open

    def open(self, sequence: Sequence) -> None:
        """Make a choice's parts, brought up to what an earlier try generated. Raises: ConstraintFailed."""
        blueprint, stops = sequence.blueprint, sequence.params.stop
        parser = blueprint.parser() if blueprint else None
        constraint = blueprint.constraint() if blueprint else None
        markup = blueprint.markup if blueprint else {}
        choice = _Choice(AnswerText(stops, parser), self._runner.sampler(sequence.params), constraint, markup)
        self._open[sequence] = choice
        for token in sequence.tokens[sequence.prompt_tokens :]:
            choice.answer.feed(self._piece(choice, token))
            choice.sampler.accept(token)
            if constraint:
                constraint.accept(token)
        if constraint:
            constraint.prepare()

    def close(self, sequence: Sequence) -> None:
        """Free a choice's parts; one that is not open is fine."""
        if choice := self._open.pop(sequence, None):
            choice.sampler.close()

    def advance(self, index: int, row: Row) -> Advance:
        """Choose the token behind the ``index``-th row of the step, and as long as guesses come, those behind them.

        Raises: ConstraintFailed.
        """
        sequence, choice = row.sequence, self._open[row.sequence]
        chosen: list[_Next] = []
        accepted = 0
        for guess in (*row.guesses, None):
            chosen.append(self._next(index, accepted, sequence, choice))
            accepted += chosen[-1].token == guess
            if chosen[-1].token != guess or chosen[-1].finish:
                break
        sequence.drafted_tokens += row.drafted
        sequence.accepted_tokens += accepted
        return Advance(_emission(sequence, chosen), accepted)

    def _next(self, index: int, guesses: int, sequence: Sequence, choice: _Choice) -> _Next:
        """Choose the token behind so many of the row's guesses and say what it adds to the answer."""
        token, signal = self._choose(index, guesses, choice, sequence.params)
        if sequence.first_token_s is None:
            sequence.first_token_s = time.monotonic()
        sequence.tokens.append(token)
        ended = self._runner.vocabulary.is_end(token)
        said = choice.answer.feed(b"" if ended else self._piece(choice, token))
        finish = FinishReason.STOP if ended or said.stopped or self._completes(choice, token, ended=ended) else None
        if finish is None and sequence.is_full:
            finish = FinishReason.LENGTH
        rows = () if ended else (self._token_row(token, signal),)
        if finish is None:
            return _Next(token, said, rows, None)
        if not said.stopped:
            last = choice.answer.finish()
            said = Said(said.text + last.text, (*said.calls, *last.calls))
            finish = FinishReason.STOP if last.stopped else finish
        if finish is FinishReason.STOP and choice.answer.calls:
            finish = FinishReason.TOOL_CALLS
        return _Next(token, said, rows, finish)

    def _choose(self, index: int, guesses: int, choice: _Choice, params: Params) -> tuple[int, Signal]:
        """The next token, and what the distribution said before any mask touched it. Raises: ConstraintFailed."""
        mask = choice.constraint.mask() if choice.constraint else None
        logits = self._runner.logits(index, guesses)
        look = self._signals.look(logits, top=params.top_logprobs, mask=mask)
        if mask is not None:
            np.copyto(logits, _IMPOSSIBLE, where=~mask)
        token = self._runner.sample(choice.sampler, index, guesses)
        return token, look.chosen(logits, token)

    def _completes(self, choice: _Choice, token: int, *, ended: bool) -> bool:
        """Tell the constraint what was chosen; whether nothing may follow. Raises: ConstraintFailed."""
        if choice.constraint is None or ended:
            return False
        choice.constraint.accept(token)
        if choice.constraint.complete:
            return True
        choice.constraint.prepare()
        return False

    def _piece(self, choice: _Choice, token: int) -> bytes:
        return choice.markup.get(token) or self._runner.vocabulary.piece(token)

    def _token_row(self, token: int, signal: Signal) -> TokenRow:
        piece = self._runner.vocabulary.piece
        top = tuple((piece(candidate), logprob) for candidate, logprob in signal.top)
        return TokenRow(token, piece(token), signal.logprob, signal.margin, signal.entropy, top, signal.allowed)


def _emission(sequence: Sequence, chosen: list[_Next]) -> Emission:
    """What one step added to a choice; with its finish, all that is said once."""
    news = Emission(
        id=sequence.id,
        choice=sequence.choice,
        text="".join(one.said.text for one in chosen),
        tokens=tuple(row for one in chosen for row in one.rows),
        tool_calls=tuple(call for one in chosen for call in _call_rows(one.said)),
    )
    finish = chosen[-1].finish
    return news if finish is None else _last(sequence, news, finish)


def _last(sequence: Sequence, news: Emission, finish: FinishReason) -> Emission:
    assert sequence.admitted_s is not None
    assert sequence.first_token_s is not None
    return msgspec.structs.replace(
        news,
        finish=finish.value,
        prompt_tokens=sequence.prompt_tokens,
        cached_tokens=min(sequence.cached_tokens, sequence.prompt_tokens),
        completion_tokens=sequence.generated_tokens,
        accepted_tokens=sequence.accepted_tokens,
        rejected_tokens=sequence.drafted_tokens - sequence.accepted_tokens,
        queue_s=sequence.admitted_s - sequence.submitted_s,
        prefill_s=sequence.first_token_s - sequence.admitted_s,
        decode_s=time.monotonic() - sequence.first_token_s,
    )


def _call_rows(said: Said) -> tuple[CallRow, ...]:
    return tuple(CallRow(call.index, call.id, call.name, call.arguments) for call in said.calls)
