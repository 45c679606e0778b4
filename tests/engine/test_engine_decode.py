"""The decode thread over a fake runner: real thread, real queues, faults injected where llama.cpp would fail."""

import queue
import threading
from contextlib import contextmanager

import pytest
from engine_builders import WAIT_S, a_sequence, on_its_thread

from edged.engine.decode import Add, DecodeLoop, Drop, Stop
from edged.engine.kv import KvPool
from edged.engine.protocol import LogLine, Refused, StepDone
from edged.testing.engine import END, FakeRunner, babble, replies

NO_SPACE, ABORTED, FAILED = 1, 2, -3


class Bench:
    """A loop on its thread; ``collect`` waits until a request has ended."""

    def __init__(self, runner: FakeRunner, *, slots: int, cells: int) -> None:
        self.runner = runner
        self.pool = KvPool(slots=2 * slots, cells=cells)
        self.events: queue.SimpleQueue = queue.SimpleQueue()
        self.log: list[LogLine] = []
        self.refused: dict[str, Refused] = {}
        self.emissions: dict[str, list] = {}
        self.loop = DecodeLoop(runner, self.pool, slots=slots, chunk_tokens=16, publish=self.events.put)

    def add(self, *sequences) -> None:
        self.loop.post(Add(sequences))

    def ask(self, tokens, **kwargs) -> str:
        """The whole text of one answer."""
        sequence = a_sequence(tokens, **kwargs)
        self.add(sequence)
        return self.text(sequence.id)

    def text(self, request_id: str, choice: int = 0) -> str:
        self.until(lambda: self.ended(request_id, choice))
        return "".join(e.text for e in self.emissions.get(request_id, ()) if e.choice == choice)

    def last(self, request_id: str, choice: int = 0):
        return next(e for e in self.emissions[request_id] if e.choice == choice and e.finish)

    def ended(self, request_id: str, choice: int = 0) -> bool:
        done = any(e.finish for e in self.emissions.get(request_id, ()) if e.choice == choice)
        return done or request_id in self.refused

    def until(self, condition) -> None:
        while not condition():
            self.take(self.events.get(timeout=WAIT_S))

    def take(self, event) -> None:
        match event:
            case StepDone(emissions):
                for emission in emissions:
                    self.emissions.setdefault(emission.id, []).append(emission)
            case Refused():
                self.refused[event.id] = event
            case LogLine():
                self.log.append(event)

    def forget(self, request_id: str) -> None:
        self.emissions.pop(request_id, None)
        self.refused.pop(request_id, None)

    def next_step(self):
        return self.runner.steps.get(timeout=WAIT_S)

    def fence(self) -> None:
        """Wait until everything posted before has been applied."""
        self.ask([250], id="fence", max_tokens=1)
        self.forget("fence")


@contextmanager
def engine(runner: FakeRunner | None = None, *, slots: int = 3, cells: int = 4096):
    bench = Bench(runner or FakeRunner(cells=cells), slots=slots, cells=cells)
    with on_its_thread(bench.loop, bench.runner) as bench.thread:
        yield bench
    for slot in range(2 * slots):
        assert bench.runner.cache.tokens(slot) == bench.pool.tokens(slot) or bench.loop._scheduler._ops


def expected(prompt, count: int) -> str:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(babble(tokens))
    return bytes(tokens[len(prompt) :]).decode()


def test_an_answer_is_what_the_prompt_leads_to() -> None:
    """Text, counts, token rows and signals of one answer agree."""
    with engine() as bench:
        assert bench.ask([1, 2, 3] * 30, max_tokens=8) == expected([1, 2, 3] * 30, 8)
        last = bench.last("a")
        assert (last.finish, last.prompt_tokens, last.completion_tokens, last.cached_tokens) == ("length", 90, 8, 0)
        rows = [row for e in bench.emissions["a"] for row in e.tokens]
        assert b"".join(row.piece for row in rows) == expected([1, 2, 3] * 30, 8).encode()
        assert all(row.logprob <= 0 and row.margin == 10 and row.entropy >= 0 for row in rows)
        assert last.queue_s >= 0 < last.prefill_s


