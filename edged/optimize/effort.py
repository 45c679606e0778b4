"""How much is measured: the whole, or a quick look."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """``items`` per task of the built-in set; ``rounds`` pairs of timings of one request per format.

    The request has ``prefill_tokens`` in and ``decode_tokens`` out: how the two speeds are weighed.
    """

    name: str
    formats: tuple[str, ...]
    rounds: int
    prefill_tokens: int
    decode_tokens: int
    items: int
    settings: bool


FULL = Effort(
    name="full",
    formats=("Q8_0", "Q4_0", "IQ4_NL", "Q5_0", "Q4_K_M", "Q6_K"),
    rounds=5,
    prefill_tokens=512,
    decode_tokens=128,
    items=1000,
    settings=True,
)
QUICK = Effort(
    name="quick",
    formats=("Q8_0", "Q4_0"),
    rounds=2,
    prefill_tokens=128,
    decode_tokens=32,
    items=16,
    settings=False,
)
