import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged.engine.cores import RECENT_SAMPLES, CoreBudget, CpuSample, sample, usable_cores

QUARTER_S = 0.25


def run(budget: CoreBudget, others: list[float]) -> list[int]:
    """Feed the budget neighbours that use so many cores, a quarter of a second each; the grants after each."""
    start = budget._last or CpuSample(0.0, 0.0, 0.0)
    budget.observe(start)
    at_s, busy_s, grants = start.at_s, start.busy_s, []
    for cores in others:
        at_s, busy_s = at_s + QUARTER_S, busy_s + cores * QUARTER_S
        budget.observe(CpuSample(at_s, busy_s, 0.0))
        grants.append(budget.granted)
    return grants


def test_a_busy_neighbour_takes_its_core_within_half_a_second() -> None:
    """Fewer threads from the second sample on: spinning beside a neighbour collapses."""
    assert run(CoreBudget(2), [0.0, 1.0, 1.0]) == [2, 2, 1]


def test_a_burst_costs_no_core() -> None:
    """A command that ran for a tenth of a second is gone before fewer threads could help."""
    assert run(CoreBudget(2), [0.0, 0.9, 0.0, 0.0, 0.0, 0.7, 0.0]) == [2] * 7


def test_a_neighbour_that_fights_two_spinning_threads_is_seen() -> None:
    """A neighbour squeezed to half a core by our own spinning still counts."""
    assert run(CoreBudget(2), [0.5, 0.5]) == [2, 1]


def test_a_core_comes_back_within_a_second() -> None:
    """More threads only after the core was free for a while, yet within a second."""
    grants = run(CoreBudget(2), [1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    assert grants == [2, 1, 1, 1, 2, 2]
    assert RECENT_SAMPLES * QUARTER_S < 1


def test_a_flickering_neighbour_does_not_make_it_oscillate() -> None:
    """On and off in turn stays at fewer threads."""
    assert run(CoreBudget(2), [1.0, 0.0] * 10)[2:] == [1] * 18


def test_our_own_workers_are_no_neighbours() -> None:
    """What the workers burn, spinning included, is not taken from them."""
    budget = CoreBudget(2)
    budget.observe(CpuSample(0.0, 0.0, 0.0))
    budget.observe(CpuSample(1.0, 2.0, 2.0))
    assert budget.granted == 2


def test_little_background_noise_costs_no_core() -> None:
    assert run(CoreBudget(4), [0.1, 0.2, 0.15]) == [4, 4, 4]


@given(st.integers(1, 64), st.lists(st.floats(0, 80), max_size=30))
def test_at_least_one_core_and_never_more_than_there_are(cores: int, others: list[float]) -> None:
    assert all(1 <= grant <= cores for grant in run(CoreBudget(cores), others))


@given(st.integers(1, 16), st.integers(1, 6))
def test_two_pools_never_spin_on_one_core(cores: int, models: int) -> None:
    """The shares of the models at work add up to the grant, or each has the one thread that does not spin."""
    names = [f"m{i}" for i in range(models)]
    shares = CoreBudget(cores).share(names, dict.fromkeys(names))
    assert sum(shares.values()) <= cores or set(shares.values()) == {1}
    assert min(shares.values()) >= 1
    assert max(shares.values()) - min(shares.values()) <= 1


def test_a_pinned_model_keeps_its_number() -> None:
    """``threads = N`` is the operator's word."""
    assert CoreBudget(4).share(["a", "b"], {"a": 3, "b": None}) == {"a": 3, "b": 4}


def test_stale_and_backward_samples_change_nothing() -> None:
    budget = CoreBudget(2)
    for at_s in (5.0, 5.0, 4.0):
        budget.observe(CpuSample(at_s, 100.0, 0.0))
    assert budget.granted == 2


def test_the_quota_of_the_own_cgroup_counts(tmp_path: Path) -> None:
    """cpu.max "150000 100000" leaves one whole core."""
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert usable_cores(cgroup=tmp_path, cpus=tmp_path) == 1


@pytest.mark.parametrize("text", ["max 100000\n", "", "nonsense", "1 2 3"])
def test_no_quota_leaves_what_affinity_allows(tmp_path: Path, text: str) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(cgroup=tmp_path, cpus=tmp_path) == len(os.sched_getaffinity(0))


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    """SMT siblings share the units that decode needs."""
    for cpu in os.sched_getaffinity(0):
        (tmp_path / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text("0-1\n")
    assert usable_cores(cgroup=tmp_path, cpus=tmp_path) == 1


def test_slow_cores_are_left_out(tmp_path: Path) -> None:
    """On big.LITTLE the slow cores would hold the fast ones up."""
    allowed = sorted(os.sched_getaffinity(0))
    for cpu in allowed:
        (tmp_path / f"cpu{cpu}").mkdir()
        (tmp_path / f"cpu{cpu}" / "cpu_capacity").write_text("1024" if cpu == allowed[0] else "400")
    assert usable_cores(cgroup=tmp_path, cpus=tmp_path) == 1


def test_the_real_clocks_move_forward() -> None:
    """A real sample of this machine: our own process is among the busy."""
    first = sample([os.getpid()], at_s=0.0)
    sum(i * i for i in range(2_000_000))
    second = sample([os.getpid()], at_s=1.0)
    assert second.workers_s > first.workers_s
    assert second.busy_s >= first.busy_s
