"""Options scored over a fake runner: exact log-probabilities, one prompt computed once, cells that always add up."""

import queue
import random
from contextlib import contextmanager

import numpy as np
import pytest
from engine_builders import WAIT_S, a_sequence, on_its_thread

from edged.engine.decode import Add, DecodeLoop, Drop
from edged.engine.kv import KvPool
from edged.engine.protocol import Refused, Score, Scored, ScoreItem, StepDone
from edged.engine.scoring import MAX_OPTION_TOKENS, MAX_OPTIONS, option_sequences
from edged.errors import ContextOverflow, EngineError, InvalidRequest
from edged.testing.engine import END, FakeRunner, state_of

SLOTS, CELLS, OUTPUTS = 3, 600, 6
PROMPT = list(range(1, 41))


class NoisyRunner(FakeRunner):
    """Logits that depend on every token before them, and are remembered by context."""

    broken = False

    def logits(self, row, guesses=0):
        context = self._contexts[row][guesses]
        return spread(context) * (np.nan if self.broken else 1)


def spread(context) -> np.ndarray:
    return np.random.default_rng(abs(hash(tuple(context)))).normal(0, 3, END + 1).astype(np.float32)


def halves(prompt) -> bytes:
    """A prompt's state as it travels."""
    return state_of(tuple(prompt)).astype("<f2").tobytes()


def truth(prompt, option) -> list[float]:
    found = []
    for i, token in enumerate(option):
        logits = spread([*prompt, *option[:i]]).astype(np.float64)
        found.append(float(logits[token] - np.log(np.exp(logits).sum())))
    return found


class Bench:
    """A loop on its thread over a fake runner."""

    def __init__(self) -> None:
        self.runner = NoisyRunner(cells=CELLS, batch_tokens=64, step_rows=OUTPUTS)
        self.pool = KvPool(slots=2 * SLOTS, cells=CELLS)
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.done: dict[str, Scored | Refused | str] = {}
        self.loop = DecodeLoop(
            self.runner, self.pool, slots=SLOTS, chunk_tokens=16, publish=self.events.put, output_rows=OUTPUTS
        )

    def ask(self, name, *items, tenant="", background=False, wants_state=False) -> None:
        command = Score(name, tenant, tuple(ScoreItem(()) for _ in items), background, wants_state)
        self.loop.post(Add(option_sequences(command, list(items), limit_tokens=CELLS, now_s=0.0)))

    def wait(self, name):
        while name not in self.done:
            event = self.events.get(timeout=WAIT_S)
            if isinstance(event, Scored | Refused):
                self.done[event.id] = event
            elif isinstance(event, StepDone):
                self.done |= {e.id: "said" for e in event.emissions if e.finish}
        return self.done.pop(name)

    def steps(self):
        found = []
        while not self.runner.steps.empty():
            found.append(self.runner.steps.get())
        return found

    def fence(self) -> None:
        """Wait until everything posted before has been applied."""
        self.loop.post(Add((a_sequence([250], id="fence", max_tokens=1),)))
        self.wait("fence")


@contextmanager
def engine():
    bench = Bench()
    with on_its_thread(bench.loop, bench.runner):
        yield bench
    assert bench.pool.used_cells == bench.runner.cache.used_cells
    for slot in range(2 * SLOTS):
        assert bench.pool.tokens(slot) == bench.runner.cache.tokens(slot)


def test_scores_are_the_log_softmax_of_the_logits_at_each_token():
    """Of every option's every token, whatever is shared and however the steps fall."""
    options = [[5], [5, 6], [7, 8, 9], [5, 9, 1, 2, 3, 4, 5, 6, 7, 8], [99, 100]]
    with engine() as bench:
        bench.ask("a", (PROMPT, options))
        scored = bench.wait("a")
        for found, option in zip(scored.logprobs, options, strict=True):
            assert found == pytest.approx(truth(PROMPT, option), abs=1e-5)
        assert (scored.prompt_tokens, scored.cached_tokens, scored.option_tokens) == (len(PROMPT), 0, 18)
        assert bench.pool.busy_slots == 0


def test_a_prompt_is_computed_once_and_options_share_steps():
    """The first option brings the prompt; the others need its last token and their own, several in one step."""
    with engine() as bench:
        bench.ask("a", (PROMPT, [[1, 2], [3, 4], [5, 6], [7, 8]]))
        bench.wait("a")
        sizes = [[len(row.tokens) for row in step] for step in bench.steps()]
        assert sizes == [[len(PROMPT) + 1], [2, 2, 2]]


def test_questions_about_one_state_share_its_cells():
    """Two prompts with a common head: the second computes its own tail alone."""
    first, second = [*PROMPT, 101, 102], [*PROMPT, 103, 104, 105]
    with engine() as bench:
        bench.ask("a", (first, [[1], [2]]), (second, [[3], [4]]))
        scored = bench.wait("a")
        pairs = [(first, [1]), (first, [2]), (second, [3]), (second, [4])]
        for found, (prompt, option) in zip(scored.logprobs, pairs, strict=True):
            assert found == pytest.approx(truth(prompt, option), abs=1e-5)
        assert scored.cached_tokens == len(PROMPT)
        computed = sum(len(row.tokens) for step in bench.steps() for row in step)
        assert computed == len(first) + 1 + 3 + 1


