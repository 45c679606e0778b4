"""Who drafts how much: tokens per time decide, and what they decide on is measured."""

import itertools
import random

import pytest
from engine_builders import a_sequence

from edged.engine.drafts import MOST_DRAFTED_TOKENS, Drafter, share_out

SAID = b"name: Ada Lovelace, town: London; "


def dear(rows: int) -> float:
    return 1 + 0.5 * (rows - 1)


def cheap(rows: int) -> float:
    return 1 + 0.02 * (rows - 1)


def falling(chance: float, most: int = 7) -> list[float]:
    return [chance ** (ahead + 1) for ahead in range(most)]


@pytest.mark.parametrize("seed", range(60))
def test_no_other_choice_yields_more_tokens_per_time(seed):
    """Against every other way to share out the same rows."""
    draw = random.Random(seed)
    slope = draw.choice([0.05, 0.2, 0.5])
    chances = [falling(draw.uniform(0.05, 0.97), 3) for _ in range(draw.randrange(1, 4))]
    spare_rows = draw.randrange(8)

    def rate(counts) -> float:
        tokens = len(chances) + sum(sum(its[:count]) for its, count in zip(chances, counts, strict=True))
        return tokens / (1 + slope * (len(chances) + sum(counts) - 1))

    chosen = share_out(chances, spare_rows, lambda rows: 1 + slope * (rows - 1))
    assert sum(chosen) <= spare_rows
    others = [c for c in itertools.product(range(4), repeat=len(chances)) if sum(c) <= spare_rows]
    best = max(map(rate, others))
    plain = rate([0] * len(chances))
    assert rate(chosen) == pytest.approx(best) if any(chosen) else best <= 1.0501 * plain


def test_an_unlikely_guess_is_not_worth_its_row():
    assert share_out([falling(0.45)], 7, dear) == [0]
    assert share_out([falling(0.95)], 7, dear)[0] >= 2


def test_where_rows_cost_little_more_is_guessed():
    assert share_out([falling(0.7)], 7, cheap)[0] > share_out([falling(0.7)], 7, dear)[0]


def test_the_more_sequences_decode_the_less_each_drafts():
    """Beside many rows a guess has to be nearly certain."""
    alone = share_out([falling(0.8)], 15, dear)
    crowd = share_out([falling(0.8)] * 8, 8, dear)
    assert alone[0] > 0 == sum(crowd)


def test_rows_go_to_the_likeliest_guesses():
    assert share_out([falling(0.5), falling(0.98)], 3, cheap) == [0, 3]


def test_a_step_without_guesses_has_nothing_to_share():
    assert share_out([], 7, dear) == []
    assert share_out([[], []], 7, dear) == [0, 0]


def a_copying_sequence(**fields):
    return a_sequence(SAID * 3, **({"max_tokens": 100} | fields))


def run(drafter: Drafter, tokens, *, step_s) -> list[int]:
    """A sequence that says ``tokens`` whatever is drafted; returns how many were drafted at each step."""
    sequence, drafted = a_copying_sequence(max_tokens=10_000), []
    for token in tokens:
        count = len(drafter.propose([sequence]).get(sequence, ()))
        drafted.append(count)
        drafter.observe(1 + count, step_s(1 + count), plain=not count)
        sequence.tokens.append(token)
    return drafted


def test_a_copy_is_drafted_and_what_is_new_is_not():
    assert sum(run(Drafter(most_rows=8), SAID * 4, step_s=dear)) > 100
    noise = random.Random(1).choices(range(1000, 1004), k=1000)
    assert sum(run(Drafter(most_rows=8), noise, step_s=dear)[100:]) < 50


def test_rows_that_cost_too_much_end_the_drafts():
    """A box where a further row costs more than a step of its own is soon left alone."""
    drafted = run(Drafter(most_rows=8), SAID * 30, step_s=lambda rows: 1.5 * rows)
    assert sum(map(bool, drafted[100:])) < 0.1 * len(drafted[100:])


def test_a_box_that_gets_better_is_found_out():
    """Rows are tried again now and then, so that one bad minute does not switch drafts off for ever."""
    drafter = Drafter(most_rows=8)
    run(drafter, SAID * 30, step_s=lambda rows: 1.5 * rows)
    drafted = run(drafter, SAID * 60, step_s=cheap)
    assert sum(map(bool, drafted[-200:])) > 150


@pytest.mark.parametrize("room", [1, 2, 5, 90])
def test_a_draft_leaves_room_for_the_token_behind_it(room):
    """The answer's last token is never a guess, so that no cell beyond the reserved ones is ever written."""
    sequence = a_copying_sequence(max_tokens=room)
    guesses = Drafter(most_rows=8).propose([sequence]).get(sequence, ())
    assert len(guesses) <= min(room - 1, MOST_DRAFTED_TOKENS)
    assert bool(guesses) == (room > 1)


def test_all_drafts_together_stay_within_the_rows_of_a_step():
    sequences = [a_copying_sequence(choice=i) for i in range(5)]
    drafter = Drafter(most_rows=8)
    for rows in range(2, 9):
        for _ in range(10):
            drafter.observe(1, 1.0, plain=True)
            drafter.observe(rows, 1.0, plain=False)
    assert sum(map(len, drafter.propose(sequences).values())) == 3
    assert drafter.propose([]) == {}
    assert drafter.propose([a_copying_sequence(choice=i) for i in range(9)]) == {}
