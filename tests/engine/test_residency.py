"""Who is unloaded for whom, and when memory counts as short: decisions, as tables and properties."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.engine import memory
from edged.engine.pressure import CALM_S, Pressure, Reading, read
from edged.engine.residency import Resident, choose_evictions, idle_too_long

NOW_S = 1_000.0


def a_model(name="a", size=100, *, busy=False, used_ago=50.0, loaded_ago=100.0, **fields) -> Resident:
    return Resident(
        name=name,
        bytes=size,
        busy=busy,
        used_s=NOW_S - used_ago,
        loaded_s=NOW_S - loaded_ago,
        **{"min_loaded_s": 30.0, **fields},
    )


@pytest.mark.parametrize(
    ("models", "needed", "available", "leaving"),
    [
        pytest.param([a_model()], 100, 100, (), id="it fits"),
        pytest.param([a_model()], 100, 99, ("a",), id="one byte short"),
        pytest.param([a_model(busy=True)], 100, 0, (), id="never a busy one"),
        pytest.param([a_model(loaded_ago=29.9)], 100, 0, (), id="not before its residency is over"),
        pytest.param([a_model(loaded_ago=30.0)], 100, 0, ("a",), id="at its end"),
        pytest.param([a_model(), a_model("b", used_ago=60)], 100, 0, ("b",), id="least recently used first"),
        pytest.param([a_model(), a_model("b", used_ago=60)], 150, 0, ("b", "a"), id="as many as it takes"),
        pytest.param([a_model(), a_model("b", used_ago=60)], 201, 0, (), id="nobody in vain"),
        pytest.param([a_model(size=500), a_model("b", used_ago=60)], 300, 0, ("a",), id="one large for one small"),
    ],
)
def test_room_is_made_by_the_least_recently_used(models, needed, available, leaving) -> None:
    """Idle, past its minimum residency, needed for the newcomer: all three, or it stays."""
    assert choose_evictions(models, needed_bytes=needed, available_bytes=available, now_s=NOW_S) == leaving


residents = st.lists(
    st.builds(
        a_model,
        name=st.uuids().map(str),
        size=st.integers(1, 1000),
        busy=st.booleans(),
        used_ago=st.floats(0, 500),
        loaded_ago=st.floats(0, 500),
    ),
    max_size=6,
)


@given(models=residents, needed=st.integers(0, 3000), available=st.integers(0, 3000))
def test_evictions_suffice_or_do_not_happen(models, needed, available) -> None:
    """Whatever the box holds: no busy or new model leaves, those that leave are enough, and none of them is spare."""
    leaving = choose_evictions(models, needed_bytes=needed, available_bytes=available, now_s=NOW_S)
    left = [m for m in models if m.name in leaving]
    assert all(m.may_leave(NOW_S) for m in left)
    freed = available + sum(m.bytes for m in left)
    if leaving:
        assert freed >= needed
        assert all(freed - m.bytes < needed for m in left)
    elif available < needed:
        assert available + sum(m.bytes for m in models if m.may_leave(NOW_S)) < needed


@pytest.mark.parametrize(
    ("fields", "leaves"),
    [
        pytest.param({"keep_loaded_s": 0.0}, False, id="0 keeps it"),
        pytest.param({"keep_loaded_s": 50.0}, True, id="idle for long enough"),
        pytest.param({"keep_loaded_s": 50.1}, False, id="not yet"),
        pytest.param({"keep_loaded_s": 1.0, "busy": True}, False, id="busy"),
        pytest.param({"keep_loaded_s": 1.0, "loaded_ago": 10.0}, False, id="minimum residency"),
    ],
)
def test_an_idle_model_is_unloaded_after_its_time(fields, leaves) -> None:
    """``keep_loaded_s`` counts from the last use, and never undercuts ``min_loaded_s``."""
    assert bool(idle_too_long([a_model(**fields)], NOW_S)) is leaves


# -- pressure --------------------------------------------------------------------------------------------------------

MUCH = 10 * memory.RESERVE_BYTES
BAD, BETWEEN, CALM = (Reading(stall_percent=p, available_bytes=MUCH) for p in (25.0, 10.0, 5.0))
NO_ROOM = Reading(available_bytes=memory.RESERVE_BYTES // 2 - 1)
LITTLE_ROOM = Reading(available_bytes=memory.RESERVE_BYTES - 1)


def observed(*readings: Reading) -> list[bool]:
    """Whether it is pressed after each, a second apart."""
    pressure, seen = Pressure(), []
    for at_s, reading in enumerate(readings):
        pressure.observe(reading, at_s=float(at_s))
        seen.append(pressure.pressed)
    return seen


@pytest.mark.parametrize("bad", [BAD, NO_ROOM], ids=["stalls", "no room"])
def test_pressure_begins_with_the_second_bad_sample(bad) -> None:
    """One hiccup changes nothing."""
    assert observed(bad, CALM, bad) == [False, False, False]
    assert observed(bad, bad) == [False, True]


@pytest.mark.parametrize("between", [BETWEEN, LITTLE_ROOM], ids=["some stalls", "little room"])
def test_pressure_ends_only_after_calm(between) -> None:
    """Between the marks nothing changes, and calm has to last: no oscillation."""
    calm = int(CALM_S)
    assert not any(observed(*[between] * 20))
    assert all(observed(BAD, BAD, *[between] * 20)[1:])
    assert observed(BAD, BAD, *[CALM] * (calm + 1))[-2:] == [True, False]
    assert all(observed(BAD, BAD, *[CALM] * calm, between, *[CALM] * calm)[1:])


@pytest.mark.parametrize(
    ("text", "percent"),
    [("some avg10=12.50 avg60=1.00 avg300=0.10 total=9\nfull avg10=1.00\n", 12.5), ("", 0.0), (None, 0.0)],
)
def test_stalls_are_the_kernels_own_number(tmp_path, text, percent) -> None:
    """PSI's ``some avg10``; none on a kernel without it."""
    if text is not None:
        (tmp_path / "pressure").mkdir()
        (tmp_path / "pressure" / "memory").write_text(text)
    assert read(tmp_path).stall_percent == percent