def test_a_scored_prompt_stays_in_the_cache_once_for_the_next_request():
    """One copy of it, without any option's tokens; another key's request does not find it."""
    with engine() as bench:
        bench.ask("a", (PROMPT, [[1, 2], [3, 4], [5]]), tenant="one")
        bench.wait("a")
        bench.fence()
        held = [tokens for slot in range(2 * SLOTS) if (tokens := bench.pool.tokens(slot))[:1] == (1,)]
        assert held == [tuple(PROMPT)]
        bench.ask("b", (PROMPT, [[9]]), tenant="one")
        assert bench.wait("b").cached_tokens == len(PROMPT) - 1
        bench.ask("c", (PROMPT, [[9]]), tenant="two")
        assert bench.wait("c").cached_tokens == 0


def test_two_requests_never_compute_the_same_new_prompt_in_one_step():
    """The second waits one step and finds it."""
    with engine() as bench:
        bench.runner.hold()
        bench.loop.post(Add((a_sequence([250], id="first", max_tokens=1),)))
        short = PROMPT[:10]
        bench.ask("a", (short, [[1]]))
        bench.ask("b", (short, [[2]]))
        bench.runner.resume()
        assert bench.wait("a").cached_tokens == 0
        assert bench.wait("b").cached_tokens == len(short) - 1


def test_a_cancelled_request_says_nothing_and_leaves_no_slot_taken():
    """In whatever step it is."""
    with engine() as bench:
        bench.runner.hold()
        bench.ask("a", (PROMPT, [[1, 2], [3, 4]]))
        bench.runner.steps.get(timeout=WAIT_S)
        bench.loop.post(Drop("a"))
        bench.runner.resume()
        bench.fence()
        assert "a" not in bench.done
        bench.ask("b", (PROMPT, [[1, 2]]))
        assert bench.wait("b").logprobs[0] == pytest.approx(truth(PROMPT, [1, 2]), abs=1e-5)


def test_a_failed_step_refuses_the_request_and_nobody_elses():
    """Options that wait are given up with those of the step."""
    with engine() as bench:
        bench.runner.faults = [-3]
        bench.ask("a", (PROMPT, [[1, 2], [3, 4]]))
        assert bench.wait("a").code == EngineError.code
        bench.ask("b", (PROMPT, [[1, 2]]))
        assert isinstance(bench.wait("b"), Scored)


def test_logits_that_are_no_numbers_are_an_engine_error():
    """Never a score."""
    with engine() as bench:
        bench.runner.broken = True
        bench.ask("a", (PROMPT, [[1, 2], [3, 4]]))
        assert "no numbers" in bench.wait("a").message
        bench.runner.broken = False
        bench.ask("b", (PROMPT, [[1, 2]]))
        assert isinstance(bench.wait("b"), Scored)


@pytest.mark.parametrize("seed", range(12))
def test_cells_add_up_under_random_traffic(seed):
    """Scores beside ordinary answers, cancels and failing steps: every score and state is exact, no cell is lost."""
    draw = random.Random(seed)
    stems = [[stem + 1] * draw.randrange(1, 50) for stem in range(3)]
    asked = {}
    with engine() as bench:
        for i in range(30):
            name = f"r{i}"
            prompt = [*draw.choice(stems), *(draw.randrange(9) for _ in range(draw.randrange(1, 30)))]
            kind = draw.randrange(3)
            if kind:
                counts = (draw.randrange(1, 9) for _ in range(draw.randrange(1, 6)))
                options = [[draw.randrange(200) for _ in range(count)] for count in counts]
                tenant, background, wants_state = draw.choice("xy"), draw.random() < 0.2, draw.random() < 0.5
                bench.ask(name, (prompt, options), tenant=tenant, background=background, wants_state=wants_state)
                asked[name] = (prompt, options, wants_state)
            else:
                bench.loop.post(Add((a_sequence(prompt, id=name, max_tokens=draw.randrange(1, 12)),)))
                asked[name] = None
            if draw.random() < 0.15:
                bench.loop.post(Drop(name))
                del asked[name]
            if draw.random() < 0.1:
                bench.runner.faults.append(draw.choice([1, -3]))
        for name, wanted in asked.items():
            event = bench.wait(name)
            if isinstance(event, Scored):
                prompt, options, wants_state = wanted
                for found, option in zip(event.logprobs, options, strict=True):
                    assert found == pytest.approx(truth(prompt, option), abs=1e-5)
                assert event.states == ((halves(prompt),) if wants_state else ())


def test_limits_are_named():
    """Options in all, tokens of one, and what prompt and option come to."""
    command = Score("a", "", ())

    def take(prompt, options, limit_tokens=CELLS):
        return option_sequences(command, [(prompt, options)], limit_tokens=limit_tokens, now_s=0.0)

    assert len(take([1], [[1]] * MAX_OPTIONS)) == MAX_OPTIONS
    with pytest.raises(InvalidRequest, match=str(MAX_OPTIONS)):
        take([1], [[1]] * (MAX_OPTIONS + 1))
    with pytest.raises(InvalidRequest, match=str(MAX_OPTION_TOKENS)):
        take([1], [[1] * (MAX_OPTION_TOKENS + 1)])
    with pytest.raises(InvalidRequest, match="1 to"):
        take([1], [[]])
    with pytest.raises(InvalidRequest, match="empty"):
        take([], [[1]])
    with pytest.raises(ContextOverflow, match="42 tokens"):
        take(PROMPT, [[1, 2]], limit_tokens=41)
