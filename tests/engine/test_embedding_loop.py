"""Which texts share a batch, how pieces add up, and the embedding thread with a runner that can be held."""

import queue
import random
import threading
from contextlib import contextmanager

import numpy as np
import pytest

from edged.engine.decode import Drop, Stop, Threads
from edged.engine.embedding import (
    MAX_TOTAL_TOKENS,
    EmbeddingLoop,
    Gathered,
    Job,
    Pooling,
    normalised,
    pick,
    pieces,
    tokenized,
)
from edged.engine.protocol import Counted, Embed, Embedded, Refused
from edged.errors import ContextOverflow, EngineError, InvalidRequest


def a_job(id, *lengths, **fields):  # noqa: A002 - the field's name
    return Job(id, [[7] * length for length in lengths], **fields)


def names(picked):
    return [f"{job.id}{at}" for job, at in picked]


# -- decisions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("jobs", "limits", "expected"),
    [
        ([a_job("a", 3, 3, 3), a_job("b", 3)], (12, 9), ["a0", "b0", "a1", "a2"]),
        ([a_job("a", 3, 3, 3), a_job("b", 3)], (7, 9), ["a0", "b0"]),
        ([a_job("a", 3, 3, 3), a_job("b", 3)], (99, 3), ["a0", "b0", "a1"]),
        ([a_job("a", 50), a_job("b", 3)], (12, 9), ["a0"]),
        ([a_job("a", 5), a_job("b", 50), a_job("c", 5)], (12, 9), ["a0", "c0"]),
        ([a_job("a", 3, background=True), a_job("b", 3, 3)], (6, 9), ["b0", "b1"]),
        ([a_job("a", 3, background=True), a_job("b", 3, 3)], (99, 9), ["b0", "b1", "a0"]),
        ([a_job("a", 3, 3), a_job("b", 3), a_job("c", 3, 3, tenant="t")], (12, 9), ["a0", "c0", "b0", "c1"]),
        ([a_job("a", 3, 3, done=1)], (12, 9), ["a1"]),
    ],
)
def test_requests_take_turns(jobs, limits, expected):
    """One text of each key, then of each request; background last; the first text comes however long it is."""
    assert names(pick(jobs, tokens=limits[0], texts=limits[1])) == expected


def test_pieces_hold_every_token_once_and_fill_their_batches():
    """Whatever the lengths: in order, from the place that is said, all batches but the last full."""
    rng = random.Random(3)
    for _ in range(200):
        texts = [[rng.randrange(99) for _ in range(rng.randrange(1, 40))] for _ in range(rng.randrange(1, 8))]
        size = rng.randrange(1, 30)
        batches = list(pieces(texts, size))
        again = [[] for _ in texts]
        for piece in (piece for batch in batches for piece in batch):
            assert piece.start == len(again[piece.slot])
            again[piece.slot] += piece.tokens
        assert again == texts
        sizes = [sum(len(piece.tokens) for piece in batch) for batch in batches]
        assert set(sizes[:-1]) <= {size}
        assert 0 < sizes[-1] <= size


@pytest.mark.parametrize("pooling", list(Pooling))
def test_pieces_add_up_to_what_the_whole_text_is(pooling):
    """Cut anywhere: the mean of all tokens, the first, or the last one."""
    rng = np.random.default_rng(5)
    texts = [list(range(n)) for n in (1, 7, 19)]
    states = [rng.normal(size=(len(text), 4)).astype(np.float32) for text in texts]
    whole = {
        Pooling.MEAN: [s.mean(axis=0) for s in states],
        Pooling.CLS: [s[0] for s in states],
        Pooling.LAST: [s[-1] for s in states],
        Pooling.RANK: [s[-1] for s in states],
    }
    for size in (1, 3, 5, 100):
        gathered = Gathered(texts, 4, pooling)
        for piece in (piece for batch in pieces(texts, size) for piece in batch):
            part = states[piece.slot][piece.start : piece.start + len(piece.tokens)]
            pooled = {Pooling.MEAN: part.mean(axis=0), Pooling.CLS: part[0]}.get(pooling, part[-1])
            gathered.add(piece, pooled)
        assert gathered.vectors() == pytest.approx(np.array(whole[pooling]), abs=1e-6)


def test_values_that_are_no_numbers_are_an_error():
    """Never sent, never stored by a client."""
    gathered = Gathered([[1]], 2, Pooling.LAST)
    gathered.add(next(pieces([[1]], 4))[0], np.array([1.0, np.nan], np.float32))
    with pytest.raises(EngineError, match="no numbers"):
        gathered.vectors()


def test_a_vector_of_zeros_stays_one():
    """There is no direction to keep; dividing by its length would make it NaN."""
    assert normalised(np.zeros((1, 4), np.float32), 2).tolist() == [[0.0, 0.0]]


class _Words:
    """One token per character, and a begin."""

    def tokenize(self, text, *, add_special, parse_special):
        assert not parse_special, "a client's text would become control tokens"
        return [1] * add_special + [2] * len(text)


class _Pairs:
    def tokens(self, query, document):
        return [3] * len(query + document)