def test_answers_do_not_depend_on_their_company() -> None:
    """Many prompts with shared parts at once: each says what it would say alone."""
    stems = [[1] * 40, [1] * 20 + [2] * 20, [3] * 5]
    prompts = {f"r{i}": [*stems[i % 3], i] for i in range(24)}
    with engine(slots=4) as bench:
        bench.add(*(a_sequence(prompt, id=name, max_tokens=10) for name, prompt in prompts.items()))
        for name, prompt in prompts.items():
            assert bench.text(name) == expected(prompt, 10)
        assert bench.pool.busy_slots == bench.runner.open_samplers == 0


@pytest.mark.parametrize("status", [NO_SPACE, FAILED, -1])
def test_a_failed_step_refuses_its_requests_and_is_never_tried_again(status: int) -> None:
    """Everyone in the batch gets one clean refusal, cells go with the bookkeeping, the next request is answered
    (A14, A15).
    """
    with engine() as bench:
        assert bench.ask([9] * 30, id="before", max_tokens=2)
        bench.runner.hold()
        bench.add(*(a_sequence([i] * 20, id=f"r{i}", max_tokens=30) for i in range(1, 3)))
        bench.next_step(), bench.next_step()
        bench.runner.faults = [0, 0, 0, status]
        bench.runner.resume()
        bench.until(lambda: {"r1", "r2"} <= bench.refused.keys())
        assert all(r.code == "engine_error" and str(status) in r.message for r in bench.refused.values())
        assert bench.ask([1] * 20, id="after", max_tokens=4) == expected([1] * 20, 4)
        assert bench.last("after").cached_tokens == 0
        assert bench.runner.open_samplers == bench.pool.busy_slots == 0
        assert bool(bench.log) == (status == NO_SPACE)


def test_no_room_forgets_finished_prefixes() -> None:
    """A full cache costs the prefixes nobody uses."""
    with engine() as bench:
        bench.ask([9] * 30, id="before", max_tokens=2)
        bench.runner.faults = [NO_SPACE]
        bench.ask([8] * 30, id="unlucky")
        assert bench.refused["unlucky"]
        bench.fence()
        assert bench.ask([9] * 30, id="again", max_tokens=2) == expected([9] * 30, 2)
        assert bench.last("again").cached_tokens == 0


def test_a_failed_step_ends_every_choice_of_its_request_once() -> None:
    """A request with a waiting choice is refused as a whole, with one event."""
    with engine(slots=1) as bench:
        bench.runner.faults = [FAILED]
        bench.add(*(a_sequence([5] * 20, id="n", choice=i) for i in range(3)))
        bench.until(lambda: "n" in bench.refused)
        bench.fence()
        assert "n" not in bench.emissions
        assert bench.runner.open_samplers == 0


def test_a_refused_removal_computes_the_prompt_from_the_start() -> None:
    """A model that cannot remove a part of its state gives the same answer, without the cache."""
    with engine() as bench:
        bench.ask([6] * 20, id="first", max_tokens=2)
        bench.runner.cache.refuses_partial = True
        prompt = [*([6] * 19), 7]
        assert bench.ask(prompt, id="second", max_tokens=5) == expected(prompt, 5)
        assert bench.last("second").cached_tokens == 0


def test_a_cancelled_waiting_request_never_reaches_a_decode() -> None:
    """A queued request whose client left is not computed (A02)."""
    with engine(slots=1) as bench:
        bench.runner.hold()
        bench.add(a_sequence([1] * 4, id="running", max_tokens=5))
        bench.next_step()
        bench.add(a_sequence([2] * 4, id="queued"))
        bench.loop.post(Drop("queued"))
        bench.runner.resume()
        assert bench.text("running") == expected([1] * 4, 5)
        bench.fence()
        steps = []
        while not bench.runner.steps.empty():
            steps.append(bench.runner.steps.get())
        assert "queued" not in {row.sequence.id for rows in steps for row in rows}
        assert bench.runner.open_samplers == 0


def test_a_cancelled_prompt_is_aborted_inside_its_step() -> None:
    """A step that computes for nobody is stopped; the next request is answered as if nothing had been (A01, A03)."""
    with engine() as bench:
        bench.runner.hold()
        bench.add(a_sequence([1] * 200, id="gone"))
        bench.next_step()
        bench.loop.post(Drop("gone"))
        bench.add(a_sequence([2] * 10, id="after", max_tokens=3))
        assert [row.sequence.id for row in bench.next_step()] == ["after"], "the held step has ended by itself"
        bench.runner.resume()
        assert bench.text("after") == expected([2] * 10, 3)
        assert bench.pool.busy_slots == bench.runner.open_samplers == 0
        assert not bench.refused


