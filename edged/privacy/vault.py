"""Which placeholder stands for which value, for the time of one request."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

_MAX_DIGITS = 6


class Vault:
    """Gives each value of a kind one token (``EMAIL_1``), the same one every time; no token that ``taken`` names.

    A text that already holds ``<EMAIL_1>`` keeps it: that number is left out, so nothing is put in its place later.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        self._taken = frozenset(token.upper() for token in taken)
        self._tokens: dict[tuple[str, str], str] = {}
        self._values: dict[str, str] = {}
        self._last: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Vault({self.counts})"

    def token(self, kind: str, value: str) -> str:
        """The token of a value, without brackets."""
        key = (kind, value)
        if key not in self._tokens:
            token = self._next(kind.upper())
            self._tokens[key], self._values[token] = token, value
        return self._tokens[key]

    def _next(self, prefix: str) -> str:
        while True:
            self._last[prefix] += 1
            token = f"{prefix}_{self._last[prefix]}"
            if token not in self._taken:
                return token

    def value(self, token: str) -> str | None:
        return self._values.get(token.upper())

    def hide(self, text: str) -> str:
        """A text with the placeholders in place of their values again."""
        for (_, value), token in sorted(self._tokens.items(), key=lambda item: -len(item[0][1])):
            text = text.replace(value, placeholder(token))
        return text

    @property
    def counts(self) -> Mapping[str, int]:
        """How many different values of each kind were replaced."""
        return Counter(kind for kind, _ in self._tokens)

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(kind for kind, _ in self._tokens)


def placeholder(token: str) -> str:
    return f"<{token}>"


def token_pattern(kinds: Iterable[str]) -> re.Pattern[str]:
    """Whatever could be read as a token of one of these kinds, in any case."""
    names = "|".join(sorted(map(loose, kinds), key=len, reverse=True))
    return re.compile(rf"({names})\\?_(\d{{1,{_MAX_DIGITS}}})", re.IGNORECASE)


def loose(kind: str) -> str:
    """A kind as it may come back: Markdown escapes underscores."""
    return kind.upper().replace("_", r"\\?_")
