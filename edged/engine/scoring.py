"""Options being scored: how likely each token of a given text is behind a prompt. Owned by the decode thread.

Nothing is sampled. An option's tokens go through the model as guesses do, and the logits at the place before each say
how likely it was.
"""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edged.engine.protocol import Params, Score, Scored
from edged.engine.scheduler import Row
from edged.engine.sequence import Sequence
from edged.errors import ContextOverflow, EngineError, InvalidRequest

MAX_OPTIONS = 256
"""Of all items of one command together."""
MAX_OPTION_TOKENS = 64


def option_sequences(
    command: Score, items: list[tuple[list[int], list[list[int]]]], *, limit_tokens: int, now_s: float
) -> tuple[Sequence, ...]:
    """One sequence for each option of each item, given as (prompt tokens, tokens of its options).

    Raises: InvalidRequest, ContextOverflow.
    """
    count = sum(len(options) for _, options in items)
    if not 0 < count <= MAX_OPTIONS:
        raise InvalidRequest(
            f"questions: there may be 1 to {MAX_OPTIONS} options in all (got {count})", param="questions"
        )
    sequences: list[Sequence] = []
    for prompt, options in items:
        if not prompt:
            raise InvalidRequest("the prompt is empty")
        for i, option in enumerate(options):
            _check(prompt, option, limit_tokens=limit_tokens)
            sequences.append(
                Sequence(
                    id=command.id,
                    choice=len(sequences),
                    tenant=command.tenant,
                    tokens=[*prompt, *option[:-1]],
                    prompt_tokens=len(prompt),
                    params=Params.greedy(len(option) - 1),  # room for the option, and for nothing behind it
                    submitted_s=now_s,
                    background=command.background,
                    option=tuple(option),
                    follows=i > 0,
                    wants_state=command.wants_state and i == 0,
                )
            )
    return tuple(sequences)


def _check(prompt: list[int], option: list[int], *, limit_tokens: int) -> None:
    if not 0 < len(option) <= MAX_OPTION_TOKENS:
        text = f"questions: each option must have 1 to {MAX_OPTION_TOKENS} tokens (got {len(option)})"
        raise InvalidRequest(text, param="questions")
    if len(prompt) + len(option) > limit_tokens:
        text = f"state, question and option have {len(prompt) + len(option)} tokens; this model takes {limit_tokens}"
        raise ContextOverflow(text, param="state")


def logprob(logits: NDArray[np.float32], token: int) -> float:
    """The natural logarithm of the token's probability. Raises: EngineError where the logits are no numbers."""
    top = logits.max()
    found = float(logits[token]) - float(top) - float(np.log(np.exp(logits - top).sum(dtype=np.float64)))
    if not np.isfinite(found):
        raise EngineError("the model computed logits that are no numbers")
    return found


@dataclass(slots=True)
class _Group:
    """The sequences of one command, and what was found so far of each; states by their sequence's place."""

    sequences: tuple[Sequence, ...]
    logprobs: list[list[float]]
    open: set[Sequence]
    states: dict[int, bytes]


class Scores:
    """The commands whose options are being scored, by id."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}

    def __repr__(self) -> str:
        return f"Scores(open={len(self._groups)})"

    def __contains__(self, sequence: Sequence) -> bool:
        group = self._groups.get(sequence.id)
        return group is not None and sequence in group.open

    def open(self, sequences: tuple[Sequence, ...]) -> None:
        """Begin the options of one command."""
        self._groups[sequences[0].id] = _Group(sequences, [[] for _ in sequences], set(sequences), {})

    def forget(self, request_id: str) -> None:
        """Nobody wants these any more; an unknown id is fine."""
        self._groups.pop(request_id, None)

    def add(self, row: Row, found: list[float], state: NDArray[np.float32] | None) -> bool:
        """Note what a computed row said of its option's next tokens; whether that was the last of them."""
        sequence = row.sequence
        group = self._groups[sequence.id]
        known = group.logprobs[sequence.choice]
        if state is not None:
            group.states[sequence.choice] = _halves(state)
        first = max(0, row.start - sequence.prompt_tokens + 1)
        known[first:] = found  # one that had to start over says everything again
        if sequence.first_token_s is None:
            sequence.first_token_s = time.monotonic()
        return len(known) == len(sequence.option)

    def close(self, sequence: Sequence) -> Scored | None:
        """One option is done; with the last one of its command all there is to say."""
        group = self._groups[sequence.id]
        group.open.discard(sequence)
        if group.open:
            return None
        del self._groups[sequence.id]
        return _scored(group)


def wanted(row: Row) -> tuple[int, ...]:
    """The option's tokens that the row's logits speak of, in order."""
    first = max(0, row.start - row.sequence.prompt_tokens + 1)
    return row.sequence.option[first : first + row.drafted + 1]


def _scored(group: _Group) -> Scored:
    sequences = group.sequences
    leaders = [sequence for sequence in sequences if not sequence.follows]
    admitted_s = min(s.admitted_s for s in sequences if s.admitted_s is not None)
    first_s = min(s.first_token_s for s in sequences if s.first_token_s is not None)
    return Scored(
        id=sequences[0].id,
        logprobs=tuple(map(tuple, group.logprobs)),
        prompt_tokens=sum(leader.prompt_tokens for leader in leaders),
        cached_tokens=sum(min(leader.cached_tokens, leader.prompt_tokens) for leader in leaders),
        option_tokens=sum(len(sequence.option) for sequence in sequences),
        queue_s=admitted_s - sequences[0].submitted_s,
        prefill_s=first_s - admitted_s,
        decode_s=time.monotonic() - first_s,
        states=tuple(group.states[leader.choice] for leader in leaders if leader.wants_state),
    )


def _halves(state: NDArray[np.float32]) -> bytes:
    """As little-endian float16; what is larger than they go becomes the largest."""
    limit = np.finfo(np.float16).max
    return state.clip(-limit, limit).astype("<f2").tobytes()
