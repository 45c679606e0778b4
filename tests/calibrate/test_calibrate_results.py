"""What was asked outlives the process that asked, and never passes for something else."""

import json

import msgspec
import pytest
from calibrate_builders import KEY
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.calibrate.results import Line, Occupied, Results, item_id, of_scores

LINE = of_scores("one", ((-1.0, -0.5), (-2.0,)), b"\x00<")


def opened(directory, *, key=KEY, form="plain", fresh=False):
    return Results(directory, key, form=form, fresh=fresh)


def test_lines_come_back_as_they_went(tmp_path):
    """Scores with their state, generated answers, the cloud's choice."""
    lines = (LINE, Line("two", p=0.5, f=(1.0, 2.0), r=True), Line("three", c=2), Line("four", o=True))
    results = opened(tmp_path)
    for line in lines:
        results.add(line)
    results.close()
    again = opened(tmp_path)
    assert [again.get(line.i) for line in lines] == list(lines)
    assert again.get("one").scored(1).state == b"\x00<"
    assert again.get("two").answered().right
    assert len(again) == 4
    again.close()


@given(st.integers(0, 400))
@settings(deadline=None)
def test_a_file_cut_anywhere_gives_the_whole_lines_before_the_cut(tmp_path_factory, size):
    """And is written on from there."""
    directory = tmp_path_factory.mktemp("results")
    results = opened(directory)
    for number in range(3):
        results.add(Line(f"line {number}", p=0.5, r=True))
    results.close()
    data = results.path.read_bytes()[:size]
    results.path.write_bytes(data)
    again = opened(directory)
    assert len(again) == max(0, data.count(b"\n") - 1)
    again.add(LINE)
    again.close()
    last = opened(directory)
    assert last.get("one") == LINE
    last.close()


@pytest.mark.parametrize(
    "change", [{"form": "other"}, {"fresh": True}, {"key": msgspec.structs.replace(KEY, sampler="x")}]
)
def test_other_questions_start_anew(tmp_path, change):
    """Another model, template, way of answering, definition or form; or because that was asked for."""
    results = opened(tmp_path)
    results.add(LINE)
    results.close()
    again = opened(tmp_path, **change)
    assert again.get("one") is None
    again.close()


def test_one_process_at_a_time(tmp_path):
    """The second one is told."""
    results = opened(tmp_path)
    with pytest.raises(Occupied, match="the task mood is being calibrated by another process"):
        opened(tmp_path)
    results.close()
    opened(tmp_path).close()


def test_no_text_is_kept(tmp_path):
    """An item is known by a hash, private to the reader."""
    results = opened(tmp_path)
    results.add(of_scores(item_id("turn on the light"), ((-1.0,),), None))
    results.close()
    assert "light" not in results.path.read_text()
    assert results.path.stat().st_mode & 0o077 == 0
    header, line = results.path.read_text().splitlines()
    assert json.loads(header)["key"]["task"] == "mood@0123"
    assert set(json.loads(line)) == {"i", "l"}


def test_results_under_other_keys_do_not_pile_up(tmp_path):
    """Four files of a task; another task's are not touched."""
    other = opened(tmp_path, key=msgspec.structs.replace(KEY, task="mood-2@1"))
    other.close()
    for number in range(6):
        opened(tmp_path, key=msgspec.structs.replace(KEY, sampler=str(number))).close()
    assert len(list(tmp_path.iterdir())) == 5
    assert other.path.exists()
