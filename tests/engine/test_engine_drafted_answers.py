"""Drafts change when a token is computed, not which: answers with drafts against the same answers without.

The drafts here are worse than any real ones: right, wrong and half right at random, by an oracle that knows the plain
answer. The fake runner's distribution depends on every token before it, so that a wrong cell shows in all that follows.
"""

import random
from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest
from engine_builders import a_sequence
from test_engine_decode import Bench, engine, expected

from edged.engine.decode import Drop
from edged.engine.form import Blueprint, ConstraintFailed
from edged.engine.protocol import Emission
from edged.testing.engine import END, FakeRunner, replies

LETTERS = range(ord("a"), ord("f"))
CELLS = 700


class Ranked(FakeRunner):
    """Logits that differ for every context and token; samples the best or, at a temperature, one of the best three."""

    def __init__(self, *, pool=None, **fields) -> None:
        super().__init__(**fields)
        self.pool = pool

    def decode(self, rows):
        self._at: dict[tuple[int, int], np.ndarray] = {}
        assert self.cache.used_cells == self.pool.used_cells <= self.pool.cells, "mirror and cache differ"
        for row in rows:
            end = row.start + len(row.tokens)
            assert end <= row.sequence.total_tokens, "more cells than were reserved"
        return super().decode(rows)

    def logits(self, row, guesses=0):
        if (row, guesses) not in self._at:
            context = self._contexts[row][guesses]
            logits = np.full(END + 1, -20, dtype=np.float32)
            seeded = np.random.default_rng([len(context), *context])
            logits[LETTERS.start : LETTERS.stop] = seeded.normal(size=len(LETTERS))
            logits[END] = seeded.normal() - 1.5
            self._at[row, guesses] = logits
        return self._at[row, guesses]

    def sample(self, sampler, row, guesses=0):
        logits = self.logits(row, guesses)
        best = [int(token) for token in np.argsort(-logits, kind="stable")[:3] if np.isfinite(logits[token])]
        return best[sampler.sample(None, row) % len(best)]


class Remainders:
    """Letters have to take turns by their remainder; complete after so many tokens; may fail half way."""

    def __init__(self, complete_after: int, fails_at: int | None) -> None:
        self._count = 0
        self._complete_after, self._fails_at = complete_after, fails_at

    @property
    def complete(self) -> bool:
        return self._count >= self._complete_after

    def prepare(self) -> None:
        """Nothing to compute."""

    def mask(self):
        if self._count == self._fails_at:
            raise ConstraintFailed("as scripted")
        return (np.arange(END + 1) + self._count) % 2 == 0

    def accept(self, token) -> None:
        assert (token + self._count) % 2 == 0
        self._count += 1


class Oracle:
    """Stands where the drafter does; knows what will be said and does not always say it."""

    def __init__(self, answers: dict[tuple[str, int], list[int]], seed: int) -> None:
        self._answers = answers
        self._draw = random.Random(seed)

    def propose(self, sequences):
        guesses, spare_rows = {}, 16 - len(sequences)
        for sequence in sequences:
            most = min(sequence.room_tokens - 1, 5, spare_rows)
            draft = self._guess(sequence)[: self._draw.randrange(6)][: max(0, most)]
            spare_rows -= len(draft)
            guesses |= {sequence: tuple(draft)} if draft else {}
        return guesses

    def _guess(self, sequence) -> list[int]:
        rest = self._answers.get((sequence.id, sequence.choice), [])[sequence.generated_tokens :]
        noise = self._draw.choices([*LETTERS, END], k=6)
        right = self._draw.choice([0, 1, 2, 6])
        return [*rest[:right], *noise]

    def observe(self, rows, elapsed_s, *, plain) -> None:
        assert elapsed_s > 0
        assert rows >= 1
        assert plain in (True, False)

    def forget_pace(self) -> None:
        """Nothing is learnt."""


