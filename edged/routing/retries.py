"""How many calls may be made beyond one per request: a share of the requests, and a floor for quiet times."""

from collections import deque

WINDOW_S = 60.0


class RetryBudget:
    """In every minute, retries <= ``share`` x requests + ``floor_per_minute``. Asking the next upstream is a retry.

    One budget for the whole daemon, and nothing below it retries by itself. Pure: clocks are arguments.
    """

    def __init__(self, *, share: float, floor_per_minute: int) -> None:
        self._share = share
        self._floor = floor_per_minute
        self._requests: deque[tuple[float, int]] = deque()
        self._retries: deque[tuple[float, int]] = deque()
        self._recent_requests = 0
        self._recent_retries = 0
        self.requests = 0
        self.taken = 0
        self.refused = 0

    def __repr__(self) -> str:
        return f"RetryBudget(requests={self.requests}, taken={self.taken}, refused={self.refused})"

    def request(self, *, now_s: float) -> None:
        """A request makes its first call."""
        self.requests += 1
        self._recent_requests += _count(self._requests, now_s)

    def take(self, *, now_s: float) -> bool:
        """Leave for one more call of a request that has made one already."""
        self._recent_requests -= _expire(self._requests, now_s)
        self._recent_retries -= _expire(self._retries, now_s)
        if self._recent_retries + 1 > self._share * self._recent_requests + self._floor:
            self.refused += 1
            return False
        self.taken += 1
        self._recent_retries += _count(self._retries, now_s)
        return True


def _count(bins: deque[tuple[float, int]], now_s: float) -> int:
    """Note one event; a second's events share a bin, dated by the first of them."""
    if bins and now_s - bins[-1][0] < 1.0:
        bins[-1] = (bins[-1][0], bins[-1][1] + 1)
    else:
        bins.append((now_s, 1))
    return 1


def _expire(bins: deque[tuple[float, int]], now_s: float) -> int:
    """Drop what is older than the window; how many events that were."""
    gone = 0
    while bins and now_s - bins[0][0] > WINDOW_S:
        gone += bins.popleft()[1]
    return gone
