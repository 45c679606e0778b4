"""Where personal data stands in a text.

Candidates come from RE2, whose time grows with the text and never explodes; then the libraries decide: ``phonenumbers``
for phone numbers, ``python-stdnum`` for the check digits of IBANs and cards, ``ipaddress`` for addresses.
"""

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from edged.config import RedactConfig
from edged.errors import ConfigError
from edged.privacy import people
from edged.privacy.phones import Numbers
from edged.privacy.plain import encodable, plain
from edged.privacy.words import Finder, Place, hidden, is_apart, merged, whole_words, without

_EMAIL = r"[\p{L}\p{N}._%+'\-]+(?:@|%40|&#64;)[\p{L}\p{N}][\p{L}\p{N}.\-]*\.\p{L}[\p{L}\p{N}\-]*[\p{L}\p{N}]"
_PHONE = r"[+(]{0,2}\p{Nd}[\p{Nd} ().\-/]{5,60}"
_IBAN = r"\b[A-Za-z]{2}[0-9]{2}(?:[ \-]?[A-Za-z0-9]){11,36}\b"
_CARD = r"[0-9](?:[ \-]?[0-9]){12,30}"
_IPV4 = r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}"
_IPV6 = r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,38}(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3})?"
_JSON_LITERAL = r'"(?:[^"\\]|(?s:\\.))*"|-?[0-9][0-9.eE+\-]*'
_CARD_DIGITS = range(13, 20)
_PHONE_DIGITS = 7
_MAX_RE2_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A stretch of a text and the kind of personal data it is."""

    start: int
    end: int
    kind: str


class Detector:
    """Finds the kinds a config asks for. Raises: ConfigError where the libraries or a pattern are missing or wrong."""

    def __init__(self, config: RedactConfig) -> None:
        self._re2 = _library()
        finders: dict[str, Finder] = {
            "email": self._matches(_EMAIL, _trim_email),
            "iban": self._matches(_IBAN, _ibans()),
            "card": self._matches(_CARD, _cards()),
            "ip": self._addresses(),
            "phone": self._phones(config.phone_regions),
            "name": people.finder(self._compile, config.names),
        }
        # In the order of who wins where two overlap: what the operator wrote, then what is checked most strictly.
        self._finders = {name: self._pattern(name, text) for name, text in config.patterns.items()}
        self._finders |= {kind: finder for kind, finder in finders.items() if kind in config.kinds}
        self.kinds = tuple(self._finders)
        self._literal = self._compile(_JSON_LITERAL)

    def __repr__(self) -> str:
        return f"Detector({', '.join(self.kinds)})"

    def find(self, text: str) -> list[Found]:
        """Every stretch of personal data in order, none overlapping another; what overlaps is found in parts."""
        text = plain(text)
        found: list[Found] = []
        for kind, finder in self._finders.items():
            taken = [(f.start, f.end) for f in found]
            parts = without(merged(finder(hidden(text, taken) if kind == "phone" else text)), taken)
            found += [Found(*part, kind) for part in parts if _says_something(text, part)]
            found.sort(key=lambda f: f.start)
        return found

    def words(self, words: list[str]) -> Finder:
        """A finder of these very words, wherever they stand by themselves."""
        finder = whole_words(self._compile, [plain(word) for word in words])
        return lambda text: finder(plain(text))

    def literals(self, text: str, rewrite: Callable[[str], str]) -> str:
        """A JSON text with each of its strings, quotes included, and numbers rewritten; what is no JSON stays."""
        pieces, at = [], 0
        for match in self._literal.finditer(encodable(text)):
            start, end = match.span()
            pieces += [text[at:start], rewrite(text[start:end])]
            at = end
        return "".join([*pieces, text[at:]])

    def _compile(self, pattern: str) -> Any:
        options = self._re2.Options()
        options.max_mem = _MAX_RE2_BYTES
        options.log_errors = False
        return self._re2.compile(pattern, options)

    def _pattern(self, name: str, text: str) -> Finder:
        try:
            compiled = self._compile(text)
        except self._re2.error as exc:
            raise ConfigError(f"redact.patterns.{name}: not an RE2 expression: {exc}") from None
        if compiled.search("") is not None:
            raise ConfigError(f"redact.patterns.{name}: matches the empty text")
        return lambda said: (match.span() for match in compiled.finditer(said) if match.group())

    def _matches(self, pattern: str, within: Callable[[str], Iterator[Place]]) -> Finder:
        """What ``within`` finds inside each candidate."""
        compiled = self._compile(pattern)

        def find(text: str) -> Iterator[Place]:
            for match in compiled.finditer(text):
                at = match.start()
                yield from ((at + start, at + end) for start, end in within(match.group()))

        return find

    def _addresses(self) -> Finder:
        candidates = [self._compile(_IPV4), self._compile(_IPV6)]

        def find(text: str) -> Iterator[Place]:
            for compiled in candidates:
                for match in compiled.finditer(text):
                    start, end = match.span()
                    said = match.group().rstrip(":") if not match.group().endswith("::") else match.group()
                    end = start + len(said)
                    if is_apart(text, start, end) and _is_personal_address(said):
                        yield start, end

        return find

    def _phones(self, regions: tuple[str, ...]) -> Finder:
        numbers = Numbers(regions)
        candidates = self._compile(_PHONE)

        def find(text: str) -> Iterator[Place]:
            seen: dict[str, list[Place]] = {}
            for match in candidates.finditer(text):
                if sum(c.isdigit() for c in match.group()) < _PHONE_DIGITS:
                    continue
                first, said = match.start(), match.group()
                if said not in seen:
                    seen[said] = list(numbers.within(said))
                places = ((first + start, first + end) for start, end in seen[said])
                yield from (place for place in places if is_apart(text, *place))

        return find


def _library() -> Any:
    try:
        import phonenumbers
        import re2
        import stdnum
    except ImportError as exc:
        name = exc.name or "a library"
        raise ConfigError(f'redaction needs {name}, which is not installed: pip install "edged[redact]"') from None
    assert phonenumbers
    assert stdnum
    return re2


def _trim_email(said: str) -> Iterator[Place]:
    start = len(said) - len(said.lstrip("._%+'-"))
    yield start, len(said.rstrip("-"))


def _groups(said: str) -> Iterator[Place]:
    """Every stretch that begins and ends where a group of signs does, the longest first."""
    starts = [i for i, c in enumerate(said) if c.isalnum() and (i == 0 or not said[i - 1].isalnum())]
    ends = [i + 1 for i, c in enumerate(said) if c.isalnum() and (i + 1 == len(said) or not said[i + 1].isalnum())]
    for start in starts:
        yield from ((start, end) for end in reversed(ends) if end > start)


def _ibans() -> Callable[[str], Iterator[Place]]:
    from stdnum import iban

    def within(said: str) -> Iterator[Place]:
        for start, end in _groups(said):
            if start == 0 and iban.is_valid(said[start:end], check_country=False):
                yield start, end
                return

    return within


def _cards() -> Callable[[str], Iterator[Place]]:
    from stdnum import luhn

    def within(said: str) -> Iterator[Place]:
        covered = 0
        for start, end in _groups(said):
            digits = "".join(c for c in said[start:end] if c.isdigit())
            if start >= covered and len(digits) in _CARD_DIGITS and digits[0] in "23456" and luhn.is_valid(digits):
                covered = end
                yield start, end

    return within


def _is_personal_address(said: str) -> bool:
    """An address of some machine; not this one's, not "any", and no ``a::b`` of a program."""
    if ":" in said and (said.count(":") < 2 or not any(c.isdigit() for c in said)):  # noqa: PLR2004 - the shortest IPv6 has two
        return False
    try:
        address = ipaddress.ip_address(said)
    except ValueError:
        return False
    return not (address.is_loopback or address.is_unspecified)


def _says_something(text: str, part: Place) -> bool:
    return any(c.isalnum() for c in text[slice(*part)])
