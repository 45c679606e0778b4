"""The time limit for templates."""

import subprocess
import sys
import time

import pytest

from edged.engine.limits import TimeLimitExceeded, time_limit


def spin(seconds: float) -> int:
    end, turns = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        turns += 1
    return turns


def test_a_loop_that_never_ends_is_ended() -> None:
    """Byte code is interrupted near its limit."""
    started_s = time.monotonic()
    with pytest.raises(TimeLimitExceeded), time_limit(0.05):
        spin(30)
    assert time.monotonic() - started_s < 10


def test_work_within_the_limit_is_not_disturbed() -> None:
    """Nothing is raised inside the block, nor later in code that has nothing to do with it."""
    for _ in range(50):
        with time_limit(5):
            spin(0.0001)
    spin(0.05)


def test_the_end_of_the_block_is_a_border() -> None:
    """A limit that falls just at the end raises inside, at the border or not at all, never afterwards."""
    for microseconds in range(0, 3000, 150):
        try:
            with time_limit(0.0015):
                spin(microseconds / 1e6)
        except TimeLimitExceeded:
            continue
        spin(0.003)


TRACED = """
import sys, time
from edged.engine.limits import TimeLimitExceeded, time_limit
for limit_s in [5, *[0.0002 * turn for turn in range(1, 40)], 0.01]:
    try:
        with time_limit(limit_s):
            time.sleep(0.002)
            while limit_s == 0.01:
                pass
    except TimeLimitExceeded:
        pass
def call(): pass
sys.settrace(lambda *_: None)
call()
print("went on")
"""


def test_nothing_is_left_behind_in_the_interpreter() -> None:
    """Blocks that end in time, late and in between leave code that is traced afterwards running."""
    command = [sys.executable, "-c", TRACED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "went on\n"
