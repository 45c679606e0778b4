"""What counts as personal data in a text, and how long looking may take."""

import builtins
import re
import time
from pathlib import Path

import pytest
from examples import CLEAN, EXAMPLES
from hypothesis import given
from hypothesis import strategies as st
from privacy_builders import CARD, MAIL, PHONE, a_detector, the_detector

from edged.config import RedactConfig
from edged.errors import ConfigError
from edged.privacy.detect import Detector

DOC = Path(__file__).parents[2] / "docs" / "privacy.md"


def _found(text, detector=None):
    return [(found.kind, text[found.start : found.end]) for found in (detector or the_detector()).find(text)]


def _recall(kind):
    hits = sum((value in [said for _, said in _found(text)]) for text, value in EXAMPLES[kind])
    return f"{hits} of {len(EXAMPLES[kind])}"


@pytest.mark.parametrize("kind", EXAMPLES)
def test_the_docs_state_the_recall_that_is_measured(kind):
    """No claim without its number: each row of the table is counted here."""
    row = next(line for line in DOC.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{kind}` |"))
    assert f"| {_recall(kind)} |" in row


@pytest.mark.parametrize("text", CLEAN)
def test_what_is_no_personal_data_is_left_alone(text):
    """Times, versions, hashes, C++ scopes and greetings to everybody look like data and are none."""
    assert _found(text) == []


@given(st.lists(st.sampled_from([MAIL, PHONE, CARD, "Dear Mrs Smith", "10.1.2.3", "x", " ", "\n", ",", "é", "\ud800"])))
def test_places_are_in_order_inside_the_text_and_apart(parts):
    """Whatever stands beside what, no two places overlap, and none is empty."""
    text = "".join(parts)
    places = [(found.start, found.end) for found in the_detector().find(text)]
    ends = [0]
    for start, end in places:
        assert ends[-1] <= start < end <= len(text)
        ends.append(end)


def test_odd_signs_hide_nothing():
    """Full-width letters, dashes, odd spaces and signs nobody sees are read as plain ones; places stay right."""
    assert _found("é anna\uff20example.com") == [("email", "anna\uff20example.com")]
    assert _found("+49\u00a030\u00a0901820") == [("phone", "+49\u00a030\u00a0901820")]
    assert _found("an\u200bna\u00ad@example.com") == [("email", "an\u200bna\u00ad@example.com")]
    assert _found("4111\u200b1111\u200b1111\u200b1111") == [("card", "4111\u200b1111\u200b1111\u200b1111")]
    assert _found("4111\u20111111\u20111111\u20111111") == [("card", "4111\u20111111\u20111111\u20111111")]


@pytest.mark.parametrize("text", ["王{}王", "é{}é", "f({})", "[{}]", "<{}>", "a\t{}\n", "'{}'", "x={};", "{}, {}"])
@pytest.mark.parametrize("value", [MAIL, PHONE, CARD, "0151 23456789", "203.0.113.7", "2001:db8::1"])
def test_what_stands_around_a_value_does_not_hide_it(text, value):
    """Brackets, quotes, other scripts: the value is covered, a letter more at the most."""
    said = text.format(value, value)
    covered = "".join(found for _, found in _found(said))
    assert covered.count(value) == said.count(value)


def test_an_operators_pattern_wins_and_names_its_kind():
    """``[redact] patterns`` adds kinds, and what they claim no built-in kind takes."""
    detector = a_detector(patterns={"employee_id": "E[0-9]{6}", "ticket": r"T-\d+@example\.com"})
    assert _found("E123456 wrote T-7@example.com", detector) == [
        ("employee_id", "E123456"),
        ("ticket", "T-7@example.com"),
    ]


def test_what_overlaps_is_hidden_as_a_whole():
    """A pattern that claims half of an address leaves the other half to the address."""
    detector = a_detector(patterns={"half": "anna"})
    assert _found("anna.b@example.com", detector) == [("half", "anna"), ("email", ".b@example.com")]


def test_known_names_are_found_wherever_they_stand_alone():
    """``[redact] names``: any case and spacing, and no part of a longer word."""
    detector = a_detector(names=["Priya Patel", "Bo"])
    assert _found("ask priya  PATEL or Bo, not Bob", detector) == [("name", "priya  PATEL"), ("name", "Bo")]


def test_only_the_kinds_asked_for_are_found():
    """``[redact] kinds`` is a closed list."""
    assert _found(f"{MAIL} {PHONE}", a_detector(kinds=["phone"])) == [("phone", PHONE)]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"patterns": {"broken": "("}}, "redact.patterns.broken: not an RE2 expression"),
        ({"patterns": {"looks_back": "(?<=a)b"}}, "redact.patterns.looks_back: not an RE2 expression"),
        ({"patterns": {"everything": "x*"}}, "redact.patterns.everything: matches the empty text"),
        ({"phone_regions": ["XX"]}, 'redact.phone_regions: "XX" is not a region'),
    ],
)
def test_what_cannot_be_searched_for_is_refused_by_name(config, said):
    """A detector is made whole or not at all."""
    with pytest.raises(ConfigError, match=re.escape(said)):
        a_detector(**config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"patterns": {"Email": "x"}}, "2 to 60 small letters"),
        ({"patterns": {"email": "x"}}, "built-in kind"),
        ({"patterns": {"empty": ""}}, "1 to 1000 characters"),
        ({"phone_regions": ["germany"]}, "two capital letters"),
        ({"names": [" "]}, "an empty name"),
        ({"max_chars": 10}, "1000"),
    ],
)
def test_a_bad_key_of_the_section_names_its_limit(config, said):
    """Every key has bounds, and the message says them."""
    with pytest.raises(ValueError, match=re.escape(said)):
        RedactConfig.model_validate(config)


@pytest.mark.parametrize("library", ["re2", "phonenumbers", "stdnum"])
def test_without_its_libraries_nothing_is_redacted_and_the_error_says_what_to_install(library, monkeypatch):
    """There is no weaker stand-in."""
    whole = builtins.__import__

    def without(name, *args, **kwargs):
        if name == library:
            raise ImportError(name=name)
        return whole(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=re.escape(f'{library}, which is not installed: pip install "edged[redact]"')):
        Detector(RedactConfig())


HOSTILE = [
    "a" * 50_000 + "@",
    "a@" + "a." * 25_000,
    "@" * 50_000,
    "1 " * 25_000,
    "4111 " * 10_000,
    ":" * 50_000,
    "a:" * 25_000,
    "DE89 " * 10_000,
    "Mr " * 17_000,
    "Dear A" * 8_000,
    '"' * 50_000,
    '"\\' * 25_000,
    " ".join(str(i * 7_919 % 100_000) for i in range(1_500)),
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text[:8]))
def test_no_text_makes_the_search_explode(text):
    """Fifty thousand signs made to be awkward take less than seconds."""
    started_s = time.monotonic()
    the_detector().find(text)
    the_detector().literals(text, str)
    assert time.monotonic() - started_s < 5


def test_no_pattern_of_an_operator_explodes():
    """RE2 is linear: the pattern that hangs a backtracking engine for ever is done at once."""
    detector = a_detector(kinds=[], patterns={"evil": "(a+)+$"})
    started_s = time.monotonic()
    assert _found("a" * 100_000 + "!", detector) == []
    assert time.monotonic() - started_s < 1
