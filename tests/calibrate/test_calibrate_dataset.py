"""Labelled items: what is wrong with them is said with file and line, and no answer leaks into the test."""

import json

import pytest
from calibrate_builders import write_rows
from hypothesis import given
from hypothesis import strategies as st

from edged.calibrate import dataset
from edged.calibrate.dataset import check_labels, halves, read
from edged.config import TaskFile
from edged.errors import ConfigError

TARGET = {"max_error": 0.1}


def a_task(**changes):
    plain = {"name": "mood", "option": [{"name": "happy"}, {"name": "sad"}], "target": TARGET}
    return TaskFile.model_validate({**plain, **changes})


def rows(count):
    return [(f"text {i}", ("happy", "sad")[i % 2]) for i in range(count)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mood.jsonl"


def test_items_come_in_an_order_that_says_nothing_of_their_answers(path):
    """A file sorted by answer gives halves with both; a limit takes a part of the same order."""
    write_rows(path, sorted(rows(200), key=lambda row: row[1]))
    whole = read(path, a_task())
    first, second = halves(whole.items)
    for half in (first, second):
        assert 30 < sum(item.answer == "sad" for item in half) < 70
    assert read(path, a_task(), limit=50).items == whole.items[:50]
    assert whole.warnings == ()


@given(st.lists(st.text(min_size=1).filter(str.strip), max_size=40))
def test_no_item_is_in_both_halves(tmp_path_factory, texts):
    """Nor is one spelled a little differently."""
    path = tmp_path_factory.mktemp("data") / "mood.jsonl"
    write_rows(
        path, [*((text, "sad") for text in texts), *((f" {text.upper()} ", "sad") for text in texts), ("x", "sad")]
    )
    first, second = halves(read(path, a_task()).items)
    plain = [{dataset._plain(item.input) for item in half} for half in (first, second)]
    assert not plain[0] & plain[1]
    assert len(plain[0]) + len(plain[1]) == len(first) + len(second)


def test_the_tasks_own_examples_are_left_out_and_said(path):
    """The model is shown their answers: right ones would prove nothing."""
    write_rows(path, [*rows(20), ("  TEXT   3", "sad"), ("text 4", "sad")])
    task = a_task(example=[{"input": "Text 3", "answer": "sad"}])
    found = read(path, task)
    assert len(found.items) == 19
    assert found.warnings == (
        "2 items are left out: they are among the task's examples, whose answers are shown",
        "1 item is left out: their inputs came before, 1 of them with another answer",
    )


def test_an_answer_of_a_schema_may_be_any_value(path, tmp_path):
    """Kept as JSON text; without a schema it must be a text."""
    path.write_text('{"input": "a", "answer": {"city": "Bonn"}}\n')
    (tmp_path / "s.json").write_text("{}")
    task = TaskFile.model_validate({"name": "place", "schema": "s.json", "target": TARGET}).lying_in(tmp_path)
    assert read(path, task).items[0].answer == '{"city": "Bonn"}'
    with pytest.raises(ConfigError, match=r'line 1: answer: must be a text, it is \{"city": "Bonn"\}'):
        read(path, TaskFile.model_validate({"name": "place", "target": TARGET}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"mood.jsonl: there is no item in it"),
        (b"\n\n{", r"mood.jsonl: line 3: not JSON"),
        (b"[1]\n", r'line 1: needs an object with the text "input"'),
        (b'{"input": " "}\n', r'line 1: needs an object with the text "input"'),
        (b'{"input": "\xff"}', r"mood.jsonl is not UTF-8 text"),
        (json.dumps({"input": "x" * 100_001}).encode(), r"line 1: input: over the limit of 100000 characters"),
        (
            b'{"input": "a", "answer": "glad"}',
            r'line 1: answer: "glad" not among the task\'s 2 options \(1 of 1 items\)',
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_line(path, content, message):
    """One clear error."""
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read(path, a_task())


def test_limits_and_missing_files_are_named(path, monkeypatch):
    """With the number."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read(path, a_task())
    write_rows(path, rows(5))
    monkeypatch.setattr(dataset, "MAX_ITEMS", 4)
    with pytest.raises(ConfigError, match="more than the limit of 4 items"):
        read(path, a_task())
    monkeypatch.setattr(dataset, "MAX_BYTES", 10)
    with pytest.raises(ConfigError, match="over the limit of 10 bytes"):
        read(path, a_task())


def test_many_strange_answers_are_shown_in_part(path):
    """Five names are enough."""
    write_rows(path, [(f"t{i}", f"odd{i}") for i in range(9)])
    with pytest.raises(ConfigError, match=r'"odd4" and 4 more not among .* \(9 of 9 items\)'):
        read(path, a_task())


def test_labels_that_cannot_teach_are_refused(path):
    """Too few; all alike. An option that nobody is labelled with is a warning."""
    write_rows(path, rows(19))
    with pytest.raises(ConfigError, match="19 labelled items are too few: at least 20 are needed"):
        check_labels(read(path, a_task()).labelled, a_task())
    write_rows(path, [(f"t{i}", "sad") for i in range(30)])
    with pytest.raises(ConfigError, match='every one of the 30 answers is "sad"'):
        check_labels(read(path, a_task()).labelled, a_task())
    write_rows(path, rows(30))
    task = a_task(option=[{"name": name} for name in ("happy", "sad", "angry")])
    (warning,) = check_labels(read(path, task).labelled, task)
    assert warning.startswith('no item is labelled "angry"')
