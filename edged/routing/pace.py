"""How fast an upstream and the local engine are, from what was measured lately.

One slow sample moves nothing, old samples count for nothing, and where there are too few an assumption fills the gap.
The caller passes the time in.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

KEPT_SAMPLES = 32
STALE_S = 600.0
MIN_SAMPLES = 5
_QUARTILE = 0.75

Sample = tuple[float, float]
"""When it was measured, and what."""


@dataclass(slots=True)
class Recent:
    """The upper quartile, by nearest rank, of the samples of the last ``STALE_S``.

    ``assumed`` stands in for every sample that is missing from ``MIN_SAMPLES``: one slow call cannot condemn an
    upstream, and one that was slow is tried again as its samples go stale.
    """

    assumed: float
    samples: deque[Sample] = field(default_factory=lambda: deque(maxlen=KEPT_SAMPLES))

    def note(self, value: float, *, now_s: float) -> None:
        self.samples.append((now_s, value))

    def expected(self, *, now_s: float) -> float:
        fresh = fresh_values(self.samples, now_s=now_s)
        fresh += [self.assumed] * (MIN_SAMPLES - len(fresh))
        return sorted(fresh)[int(_QUARTILE * (len(fresh) - 1))]

    def count(self, *, now_s: float) -> int:
        """How many samples it rests on."""
        return len(fresh_values(self.samples, now_s=now_s))


def fresh_values(samples: deque[Sample], *, now_s: float) -> list[float]:
    return [value for at_s, value in samples if now_s - at_s <= STALE_S]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What the upstream that would be asked is expected to take."""

    ttft_s: float
    token_s: float = 0.0

    def total_s(self, answer_tokens: int) -> float:
        return self.ttft_s + answer_tokens * self.token_s


@dataclass(slots=True)
class UpstreamPace:
    """Time to the first token, and per token after it, of one ``UPSTREAM/model``."""

    ttft: Recent
    token: Recent

    @classmethod
    def assuming(cls, *, ttft_s: float, token_s: float) -> "UpstreamPace":
        return cls(Recent(ttft_s), Recent(token_s))

    def outlook(self, *, now_s: float) -> Outlook:
        return Outlook(self.ttft.expected(now_s=now_s), self.token.expected(now_s=now_s))


MIN_PREFILL_TOKENS = 32
"""A shorter prefill is mostly overhead and says little of the rate."""

MIN_PROMPTS = 6
MIN_PREDICTED_S = 0.25
"""In a shorter wait what every request costs outweighs its prompt: such a ratio would be wrong of longer ones."""

_DEPTH_SPREAD_TOKENS = 256
_BAND = 0.15
_LEAST_BIAS, _MOST_BIAS = 0.5, 3.0
_BIAS_SAMPLES = 15


@dataclass(frozen=True, slots=True)
class Prefilled:
    """One prompt that was computed: which tokens of the context, and the seconds each took on average."""

    at_s: float
    start_tokens: int
    tokens: int
    token_s: float

    @property
    def depth(self) -> float:
        return self.start_tokens + self.tokens / 2


@dataclass(frozen=True, slots=True)
class Curve:
    """A token's prefill costs ``base_s + slope_s * depth``: attention looks at everything before it."""

    base_s: float
    slope_s: float

    def prefill_s(self, start_tokens: int, tokens: int) -> float:
        """From the token at ``start_tokens`` on, so many; the mean cost is that in the middle."""
        return tokens * (self.base_s + self.slope_s * (start_tokens + tokens / 2))


def fitted(prompts: list[Prefilled]) -> Curve | None:
    """The Theil-Sen line through the prompts: medians, so that a slow one does not bend it. None while too few."""
    if len(prompts) < MIN_PROMPTS:
        return None
    pairs = [(a, b) for a, b in combinations(prompts, 2) if abs(a.depth - b.depth) >= _DEPTH_SPREAD_TOKENS]
    slopes = [(b.token_s - a.token_s) / (b.depth - a.depth) for a, b in pairs]
    slope_s = max(0.0, median(slopes)) if len(slopes) >= MIN_PROMPTS else 0.0
    base_s = median(p.token_s - slope_s * p.depth for p in prompts)
    lowest_s = min(p.token_s for p in prompts)
    return Curve(max(base_s, lowest_s / 4), slope_s)


@dataclass(slots=True)
class LocalPace:
    """What predictions for one local model are corrected by: the measured prefill curve, and a bias.

    The bias is the median of measured over predicted waits. Hysteresis: the one in force stays until the median has
    left a band around it, so that a decision near the threshold does not follow every sample.

    ``speed`` (1 = full clock) divides it out of what is noted and back into what is predicted: what was learned hot
    does not make a cool box look slow.
    """

    prompts: deque[Prefilled] = field(default_factory=lambda: deque(maxlen=KEPT_SAMPLES))
    ratios: deque[Sample] = field(default_factory=lambda: deque(maxlen=_BIAS_SAMPLES))
    bias: float = 1.0
    _curve: Curve | None = None

    def note_prompt(
        self, *, start_tokens: int, tokens: int, prefill_s: float, now_s: float, speed: float = 1.0
    ) -> None:
        """A prompt has been computed, from ``start_tokens`` (those before were cached) on."""
        if tokens < MIN_PREFILL_TOKENS or prefill_s <= 0:
            return
        self.prompts.append(Prefilled(now_s, start_tokens, tokens, prefill_s / tokens * speed))
        while self.prompts and now_s - self.prompts[0].at_s > STALE_S:
            self.prompts.popleft()
        self._curve = fitted(list(self.prompts))

    def note_wait(self, *, predicted_s: float, measured_s: float, now_s: float) -> None:
        """A request stayed; ``predicted_s`` is the raw prediction, before any bias."""
        if predicted_s < MIN_PREDICTED_S:
            return
        self.ratios.append((now_s, measured_s / predicted_s))
        fresh = fresh_values(self.ratios, now_s=now_s)
        if len(fresh) < MIN_SAMPLES:
            return
        found = min(_MOST_BIAS, max(_LEAST_BIAS, median(fresh)))
        if abs(found - self.bias) > _BAND * self.bias:
            self.bias = found

    def curve(self, *, now_s: float) -> Curve | None:
        """None while nothing recent was measured: the worker's own rate has to do."""
        if not self.prompts or now_s - self.prompts[-1].at_s > STALE_S:
            return None
        return self._curve

    def current_bias(self, *, now_s: float) -> float:
        """1 where no recent prediction says otherwise."""
        return self.bias if fresh_values(self.ratios, now_s=now_s) else 1.0
