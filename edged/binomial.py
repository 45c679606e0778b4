"""What counts say of a share, without SciPy: exact (Clopper-Pearson) bounds, and evidence that may be looked at always.

Source: Clopper and Pearson, Biometrika 26 (1934).
"""

import math

_TINY = 1e-300
_STEPS = 80
_TERMS = 500
STAKES = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)


def share_interval(hits: int, total: int, *, level: float = 0.95) -> tuple[float, float]:
    """The interval that holds the true share with at least ``level`` certainty; (0, 1) where nothing was counted."""
    tail = (1 - level) / 2
    return lower_bound(hits, total, tail=tail), upper_bound(hits, total, tail=tail)


def upper_bound(hits: int, total: int, *, tail: float) -> float:
    """The largest share under which so few hits still have probability ``tail``; 1 where nothing was counted."""
    return 1.0 if hits == total else _quantile(1 - tail, hits + 1, total - hits)


def lower_bound(hits: int, total: int, *, tail: float) -> float:
    """The smallest share under which so many hits still have probability ``tail``; 0 where nothing was counted."""
    return 0.0 if hits == 0 else _quantile(tail, hits, total - hits + 1)


def at_most(hits: int, total: int, *, share: float) -> float:
    """The probability of at most so many hits where each has the probability ``share``."""
    if hits < 0:
        return 0.0
    return 1.0 if hits >= total else _beta(total - hits, hits + 1, 1 - share)


def log_evidence(hits: int, total: int, *, share: float) -> float:
    """The logarithm of what bets against "at most ``share`` are hits" have made of 1, on average over several stakes.

    While the share is kept that mean cannot grow in expectation, so it ever reaches 1/delta with probability delta at
    most, however often one looks (Ville's inequality).
    Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2020).
    """
    gain = (1 - share) / share
    logs = [hits * math.log1p(stake * gain) + (total - hits) * math.log1p(-stake) for stake in STAKES]
    top = max(logs)
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))


def _quantile(probability: float, a: float, b: float) -> float:
    """The beta distribution's quantile, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if _beta(a, b, middle) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, from whichever side its continued fraction converges quickly."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Lentz's method for the continued fraction of the incomplete beta function (DLMF 8.17.22)."""
    c, d = 1.0, 1 / _off_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = value
        for step in (even, odd):
            d, c = 1 / _off_zero(1 + step * d), _off_zero(1 + step / c)
            value *= d * c
        if abs(value - before) < 1e-15 * abs(value):
            break
    return value


def _off_zero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