def test_a_cancelled_answer_is_aborted_inside_its_step() -> None:
    """Likewise while it decodes; what it had computed serves the next request with its prefix."""
    with engine() as bench:
        bench.add(a_sequence([1] * 40, id="gone", max_tokens=3000))
        bench.until(lambda: len(bench.emissions.get("gone", ())) > 3)
        bench.runner.hold()
        bench.loop.post(Drop("gone"))
        bench.add(a_sequence([1] * 40, id="after", max_tokens=3))
        bench.runner.resume()
        assert bench.text("after") == expected([1] * 40, 3)
        assert bench.last("after").cached_tokens == 39
        assert bench.pool.busy_slots == bench.runner.open_samplers == 0
        assert not bench.refused


def test_a_cancel_does_not_abort_the_others_step() -> None:
    """While a neighbour shares the batch, the step is finished and only the cancelled one is gone."""
    with engine() as bench:
        bench.add(a_sequence([1] * 4, id="stays", max_tokens=50), a_sequence([2] * 4, id="goes", max_tokens=3000))
        bench.until(lambda: "goes" in bench.emissions)
        bench.loop.post(Drop("goes"))
        assert bench.text("stays") == expected([1] * 4, 50)
        bench.fence()
        count = len(bench.emissions["goes"])
        assert bench.ask([3], id="later", max_tokens=3)
        assert len(bench.emissions["goes"]) == count


def test_a_late_abort_hits_nobody_else() -> None:
    """Cancels that arrive at every moment of their own steps never stop a step of another request."""
    with engine(slots=1) as bench:
        for i in range(300):
            bench.add(
                a_sequence([i % 7] * 3, id=f"victim{i}", max_tokens=1000),
                a_sequence([9, i % 250], id=f"w{i}", max_tokens=2),
            )
            if i % 2:
                bench.until(lambda i=i: f"victim{i}" in bench.emissions)
            bench.loop.post(Drop(f"victim{i}"))
            assert bench.text(f"w{i}") == expected([9, i % 250], 2)
        assert not bench.refused
        assert not bench.loop._flight.cancelled
        assert bench.runner.open_samplers == 0


def test_cancels_of_unknown_requests_leave_no_trace() -> None:
    """Ids nobody knows are not remembered."""
    with engine() as bench:
        for i in range(1000):
            bench.loop.post(Drop(f"unknown{i}"))
        bench.fence()
        assert not bench.loop._flight.cancelled


def test_an_id_may_come_back_after_its_cancel() -> None:
    """Cancel, then the same request again at once: the new one is answered."""
    with engine() as bench:
        bench.runner.hold()
        bench.add(a_sequence([1] * 30, id="a", max_tokens=3))
        bench.next_step()
        bench.loop.post(Drop("a"))
        bench.add(a_sequence([1] * 30, id="a", max_tokens=3))
        bench.runner.resume()
        assert bench.text("a") == expected([1] * 30, 3)


def test_choices_share_their_prompt_and_differ_by_seed() -> None:
    """Three choices of one request are three sequences with one prompt."""
    with engine() as bench:
        prompt = [1] * 50
        bench.add(*(a_sequence(prompt, id="n", choice=i, temperature=1.0, seed=7 + i, max_tokens=12) for i in range(3)))
        texts = {bench.text("n", choice=i) for i in range(3)}
        assert len(texts) == 3
        assert sorted(bench.last("n", i).cached_tokens for i in range(3)) == [0, 49, 49]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kept", [1, 5, 11])
def test_a_resumed_answer_says_what_the_uninterrupted_one_would(kept: int, temperature: float) -> None:
    """Continuing from kept tokens gives the same text, seed included, and counts all of it."""
    prompt = [4, 2] * 20
    with engine() as bench:
        whole = bench.ask(prompt, id="whole", max_tokens=12, temperature=temperature, seed=3)
        rows = [row for e in bench.emissions["whole"] for row in e.tokens]
        generated = [row.id for row in rows[:kept]]
        rest = bench.ask(prompt, id="rest", max_tokens=12, temperature=temperature, seed=3, generated=generated)
        assert whole[:kept] + rest == whole
        last = bench.last("rest")
        assert (last.prompt_tokens, last.completion_tokens) == (40, 12)
        assert last.cached_tokens <= 40


