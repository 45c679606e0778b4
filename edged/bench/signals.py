"""What the signals of each token cost, as a share of the decode step they are read from; in this process, no server."""

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from edged.bench.client import BenchError
from edged.engine.protocol import Load, Params
from edged.engine.runner import DECODE_OK, Runner, capture_log
from edged.engine.scheduler import Row
from edged.engine.sequence import Sequence
from edged.engine.signals import SignalReader

SMALL_VOCABULARY_TOKENS = 65_536
SMALL_AIM, LARGE_AIM = 0.03, 0.05

_PROMPT = "Once upon a time there was a lighthouse keeper who counted the ships that passed. One evening"
_CONTEXT_TOKENS = 1024
_WARM_UP_STEPS = 8
_FIRST_TOKEN = 100


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over the steps, in seconds: of the whole step (decode, signals, choosing tokens) and of its signals."""

    vocab_tokens: int
    answers: int
    step_s: float
    signals_s: float
    share: float

    @property
    def aim(self) -> float:
        """The share of a step that signals may cost at most."""
        return SMALL_AIM if self.vocab_tokens <= SMALL_VOCABULARY_TOKENS else LARGE_AIM


def measure(model: Path, *, threads: int, answers: int, steps: int) -> Cost:
    """Decode so many answers side by side, and time what is read off each distribution. Raises: BenchError."""
    load = Load(
        path=str(model),
        context_tokens=_CONTEXT_TOKENS,
        slots=answers,
        pool_tokens=_CONTEXT_TOKENS * answers,
        threads=threads,
        gpu_layers=0,
        prefill_chunk_tokens=256,
    )
    if steps + _WARM_UP_STEPS > _CONTEXT_TOKENS - 256:
        raise BenchError(f"--tokens: at most {_CONTEXT_TOKENS - 256 - _WARM_UP_STEPS} for the signals")
    capture_log(lambda *_: None)
    decoding = _Decoding(Runner(load, sequences=answers), answers)
    timed = [decoding.step() for _ in range(_WARM_UP_STEPS + steps)][_WARM_UP_STEPS:]
    return Cost(
        vocab_tokens=decoding.vocab_tokens,
        answers=answers,
        step_s=statistics.median(whole for whole, _ in timed),
        signals_s=statistics.median(read for _, read in timed),
        share=statistics.median(read / whole for whole, read in timed),
    )


class _Decoding:
    """Answers that grow by a token each step, as the decode loop would have it, and nothing around it."""

    def __init__(self, runner: Runner, answers: int) -> None:
        self._runner = runner
        self.vocab_tokens = runner.vocabulary.size_tokens
        self._reader = SignalReader(self.vocab_tokens)
        self._sampler = runner.sampler(Params.greedy(_CONTEXT_TOKENS))
        prompt = runner.vocabulary.tokenize(_PROMPT, add_special=True, parse_special=False)
        self._sequences = [
            Sequence("", 0, "", list(prompt), len(prompt), Params.greedy(_CONTEXT_TOKENS), 0.0, slot=slot)
            for slot in range(answers)
        ]
        for place, sequence in enumerate(self._sequences):
            self._decode([self._row(sequence)])
            sequence.tokens.append(_FIRST_TOKEN + place)  # answers that differ

    def step(self) -> tuple[float, float]:
        """One token more of each answer; how long the step took, and its signals."""
        started_s = time.perf_counter()
        self._decode([self._row(sequence) for sequence in self._sequences])
        read_s = 0.0
        for row, sequence in enumerate(self._sequences):
            looked_s = time.perf_counter()
            logits = self._runner.logits(row)
            look = self._reader.look(logits)
            read_s += time.perf_counter() - looked_s
            token = self._runner.sample(self._sampler, row)
            looked_s = time.perf_counter()
            look.chosen(logits, token)
            read_s += time.perf_counter() - looked_s
            sequence.tokens.append(token)
        return time.perf_counter() - started_s, read_s

    def _decode(self, rows: list[Row]) -> None:
        if (status := self._runner.decode(rows)) != DECODE_OK:
            raise BenchError(f"the model failed a step (status {status})")

    def _row(self, sequence: Sequence) -> Row:
        """The tokens that are not computed yet, which are then."""
        start, sequence.computed = sequence.computed, len(sequence.tokens)
        return Row(sequence, start, tuple(sequence.tokens[start:]), wants_logits=True)
