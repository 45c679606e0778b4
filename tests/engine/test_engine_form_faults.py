"""A constraint that fails, over a fake runner: its request ends, the batch goes on (D06)."""

import numpy as np
import pytest
from engine_builders import a_sequence
from test_engine_decode import engine, expected

from edged.engine.answer import AnswerText
from edged.engine.form import Blueprint, ConstraintFailed
from edged.testing.engine import FakeRunner


class Scripted:
    """Allows everything and completes after ``count`` tokens; fails at one of its calls."""

    def __init__(self, *, count=99, fails_in=None, at=0) -> None:
        self.accepted: list[int] = []
        self._count = count
        self._fails_in, self._at = fails_in, at

    @property
    def complete(self) -> bool:
        return len(self.accepted) >= self._count

    def prepare(self) -> None:
        """Nothing to compute."""

    def mask(self):
        self._meet("mask")
        return np.ones(257, dtype=np.bool_)

    def accept(self, token) -> None:
        self._meet("accept")
        self.accepted.append(token)

    def _meet(self, where) -> None:
        if where == self._fails_in and len(self.accepted) == self._at:
            raise ConstraintFailed("as scripted")


def constrained(tokens, constraint, **fields):
    sequence = a_sequence(tokens, **fields)
    sequence.blueprint = Blueprint(lambda: constraint, lambda: None, {})
    return sequence


@pytest.mark.parametrize("where", ["mask", "accept"])
@pytest.mark.parametrize("at", [0, 3])
def test_a_failing_constraint_ends_its_request_and_no_other(where, at):
    """Its choices are refused together; a neighbour in the same steps says what it would have said alone."""
    runner = FakeRunner()
    with engine(runner) as bench:
        bad = constrained([1, 2], Scripted(fails_in=where, at=at), id="bad", max_tokens=20)
        sibling = constrained([1, 2], Scripted(), id="bad", choice=1, max_tokens=20)
        bench.add(bad, sibling)
        bench.add(a_sequence([7, 8, 9], id="good", max_tokens=20))
        assert bench.text("good") == expected([7, 8, 9], 20)
        bench.until(lambda: "bad" in bench.refused)
        assert bench.refused["bad"].code == "engine_error"
        assert not any(e.finish for e in bench.emissions.get("bad", ()))
        bench.fence()
        assert runner.open_samplers == 0


def test_a_constraint_that_fails_on_what_was_kept_refuses_at_once():
    """The tokens of an earlier try have to fit the form as well."""
    runner = FakeRunner()
    with engine(runner) as bench:
        bench.add(constrained([1, 2], Scripted(fails_in="accept", at=1), generated=[97, 98], max_tokens=20))
        bench.until(lambda: "a" in bench.refused)
        bench.fence()
        assert runner.open_samplers == 0


def test_a_complete_form_ends_the_answer():
    """No step is spent on an end that is the only thing that may follow; each token was told to the constraint."""
    with engine() as bench:
        constraint = Scripted(count=3)
        bench.add(constrained([1, 2], constraint, max_tokens=20))
        assert bench.text("a") == expected([1, 2], 3)
        last = bench.last("a")
        assert (last.finish, last.completion_tokens) == ("stop", 3)
        assert len(constraint.accepted) == 3


def test_a_masked_token_is_never_chosen_and_the_signals_are_those_before_the_mask():
    """``allowed`` is what the mask left; the runner samples from what is left in place."""

    class Masking(FakeRunner):
        def logits(self, row, guesses=0):
            logits = super().logits(row, guesses)
            self.last = logits
            return logits

        def sample(self, sampler, row, guesses=0):
            return int(self.last.argmax())

    class OnlyX(Scripted):
        def mask(self):
            mask = np.zeros(257, dtype=np.bool_)
            mask[ord("X")] = True
            return mask

    with engine(Masking()) as bench:
        bench.add(constrained([1, 2], OnlyX(count=2), max_tokens=5))
        assert bench.text("a") == "XX"
        rows = [row for emission in bench.emissions["a"] for row in emission.tokens]
        assert all(row.margin == 10 for row in rows)
        assert all(row.logprob < -9 and 0 < row.allowed < 0.001 for row in rows)


def test_stop_strings_end_text_and_never_a_call():
    """Without calls the answer is scanned as it always was."""
    answer = AnswerText(("END",))
    assert answer.feed(b"one E").text == "one "
    said = answer.feed(b"ND two")
    assert (said.text, said.stopped) == ("", True)