@pytest.mark.parametrize(
    ("says", "stop", "text", "finish"),
    [
        (b"ok###more", ("###",), "ok", "stop"),
        (b"one two END_OF three", ("zzz", "END_OF"), "one two ", "stop"),
        (b"answer ends in ##", ("###",), "answer ends in ##", "stop"),
        ("🧑‍🚀日本é".encode(), (), "🧑‍🚀日本é", "stop"),
        (b"cut \xf0\x9f", (), "cut \ufffd", "stop"),
        (b"lone \xff byte", (), "lone \ufffd byte", "stop"),
        ("a\ufffdb".encode(), (), "a\ufffdb", "stop"),
        (b"", (), "", "stop"),
    ],
)
def test_text_is_put_together_whatever_the_tokens(says: bytes, stop, text: str, finish: str) -> None:
    """Characters over several tokens, stop strings over several tokens, text held back at the end (B01-B05)."""
    with engine(FakeRunner(answer=replies(says))) as bench:
        assert bench.ask([5, 0], stop=stop, max_tokens=60) == text
        assert bench.last("a").finish == finish
        assert not any("#" in e.text for e in bench.emissions["a"][:-1]), "no part of a stop string is sent early"


def test_a_stop_string_in_the_last_allowed_token_is_a_stop() -> None:
    """Both ends at once: the stop string wins."""
    with engine(FakeRunner(answer=replies(b"ab##"))) as bench:
        assert bench.ask([0], stop=("##",), max_tokens=4) == "ab"
        assert bench.last("a").finish == "stop"


def test_text_held_back_at_the_length_limit_is_not_lost() -> None:
    """Half a stop string and half a character come out when the answer is cut."""
    with engine(FakeRunner(answer=replies(b"ab#\xf0\x9f"))) as bench:
        assert bench.ask([0], stop=("##",), max_tokens=3) == "ab#"
        assert bench.ask([1, 0], id="b", stop=("##",), max_tokens=5) == "ab#\ufffd"
        assert bench.last("b").finish == "length"


def test_the_end_token_is_no_text_and_no_row() -> None:
    """It ends the answer and is counted, as providers count it, but shows nowhere."""
    with engine(FakeRunner(answer=replies(b"hi"))) as bench:
        assert bench.ask([0], max_tokens=60) == "hi"
        assert [row.id for e in bench.emissions["a"] for row in e.tokens] == list(b"hi")
        assert END not in [row.id for e in bench.emissions["a"] for row in e.tokens]
        assert bench.last("a").completion_tokens == 3


def test_the_numbers_for_admission_count_what_was_posted_a_moment_ago() -> None:
    """A burst during one long step is seen at once: the queue is not what it was when the step began."""
    with engine() as bench:
        bench.runner.hold()
        bench.add(a_sequence([1] * 60, id="running", max_tokens=2))
        bench.next_step()
        for i in range(5):
            bench.add(a_sequence([2] * 50, id=f"q{i}", max_tokens=1))
        stats = bench.loop.stats
        assert (stats.running, stats.waiting, stats.queued_prompt_tokens) == (1, 5, 310)
        bench.runner.resume()
        for i in range(5):
            bench.text(f"q{i}")
        bench.fence()
        assert bench.loop.stats.waiting == 0
        assert bench.loop.stats.queued_prompt_tokens == 0


def test_reading_the_numbers_never_disturbs_nor_fails() -> None:
    """Stats may be read at any moment of a busy loop."""
    with engine() as bench:
        done = threading.Event()
        failures: list[BaseException] = []

        def read() -> None:
            try:
                while not done.is_set():
                    assert bench.loop.stats.waiting >= 0
                    assert bench.loop.step_s >= 0
                    bench.pool.cached_prefix([1] * 30, "")
            except BaseException as exc:  # noqa: BLE001 - reported below
                failures.append(exc)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for i in range(60):
            bench.add(*(a_sequence([1] * 30 + [i, j], id=f"r{i}.{j}", max_tokens=3) for j in range(3)))
        for i in range(60):
            bench.text(f"r{i}.2")
        done.set()
        for reader in readers:
            reader.join(WAIT_S)
        assert not failures


def test_stopping_ends_a_step_in_flight() -> None:
    """Stop does not wait for a long prompt."""
    runner = FakeRunner()
    with engine(runner) as bench:
        runner.hold()
        bench.add(a_sequence([1] * 4000, id="long"))
        bench.next_step()
        bench.loop.post(Stop())
        bench.thread.join(WAIT_S)
        assert not bench.thread.is_alive()
