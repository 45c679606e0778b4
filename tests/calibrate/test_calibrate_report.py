"""The report: well-formed, alone, readable without its pictures, and honest where nothing is served."""

import re
from html.parser import HTMLParser

import pytest
from calibrate_builders import ABOUT, FIVE_PERCENT, OPTIONS, PROVENANCE, answered, of_scored, scored

from edged.calibrate import outcome
from edged.calibrate.outcome import Target
from edged.calibrate.report import coverage, deferral, reliability, report

VOID = {"meta", "br", "path", "circle"}


class Page(HTMLParser):
    """Every element closed in order; texts by element, attributes of all."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def found():
    return of_scored(scored(120), scored(120, seed=1))


@pytest.fixture(scope="module")
def text(found):
    return report(found, PROVENANCE)


def test_the_page_is_well_formed_and_says_the_sentence_first(text, found):
    """In its heading, whole."""
    page = Page(text)
    assert not page.open
    heading = text[text.index("<h1>") : text.index("</h1>")]
    assert found.sentence.replace(" %", "\u00a0%") in heading
    assert re.search(r"<title>mood: calibration</title>", text)


def test_the_page_asks_nobody_for_anything(text):
    """No address, no script, no import: one file."""
    assert not re.search(r"(?i)https?:|src=|href=|url\(|@import|<script|<link|<iframe", text)


def test_it_follows_light_and_dark_and_the_width_of_a_phone(text):
    """By the reader's own settings."""
    assert "prefers-color-scheme:dark" in text
    assert 'name="viewport"' in text
    assert "auto-fit" in text


def test_every_picture_is_told_in_words_and_numbers(text):
    """A title and a description by id, and a table with each point."""
    page = Page(text)
    pictures = page.named("svg")
    assert len(pictures) == 3
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    for picture in pictures:
        assert picture["role"] == "img"
        assert set(picture["aria-labelledby"].split()) <= ids
    assert len(page.named("details")) == 3
    assert text.count("<th scope=row>by confidence</th>") > 20


def test_a_name_is_never_markup(text):
    """Options, tasks and models are the user's words."""
    assert "<b>" not in text
    assert "&lt;b&gt;angry&lt;/b&gt;" in text


def test_no_mark_lies_outside_its_picture(text):
    """Whatever the numbers."""
    numbers = [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", text)]
    assert numbers
    assert all(0 <= x <= 400 and 0 <= y <= 270 for x, y in numbers)
    assert "nan" not in text


def test_the_curve_lies_between_chance_and_the_oracle(found):
    """From the model's own accuracy to the cloud's."""
    ours, random, oracle, chosen = deferral(found).series
    accuracy = found.artefact.accuracy
    assert ours.points[0] == (0.0, accuracy)
    assert ours.points[-1] == (1.0, 1.0)
    for share, value in ours.points:
        assert value <= min(1.0, accuracy + share) + 1e-9
        assert value >= accuracy + share * (1 - accuracy) - 0.03
    assert chosen.points[0][0] == pytest.approx(1 - found.served_share)
    assert (random.points[0], oracle.points[0]) == ((0.0, accuracy), (0.0, accuracy))


def test_what_is_certified_never_exceeds_what_was_possible_in_hindsight(found):
    """At each error allowed; and more is served where more is allowed."""
    certified, hindsight = coverage(found).series
    shares = [share for _, share in certified.points]
    assert shares == sorted(shares)
    assert all(low <= high for (_, low), (_, high) in zip(certified.points, hindsight.points, strict=True))
    assert shares[-1] > 0.5


def test_reliability_counts_every_item_once(found):
    """In bins of equal size, each within its interval."""
    points = reliability(found).series[1]
    assert 8 <= len(points.points) <= 10
    assert all(low <= y <= high for (_, y), (low, high) in zip(points.points, points.spread, strict=True))


@pytest.mark.parametrize("target", [FIVE_PERCENT, Target(max_error=None, cloud_share=0.999, delta=0.1)])
def test_a_model_that_serves_nothing_has_a_report_too(target):
    """Of generated answers as well, which have no options to confuse."""
    bad = of_scored(scored(60, skill=0.0), scored(60, seed=1, skill=0.0), target)
    assert "Nothing of the test half" in report(bad, PROVENANCE)
    text = outcome.of_answered(answered(40), answered(40, seed=1), target=target, about=ABOUT)
    assert not Page(report(text, PROVENANCE.__class__(**{**_fields(PROVENANCE), "options": ()}))).open


def test_many_options_are_shown_by_their_errors(found):
    """A square of thirty rows tells nobody anything."""
    many = PROVENANCE.__class__(**{**_fields(PROVENANCE), "options": OPTIONS + tuple(map(str, range(30)))})
    assert "The most frequent errors of" in report(found, many)


def _fields(provenance):
    return {name: getattr(provenance, name) for name in provenance.__slots__}
