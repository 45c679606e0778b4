"""``python -m edged.engine.probe``: writes, loads and measures one model file for the optimizer.

A process of its own, because a file may crash llama.cpp. Commands come on standard input, answers go to what was
standard output: nothing a library prints there can get between them.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from edged.engine import quantize
from edged.engine.kv import Copy, Trim
from edged.engine.probe_protocol import (
    Command,
    Event,
    Failed,
    Foresee,
    Foreseen,
    Open,
    Opened,
    Question,
    Score,
    Scored,
    Time,
    Timed,
    Write,
    Written,
    decode_command,
    encode,
)
from edged.engine.protocol import Load, Params
from edged.engine.runner import DECODE_OK, Runner, capture_log
from edged.engine.scheduler import Row
from edged.engine.sequence import Sequence
from edged.errors import EdgedError, EngineError

_PR_SET_PDEATHSIG = 1
_WARM_UP = (32, 4)
_PREFIX = 0
"""The sequence that holds what all questions share; behind it one for each prompt, then one for each option."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Answer:
    """One option of a question, from position ``start`` on, and the log-probabilities of its tokens so far."""

    question: int
    start: int
    tokens: list[int]
    logs: list[float] = field(default_factory=list)


class Bench:
    """One loaded model, driven sequence by sequence."""

    def __init__(self, command: Open) -> None:
        load = Load(
            path=command.path,
            context_tokens=command.pool_tokens,
            slots=command.slots,
            pool_tokens=command.pool_tokens,
            threads=command.threads,
            gpu_layers=command.gpu_layers,
            prefill_chunk_tokens=command.batch_tokens,
            kv_format=command.kv_format,
        )
        self._runner = Runner(load, sequences=command.slots)
        self._sequences = [_sequence(slot) for slot in range(command.slots)]
        self._prefix: list[int] = []
        self.description = self._runner.description

    def time(self, command: Time) -> Timed:
        self._runner.set_threads(command.threads)
        tokens = self._tokens(command.text, command.prefill_tokens + command.decode_tokens)
        prompt, answer = tokens[: command.prefill_tokens], tokens[command.prefill_tokens :]
        self._forget(range(len(self._sequences)))
        started_s = time.perf_counter()
        self._compute(_PREFIX, prompt, chunk_tokens=command.chunk_tokens)
        prefilled_s = time.perf_counter()
        for at, token in enumerate(answer, start=len(prompt)):
            self._step([self._row(_PREFIX, at, (token,), wants_logits=True)])
            self._runner.logits(0).argmax()
        decoded_s = time.perf_counter()
        resident_bytes = psutil.Process().memory_info().rss
        return Timed(prefilled_s - started_s, decoded_s - prefilled_s, resident_bytes)

    def score(self, command: Score) -> Scored:
        prefix = self._runner.vocabulary.tokenize(command.prefix, add_special=True, parse_special=False)
        if prefix != self._prefix:
            self._forget(range(len(self._sequences)))
            if prefix:
                self._compute(_PREFIX, prefix, chunk_tokens=self._runner.batch_tokens)
            self._prefix = prefix
        scores: list[tuple[float, ...]] = []
        for questions in _in_batches(command.questions, self._questions_at_once(command.questions)):
            scores += self._score(questions)
        return Scored(tuple(scores))

    def _questions_at_once(self, questions: Items[Question]) -> int:
        """As many as have a sequence for their prompt and for each option, beside the one of the prefix."""
        most_options = max((len(question.options) for question in questions), default=1)
        return max(1, (len(self._sequences) - 1) // (1 + most_options))

    def _score(self, questions: Items[Question]) -> list[tuple[float, ...]]:
        """Prefix and prompts are computed once; the options are continued from them, all of them together."""
        start = len(self._prefix)
        self._forget(range(_PREFIX + 1, len(self._sequences)))
        rows = []
        for slot, question in enumerate(questions, start=_PREFIX + 1):
            self._share(_PREFIX, slot, start)
            rows.append(self._row(slot, start, tuple(self._plain(question.prompt)), wants_logits=True))
        self._step(rows)
        answers = [
            _Answer(index, start + len(row.tokens), self._plain(option))
            for index, (row, question) in enumerate(zip(rows, questions, strict=True))
            for option in question.options
        ]
        firsts = [_log_softmax(self._runner.logits(index)) for index in range(len(rows))]
        for answer in answers:
            answer.logs.append(float(firsts[answer.question][answer.tokens[0]]))
        self._continue(answers, first_slot=_PREFIX + 1 + len(rows))
        means = [sum(answer.logs) / len(answer.logs) for answer in answers]
        return [
            tuple(mean for mean, answer in zip(means, answers, strict=True) if answer.question == index)
            for index in range(len(rows))
        ]

    def _continue(self, answers: list["_Answer"], *, first_slot: int) -> None:
        """Each answer in a sequence of its own behind its question; a token's row says how likely the next one is."""
        steps: list[tuple[Row, _Answer, int]] = []
        for slot, answer in enumerate(answers, start=first_slot):
            self._share(_PREFIX + 1 + answer.question, slot, answer.start)
            for at, (token, following) in enumerate(pairwise(answer.tokens)):
                steps.append((self._row(slot, answer.start + at, (token,), wants_logits=True), answer, following))
        for batch in _in_batches(steps, len(self._sequences)):  # the runner has room for so many outputs
            self._step([row for row, _, _ in batch])
            for at, (_, answer, following) in enumerate(batch):
                answer.logs.append(float(_log_softmax(self._runner.logits(at))[following]))

    # -- the runner --

    def _compute(self, slot: int, tokens: list[int], *, chunk_tokens: int) -> None:
        for at in range(0, len(tokens), chunk_tokens):
            chunk = tuple(tokens[at : at + chunk_tokens])
            self._step([self._row(slot, at, chunk, wants_logits=at + len(chunk) == len(tokens))])

    def _step(self, rows: Items[Row]) -> None:
        if (status := self._runner.decode(rows)) != DECODE_OK:
            raise EngineError(f"llama.cpp could not compute a batch (status {status})")

    def _row(self, slot: int, start: int, tokens: tuple[int, ...], *, wants_logits: bool) -> Row:
        return Row(self._sequences[slot], start, tokens, wants_logits)

    def _share(self, source: int, target: int, length: int) -> None:
        if length:
            self._runner.apply(Copy(source, target, length))

    def _forget(self, slots: Items[int]) -> None:
        for slot in slots:
            self._runner.apply(Trim(slot, 0))
        if _PREFIX in slots:
            self._prefix = []

    def _plain(self, text: str) -> list[int]:
        return self._runner.vocabulary.tokenize(text, add_special=False, parse_special=False)

    def _tokens(self, text: str, count: int) -> list[int]:
        """So many tokens of a text, from its beginning again as often as it takes."""
        tokens = self._plain(text)
        return (tokens * (count // len(tokens) + 1))[:count]


class Probe:
    """Answers one command after another."""

    def __init__(self) -> None:
        self._bench: Bench | None = None

    def answer(self, command: Command) -> Event:
        try:
            return self._answer(command)
        except EdgedError as exc:
            return Failed(exc.message)
        except OSError as exc:
            return Failed(exc.strerror or "the system refused")

    def _answer(self, command: Command) -> Event:
        match command:
            case Foresee(source, weight_format):
                outlook = quantize.foresee(Path(source), weight_format)
                return Foreseen(outlook.weight_bytes, outlook.fallback_share)
            case Write(source, target, weight_format, threads):
                quantize.write(Path(source), Path(target), weight_format, threads=threads)
                _sync(Path(target))
                return Written()
            case Open():
                return self._open(command)
            case Time():
                return self._opened.time(command)
            case Score():
                return self._opened.score(command)

    def _open(self, command: Open) -> Opened:
        capture_log(_complain)
        started_s = time.perf_counter()
        self._bench = Bench(command)
        load_s = time.perf_counter() - started_s
        self._bench.time(Time("warm up", *_WARM_UP, command.threads, _WARM_UP[0]))
        return Opened(self._bench.description, load_s)

    @property
    def _opened(self) -> Bench:
        if self._bench is None:
            raise EngineError("a command came before a model was loaded")
        return self._bench


def _in_batches(items: Items[T], size: int) -> Iterator[Items[T]]:
    for at in range(0, len(items), size):
        yield items[at : at + size]


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    shifted = logits - logits.max()
    result: NDArray[np.float32] = shifted - np.log(np.exp(shifted).sum())
    return result


def _sequence(slot: int) -> Sequence:
    return Sequence("", 0, "", [], 0, Params.greedy(1), 0.0, slot=slot)


def _complain(_level: str, text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _sync(path: Path) -> None:
    """Bring a file's bytes to the disk, so that its name can be trusted after a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _own_channel() -> BinaryIO:
    """Standard output for ourselves alone; what anybody else prints goes to standard error."""
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return channel


def main() -> None:
    """Answer until standard input ends; the process dies with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    channel, probe = _own_channel(), Probe()
    for line in sys.stdin.buffer:
        try:
            event = probe.answer(decode_command(line))
        except msgspec.DecodeError as exc:
            event = Failed(f"not a command: {exc}")
        channel.write(encode(event) + b"\n")
    os._exit(0)  # as the worker does: nothing to flush, and llama.cpp needs no farewell


if __name__ == "__main__":
    main()