@pytest.mark.parametrize(
    ("texts", "query", "kind", "message"),
    [
        (("ab", "x" * 10), None, ContextOverflow, r"in\[1\] has 11 tokens; this model takes at most 10 per text"),
        (("x" * 8,), "abc", ContextOverflow, r"in\[0\] has 11 tokens together with the query"),
        ((("x" * 9),) * 30_001, None, ContextOverflow, rf"in\[30000\] .* 300010 .* {MAX_TOTAL_TOKENS} in all"),
        (((),), None, InvalidRequest, r"in\[0\] has no tokens"),
    ],
)
def test_what_does_not_fit_is_refused_and_never_cut(texts, query, kind, message):
    """With the text, its length and the limit."""
    with pytest.raises(kind, match=message) as caught:
        tokenized(Embed("a", "", texts, "in", query=query), _Words(), _Pairs(), text_tokens=10)
    assert caught.value.param == "in"


# -- the loop --------------------------------------------------------------------------------------------------------


class FakeRunner:
    """A piece comes to (its first token, its length); ``hold`` stops a decode until it is resumed or aborted."""

    values = 2

    def __init__(self, *, batch_tokens=8, pooling=Pooling.LAST):
        self.batch_tokens, self.pooling = batch_tokens, pooling
        self.steps, self.statuses, self.threads = queue.SimpleQueue(), [], None
        self._gate, self._abort = threading.Event(), threading.Event()
        self._gate.set()

    def hold(self):
        self._gate.clear()

    def resume(self):
        self._gate.set()

    def forget(self):
        """Nothing is kept here."""

    def decode(self, batch):
        self.steps.put(batch)
        while not self._gate.wait(0.001):
            if self._abort.is_set():
                return 2
        return self.statuses.pop(0) if self.statuses else 0

    def pooled(self, piece):
        return np.array([piece.tokens[0], len(piece.tokens)], np.float32)

    def set_threads(self, count):
        self.threads = count

    def set_abort(self, *, on):
        (self._abort.set if on else self._abort.clear)()

    @property
    def is_aborting(self):
        return self._abort.is_set()


@contextmanager
def running(runner):
    """The loop in its thread, and what it publishes."""
    events = queue.SimpleQueue()
    loop = EmbeddingLoop(runner, events.put)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield loop, events
    finally:
        runner.resume()
        loop.post(Stop())
        thread.join(5)
        assert not thread.is_alive()


def of(events, id):  # noqa: A002 - the field's name
    """This request's vectors, read until its last."""
    found = []
    while True:
        event = events.get(timeout=5)
        if isinstance(event, Embedded) and event.id == id:
            assert event.first == len(found)
            found += np.frombuffer(event.data, np.float32).reshape(event.texts, -1).tolist()
            if event.last:
                return found


def test_a_request_is_counted_then_computed_in_order():
    """Over as many batches as it takes; the last one says so and carries the timings."""
    with running(FakeRunner()) as (loop, events):
        loop.accept(Job("a", [[i, i, i] for i in range(1, 8)]))
        assert events.get(timeout=5) == Counted("a", 21)
        found = of(events, "a")
    expected = [np.array([i, 3]) / np.hypot(i, 3) for i in range(1, 8)]
    assert found == pytest.approx(np.array(expected), abs=1e-6)


def test_a_newcomer_waits_for_one_batch():
    """A request of many texts does not hold up one of a single text."""
    runner = FakeRunner(batch_tokens=2)
    with running(runner) as (loop, events):
        runner.hold()
        loop.accept(a_job("many", *[2] * 50))
        runner.steps.get(timeout=5)
        loop.accept(a_job("one", 2))
        runner.resume()
        computed = []
        while "one" not in computed:
            event = events.get(timeout=5)
            computed += [event.id] if isinstance(event, Embedded) else []
    assert len(computed) <= 3


def test_a_cancelled_request_is_not_computed_further():
    """The batch that is computed for nobody else ends at once, the rest never begins."""
    runner = FakeRunner()
    with running(runner) as (loop, events):
        runner.hold()
        loop.accept(a_job("a", *[8] * 20))
        runner.steps.get(timeout=5)
        loop.post(Drop("a"))
        loop.accept(a_job("b", 2))
        assert [type(events.get(timeout=5)) for _ in range(2)] == [Counted, Counted]
        runner.resume()
        assert len(of(events, "b")) == 1
        assert [p.slot for p in runner.steps.get(timeout=5)] == [0]
        assert runner.steps.empty()


def test_a_cancel_spares_those_who_share_the_batch():
    """It ends at its own time, and the others get their vectors."""
    runner = FakeRunner()
    with running(runner) as (loop, events):
        runner.hold()
        loop.accept(a_job("first", 8))
        runner.steps.get(timeout=5)
        loop.accept(a_job("a", 2, 2, 2, 2))
        loop.accept(a_job("b", 2))
        runner.resume()
        runner.hold()
        loop.post(Drop("a"))
        runner.resume()
        assert len(of(events, "b")) == 1


def test_a_batch_that_fails_fails_its_requests_and_nobody_else():
    """They are told, the next request is computed."""
    runner = FakeRunner()
    with running(runner) as (loop, events):
        runner.statuses = [-3]
        loop.accept(a_job("a", 2))
        assert events.get(timeout=5) == Counted("a", 2)
        refused = events.get(timeout=5)
        assert isinstance(refused, Refused)
        assert (refused.id, refused.code) == ("a", "engine_error")
        loop.accept(a_job("b", 2))
        assert len(of(events, "b")) == 1
        assert loop.stats.prefill_tps is None  # too short to measure


def test_scores_are_sent_as_they_are():
    """Not brought to length one, one value each."""
    with running(FakeRunner(pooling=Pooling.RANK)) as (loop, events):
        loop.post(Threads(3))
        loop.accept(Job("a", [[5, 5], [4]]))
        assert of(events, "a") == [[5.0], [4.0]]