@dataclass
class Work:
    """Requests drawn from a seed; each call makes new sequences of the same."""

    seed: int
    names: list[str] = field(default_factory=lambda: [f"r{i}" for i in range(6)])

    def requests(self) -> list[list]:
        draw = random.Random(self.seed)
        return [self._request(draw, name) for name in self.names]

    def _request(self, draw: random.Random, name: str) -> list:
        stem = [draw.randrange(3)] * draw.randrange(1, 30)
        prompt = [*stem, *draw.choices(range(5), k=draw.randrange(1, 20))]
        fields = {
            "max_tokens": draw.choice([1, 2, 3, 8, 30]),
            "temperature": draw.choice([0.0, 1.0]),
            "stop": draw.choice([(), ("ab",), ("c", "dda"), ("ea", "bb")]),
            "top_logprobs": draw.choice([0, 3]),
        }
        form = (draw.randrange(2, 25), draw.choice([None, None, draw.randrange(12)])) if draw.random() < 0.3 else None
        seed = draw.randrange(100)
        choices = [
            a_sequence(prompt, id=name, choice=i, seed=seed + i, **fields) for i in range(draw.choice([1, 1, 2, 3]))
        ]
        for sequence in choices if form else ():
            sequence.blueprint = Blueprint(lambda: Remainders(*form), lambda: None, {})
        return choices


def answers(work: Work, oracle=None, cancel: str | None = None) -> Bench:
    """Everything the work's requests say, and that nothing is left behind."""
    runner = Ranked(cells=CELLS)
    with engine(runner, slots=3, cells=CELLS) as bench:
        runner.pool = bench.pool
        bench.loop._drafter = oracle
        draw = random.Random(work.seed)
        for request in work.requests():
            bench.add(*request)
            if draw.random() < 0.4:
                bench.fence()
        if cancel is not None:
            bench.until(lambda: cancel in bench.emissions or bench.ended(cancel))
            bench.loop.post(Drop(cancel))
        for request in work.requests():
            if request[0].id != cancel:
                for sequence in request:
                    bench.text(sequence.id, sequence.choice)
        bench.fence()
        assert bench.pool.busy_slots == runner.open_samplers == 0
    return bench


def whole(bench: Bench, name: str, choice: int) -> Emission:
    """All a choice said, as if in one step; without what only clocks and drafts know."""
    parts = [e for e in bench.emissions.get(name, ()) if e.choice == choice]
    joined = {"text": "".join(e.text for e in parts), "tokens": tuple(row for e in parts for row in e.tokens)}
    last = parts[-1] if parts else Emission(name, choice, "", ())
    apart = {"queue_s": 0.0, "prefill_s": 0.0, "decode_s": 0.0, "accepted_tokens": 0, "rejected_tokens": 0}
    return msgspec.structs.replace(last, cached_tokens=0, **joined, **apart)


@pytest.mark.parametrize("seed", range(40))
def test_an_answer_with_drafts_is_the_answer_without(seed: int) -> None:
    """Text, every token's signals, ends, counts and refusals, whatever is guessed; forms, stops and seeds included."""
    work = Work(seed)
    plain = answers(work)
    said = {
        (s.id, s.choice): [row.id for row in whole(plain, s.id, s.choice).tokens] for r in work.requests() for s in r
    }
    drafted = answers(work, Oracle(said, seed))
    assert drafted.refused.keys() == plain.refused.keys()
    taken = 0
    for request in work.requests():
        for sequence in request:
            if sequence.id not in plain.refused:
                assert whole(drafted, sequence.id, sequence.choice) == whole(plain, sequence.id, sequence.choice)
                taken += drafted.last(sequence.id, sequence.choice).accepted_tokens
    assert seed or taken


@pytest.mark.parametrize("seed", range(100, 115))
def test_a_cancel_amid_drafts_ends_one_answer_and_changes_none(seed: int) -> None:
    """Whatever step it meets: the others say what they would, and every cell is accounted for."""
    work = Work(seed)
    plain = answers(work)
    said = {
        (s.id, s.choice): [row.id for row in whole(plain, s.id, s.choice).tokens] for r in work.requests() for s in r
    }
    drafted = answers(work, Oracle(said, seed), cancel="r2")
    for request in work.requests():
        for sequence in request:
            one, other = (whole(bench, sequence.id, sequence.choice) for bench in (drafted, plain))
            if sequence.id == "r2":
                assert other.text.startswith(one.text)
            elif sequence.id not in plain.refused:
                assert one == other


