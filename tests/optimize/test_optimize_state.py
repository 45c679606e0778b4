"""What is kept of an interrupted optimization."""

import json

import msgspec
import pytest

from edged.optimize import state
from edged.optimize.state import Key, Pair, State, Timing, Trial

KEY = Key(source_sha256="a" * 64, llama_cpp="0.3.36", cpu="x86_64 some cpu avx2", plan="b" * 64)


def a_state(key=KEY):
    pair = Pair(Timing(1.0, 2.0, 300), Timing(0.5, 1.0, 400))
    trial = Trial(bytes=5, sha256="c" * 64, pairs=[pair], scores={"facts": [(-1.0, -2.5)]})
    return State(key, began_at=1.5, threads=2, cores=2, published={"facts": [(-1.25, -2.0)]}, formats={"Q8_0": trial})


def test_what_was_measured_is_read_back(tmp_path):
    """Every number survives."""
    path = tmp_path / "m.optimizing.json"
    state.save(path, a_state())
    assert state.load(path, KEY) == a_state()


@pytest.mark.parametrize("field", ["source_sha256", "llama_cpp", "cpu", "plan"])
def test_another_file_library_cpu_or_plan_starts_anew(tmp_path, field):
    """Numbers hold only for what they were taken on."""
    path = tmp_path / "m.optimizing.json"
    state.save(path, a_state())
    other = msgspec.structs.replace(KEY, **{field: "other"})
    assert state.load(path, other) == State(other)


@pytest.mark.parametrize("text", ["", "[]", "{}", "not json", '{"key": 1}', json.dumps({"key": {}, "formats": []})])
def test_a_damaged_state_starts_anew(tmp_path, text):
    """It is only measurements: nothing to be lost but time."""
    path = tmp_path / "m.optimizing.json"
    path.write_text(text)
    assert state.load(path, KEY) == State(KEY)


def test_a_link_is_not_followed(tmp_path):
    """E03: a state file is a file of our own directory, or it is not read."""
    state.save(tmp_path / "elsewhere.json", a_state())
    (tmp_path / "m.optimizing.json").symlink_to(tmp_path / "elsewhere.json")
    assert state.load(tmp_path / "m.optimizing.json", KEY) == State(KEY)


def test_blank_trials_share_nothing():
    """What one format measured never shows up in another."""
    Trial().pairs.append(Pair(Timing(1, 1, 1), Timing(1, 1, 1)))
    Trial().scores["facts"] = []
    assert Trial() == Trial(pairs=[], scores={})
