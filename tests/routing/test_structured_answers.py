"""How JSON and function calls are scored and judged."""

import math

import pytest
from builders import STOP, an_observation, the_terms, tokens

from edged.core import FinishReason, Reason, Release, Token
from edged.routing.confidence import CEILING, free_text_score, structured_score
from edged.routing.policy import Verdict, review


def said(*pairs):
    """Tokens of (piece, probability)."""
    return [Token(piece.encode(), math.log(probability)) for piece, probability in pairs]


SURE = said(('{"', 0.001), ("city", 0.002), ('": "', 0.9), ("Paris", 0.95), ('"}', 0.01))
UNSURE = said(('{"', 0.99), ("city", 0.99), ('": "', 0.99), ("Paris", 0.05), ('"}', 0.99))


def test_the_form_is_no_evidence():
    """A model pushed into a schema it did not like may still be sure of the value, and the other way round."""
    assert structured_score(SURE) > 0.9
    assert structured_score(UNSURE) < 0.3
    assert free_text_score(SURE) < structured_score(SURE)


def test_the_worst_value_weighs_as_much_as_the_mean():
    """One bad field among good ones spoils the answer."""
    values = [(f'"{letter}", ', 0.99) for letter in "abcdefgh"]
    good, spoiled = said(("[", 1), *values), said(("[", 1), *values[:-1], ('"h"', 0.01))
    assert structured_score(spoiled) < 0.5 * structured_score(good)


def test_an_answer_without_values_is_scored_by_every_token():
    """An empty object, or calls without arguments but for the name, is an answer like any other."""
    assert structured_score(said(("{", 0.5), ("}", 0.5))) == pytest.approx(math.sqrt(0.5))
    assert structured_score([]) is None
    assert structured_score(said(('"x"', 1.0))) == CEILING


def test_structured_answers_are_held_to_their_end():
    """They are short and stand or fall as a whole; what is sent on the way cannot be taken back."""
    going = {"said": tokens(*[0.9] * 50), "structured": frozenset({0})}
    assert review(an_observation(**going), the_terms()).verdict is Verdict.WAIT
    assert review(an_observation(**going, finish=STOP), the_terms()).verdict is Verdict.KEEP
    eager = the_terms(release=Release.EAGER)
    assert review(an_observation(**going, finish=STOP), eager).verdict is Verdict.KEEP


@pytest.mark.parametrize("finish", [STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS])
def test_json_that_does_not_parse_is_invalid_output(finish):
    """Whatever ended it."""
    seen = an_observation(said=tokens(0.9), finish=finish, malformed=True, structured=frozenset({0}))
    assert review(seen, the_terms()).reason is Reason.INVALID_OUTPUT


def test_an_answer_cut_short_of_what_was_asked_is_truncated_first():
    """The cut is the cause, the parse error only follows from it."""
    seen = an_observation(said=tokens(0.9), finish=FinishReason.LENGTH, cut_short=True, malformed=True)
    assert review(seen, the_terms()).reason is Reason.TRUNCATED