class Always:
    """Drafts the same tokens whenever there is room."""

    def __init__(self, tokens) -> None:
        self.tokens = tuple(tokens)

    def propose(self, sequences):
        return {s: self.tokens[: s.room_tokens - 1] for s in sequences if s.room_tokens > 1}

    def observe(self, rows, elapsed_s, *, plain) -> None:
        """Nothing is learnt."""


def ask_with(drafts, says: bytes, **fields):
    with engine(FakeRunner(answer=replies(says))) as bench:
        bench.loop._drafter = Always(drafts)
        text = bench.ask([5, 0], **fields)
        return text, bench.last("a"), bench.runner.steps.qsize()


def test_usage_counts_the_guesses_that_came_and_those_that_did_not() -> None:
    """In each step the first two of three came; the answer's own count knows nothing of them."""
    text, last, steps = ask_with(b"ooX", b"o" * 9, max_tokens=9)
    assert (text, last.completion_tokens) == ("o" * 9, 9)
    assert steps == 1 + 3
    assert (last.accepted_tokens, last.rejected_tokens) == (2 + 2 + 1, 1 + 1 + 0)


def test_an_answer_ends_inside_a_draft_where_it_would_have_ended() -> None:
    """By the end token, a stop string and the limit: what was guessed beyond is not said."""
    text, last, _ = ask_with([*b"bc", END, 7], b"abc", max_tokens=60)
    assert (text, last.finish, last.completion_tokens) == ("abc", "stop", 4)
    assert (last.accepted_tokens, last.rejected_tokens) == (3, 1)
    text, last, _ = ask_with(b"bc#d", b"abc#def", max_tokens=60, stop=("c#",))
    assert (text, last.finish, last.completion_tokens) == ("ab", "stop", 4)
    text, last, _ = ask_with(b"bcdef", b"abcdefgh", max_tokens=4)
    assert (text, last.finish, last.completion_tokens) == ("abcd", "length", 4)


def test_several_tokens_of_one_step_are_one_piece_of_news() -> None:
    with engine(FakeRunner(answer=replies(b"abcdefgh"))) as bench:
        bench.loop._drafter = Always(b"bcd")
        bench.ask([5, 0], max_tokens=4)
        assert [row.piece for row in bench.emissions["a"][-1].tokens][-3:] == [b"b", b"c", b"d"]


def test_a_model_that_cannot_take_back_a_guess_gets_no_more_of_them() -> None:
    """The refused removal costs a second computation and nothing else; from then on nothing is drafted."""
    prompt = [1, 2, 3] * 8
    runner = FakeRunner()
    with engine(runner) as bench:
        runner.cache.refuses_partial = True
        bench.loop._drafter = Always(b"??")
        assert bench.ask(prompt, max_tokens=12) == expected(prompt, 12)
        assert bench.loop._drafter is None
        last = bench.last("a")
        assert (last.completion_tokens, last.accepted_tokens, last.rejected_tokens) == (12, 0, 2)
        assert min(last.queue_s, last.prefill_s, last.decode_s) >= 0


def test_nothing_is_drafted_while_a_prompt_is_computed() -> None:
    """A newcomer's rows come first; with it done the running answer is drafted for again."""
    with engine(FakeRunner(answer=lambda _: ord("o"))) as bench:
        bench.loop._drafter = Always(b"oo")
        bench.add(a_sequence([1] * 5, id="running", max_tokens=400))
        bench.until(lambda: "running" in bench.emissions)
        bench.ask([2] * 90, id="new", max_tokens=1)
        bench.text("running")
        steps = [bench.runner.steps.get() for _ in range(bench.runner.steps.qsize())]
    mixed = [rows for rows in steps if any(row.sequence.id == "new" for row in rows)]
    assert not any(row.drafted for rows in mixed for row in rows)
    assert any(row.drafted for row in steps[-2])
