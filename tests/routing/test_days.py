"""When a budget's day begins, on a box whose clock may be wrong in every way."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from edged.routing.days import DAY_S, LONGEST_DAY_S, Days

NOON = 20_000 * DAY_S + DAY_S / 2
HOUR_S = 3_600.0
FAR = 47_000 * DAY_S


@dataclass
class Box:
    """A box in the hands of a test: true time runs, the wall clock shows what it was set to."""

    wall_s: float = NOON
    elapsed_s: float = 100.0
    opened: int = 0
    days: Days = field(init=False)

    def __post_init__(self):
        self.days = Days(wall_s=self.wall_s, elapsed_s=self.elapsed_s)

    def run(self, seconds, *, every_s=HOUR_S):
        """Let time pass, looking now and then; how many days opened."""
        before, end_s = self.opened, self.elapsed_s + seconds
        while self.elapsed_s < end_s:
            step_s = min(every_s, end_s - self.elapsed_s)
            self.wall_s += step_s
            self.elapsed_s += step_s
            self.look()
        return self.opened - before

    def set(self, wall_s):
        self.wall_s = wall_s
        return self.look()

    def look(self):
        new = self.days.look(wall_s=self.wall_s, elapsed_s=self.elapsed_s)
        self.opened += new
        return new

    def restart(self, *, off_s=0.0, wall_s=None):
        """Power off and on; ``wall_s`` is what the clock shows then."""
        mark = self.days.mark(wall_s=self.wall_s, elapsed_s=self.elapsed_s)
        self.wall_s = self.wall_s + off_s if wall_s is None else wall_s
        self.elapsed_s = 10.0
        self.days = Days(wall_s=self.wall_s, elapsed_s=self.elapsed_s, mark=mark)
        new = self.days.number - mark.number
        self.opened += new
        return new


def test_days_open_at_midnight():
    """A week is seven midnights, the first after half a day."""
    box = Box()
    assert box.run(DAY_S / 2 - 60) == 0
    assert box.run(60) == 1
    assert box.run(6 * DAY_S) == 6


def test_a_clock_that_steps_back_opens_nothing():
    """Not on the way back, not on the way forward again, not at a midnight it has seen."""
    box = Box()
    assert box.run(13 * HOUR_S) == 1
    for _ in range(5):
        assert not box.set(box.wall_s - 2 * HOUR_S)
        assert box.run(60, every_s=60) == 0
        assert not box.set(box.wall_s + 2 * HOUR_S)


def test_a_clock_set_by_the_network_after_the_start_is_believed_once():
    """A box without a clock of its own starts in the past and is put right a minute later."""
    box = Box()
    assert box.restart(wall_s=NOON - 3 * DAY_S) == 0
    assert box.run(60, every_s=60) == 0
    assert box.set(NOON + DAY_S)
    assert box.run(11 * HOUR_S) == 0
    assert box.run(HOUR_S) == 1


def test_a_clock_set_forward_again_and_again_opens_one_day_a_long_day():
    """Whoever may set the clock cannot have tomorrow's money, and the day after tomorrow's, today."""
    box = Box()
    assert box.set(NOON + DAY_S)
    for number in range(2, 20):
        assert not box.set(NOON + number * DAY_S)
    assert box.run(LONGEST_DAY_S) <= 2


def test_a_visit_to_the_far_future_delays_the_next_day_by_a_long_day_at_most():
    """Not until 2099."""
    box = Box()
    assert box.set(FAR)
    assert not box.set(NOON + 60)
    assert box.run(LONGEST_DAY_S - 2 * HOUR_S) == 0
    assert box.run(3 * HOUR_S) == 1
    assert box.run(3 * DAY_S) == 3


def test_a_wrong_future_kept_over_a_restart_does_not_block_either():
    """The time the box was off counts where the clock tells it."""
    box = Box()
    assert box.set(FAR)
    box.set(NOON)
    assert box.restart(off_s=HOUR_S) == 0
    assert box.restart(off_s=2 * DAY_S) == 1


def test_a_restart_keeps_the_day_and_a_night_off_ends_it():
    """Today's spend is still today's after a crash; tomorrow begins although nobody saw midnight."""
    box = Box()
    assert box.restart(off_s=60) == 0
    assert box.restart(off_s=DAY_S) == 1
    assert box.restart(off_s=30 * DAY_S) == 1


def test_how_long_until_the_next_day():
    """To midnight; where the clock was set back, to the end of a long day."""
    box = Box()
    assert abs(box.days.left_s(wall_s=box.wall_s, elapsed_s=box.elapsed_s) - DAY_S / 2) <= 1
    box.run(13 * HOUR_S)
    box.set(NOON)
    assert box.days.left_s(wall_s=box.wall_s, elapsed_s=box.elapsed_s) == LONGEST_DAY_S - HOUR_S


events = st.lists(
    st.one_of(
        st.tuples(st.just("run"), st.floats(1, 3 * DAY_S)),
        st.tuples(st.just("set"), st.floats(0, FAR)),
        st.tuples(st.just("step"), st.floats(-2 * DAY_S, 2 * DAY_S)),
        st.tuples(st.just("restart"), st.floats(0, 3 * DAY_S)),
        st.tuples(st.just("boot wrong"), st.floats(0, FAR)),
    ),
    max_size=30,
)


@given(script=events)
def test_no_sequence_of_clock_steps_opens_more_days_than_time_allows(script):
    """At most one day per start and, while running, one by midnight and one by a step per day; and days do come."""
    box, ran_s, off_s, starts = Box(), 0.0, 0.0, 1
    for kind, value in script:
        if kind == "run":
            box.run(value, every_s=6 * HOUR_S)
            ran_s += value
        elif kind == "restart":
            box.restart(off_s=value)
            off_s, starts = off_s + value, starts + 1
        elif kind == "boot wrong":
            box.restart(wall_s=value)
            starts += 1
        else:
            box.set(max(0.0, box.wall_s + value if kind == "step" else value))
        assert box.opened <= 2 * starts + 2 * (ran_s / DAY_S) + 1
    before = box.opened
    box.run(10 * DAY_S, every_s=6 * HOUR_S)
    assert box.opened - before >= 8
