"""``edged models optimize``, as a user runs it on the real starter model."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from optimize_builders import ENTRY, NAME, names

from edged import catalogue, cli
from edged.cli import optimize
from edged.cli.tables import plain, print_table
from edged.optimize import QUICK, Interval, Report, Row, Verdict

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]


@pytest.fixture
def quick(monkeypatch):
    """What --quick does, on fewer questions, and with a box on which every faster format is good."""
    effort = replace(QUICK, formats=("Q4_0",), rounds=1, prefill_tokens=64, decode_tokens=2, items=1)
    monkeypatch.setattr(optimize, "QUICK", effort)
    monkeypatch.setattr("edged.optimize.report.judge", lambda _: Verdict.GOOD)
    monkeypatch.setattr("edged.optimize.report.choose", lambda measured: next(iter(measured)).weight_format)


def edged(*words):
    return cli.main(["models", *words])


def test_quick_measures_shows_installs_and_goes_back(quick, store, capsys):
    """The table, then the file with its provenance; list shows what is used; --revert undoes it all."""
    place = ("--dir", str(store.directory))
    assert edged("optimize", NAME, "--quick", *place) == 0
    shown = capsys.readouterr()
    assert [line.split()[0] for line in shown.out.splitlines()[:3]] == ["FORMAT", "published", "Q4_0"]
    assert "Choice: Q4_0." in shown.out
    assert "nothing was installed: run it again with --yes" in shown.err
    assert "\x1b" not in shown.out

    assert edged("optimize", NAME, "--quick", "--yes", "--json", *place) == 0
    result = json.loads(capsys.readouterr().out)
    assert result.items() >= {"name": NAME, "choice": "Q4_0", "installed": True, "items": 2}.items()
    assert names(store) >= {"Q4_0.gguf", "optimized.json"}
    assert catalogue.resolve(NAME, directory=store.directory).name == f"{NAME}.Q4_0.gguf"

    assert edged("list", "--json", *place) == 0
    weights = next(row for row in json.loads(capsys.readouterr().out) if row["name"] == NAME)["weights"]
    assert weights["format"] == "Q4_0"
    assert weights["sha256"] != ENTRY.sha256
    assert edged("list", *place) == 0
    assert f"Q4_0 {weights['sha256'][:8]}" in capsys.readouterr().out
    assert edged("verify", NAME, *place) == 0

    record = json.loads(store.files(ENTRY).optimized_record.read_text())
    assert record.items() >= {"format": "Q4_0", "source_sha256": ENTRY.sha256, "sha256": weights["sha256"]}.items()
    assert record["measured"]["request_ratio"] > 0
    assert record["versions"]["llama-cpp-python"]
    assert record["measured_at"].startswith("20")

    assert edged("optimize", NAME, "--revert", *place) == 0
    assert catalogue.resolve(NAME, directory=store.directory) == store.files(ENTRY).final
    assert not {"Q4_0.gguf", "optimized.json"} & names(store)


def test_verify_tells_a_damaged_optimized_file(store, capsys):
    """The published file is whole and used; the exit code says that something is wrong."""
    part = store.files(ENTRY).optimized_part("Q8_0")
    part.write_bytes(b"GGUF and more")
    catalogue.optimized.install(store, ENTRY, part, weight_format="Q8_0", record={})
    store.files(ENTRY).optimized("Q8_0").write_bytes(b"GGUF and less")
    assert edged("verify", NAME, "--dir", str(store.directory)) == 1
    assert f"the Q8_0 weights are damaged: run: edged models optimize {NAME}" in capsys.readouterr().err
    assert edged("list", "--dir", str(store.directory)) == 0
    assert "(optimized: damaged or gone)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["unknown", "../../etc/passwd"])
def test_an_unknown_name_is_one_line(name, tmp_path, capsys):
    assert edged("optimize", name, "--dir", str(tmp_path)) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_model_that_is_not_there_is_pulled_first(tmp_path, capsys):
    """One line with the command to run; no file is left."""
    assert edged("optimize", NAME, "--dir", str(tmp_path)) == 1
    assert f"edged models pull {NAME}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


A_REPORT = Report(
    rows=(
        Row("published", Verdict.PUBLISHED, bytes=98_362_432, accuracy=0.6),
        Row(
            "Q8_0",
            Verdict.CHOSEN,
            bytes=144_000_000,
            resident_bytes=300_000_000,
            prefill_tps=900.4,
            prefill_ratio=2.0,
            decode_tps=150.0,
            decode_ratio=1.1,
            request_ratio=1.5,
            accuracy=0.61,
            accuracy_change=Interval(0.01, -0.01, 0.03),
            agreement=0.98,
        ),
        Row("Q4_K_M", Verdict.SKIPPED, problem="no"),
    ),
    settings=(),
    choice="Q8_0",
    items=264,
    threads=1,
    cores=2,
)


def test_a_table_says_what_was_not_measured(capsys):
    """A dash where there is no number, the reason where a format was skipped, the interval of every change."""
    optimize._show(A_REPORT)
    published, q8, skipped = capsys.readouterr().out.splitlines()[1:4]
    assert published.split()[:4] == ["published", "98.4", "MB", "-"]
    assert "900 tok/s x2.00" in q8
    assert "0.610 +0.010 [-0.010, +0.030]" in q8
    assert skipped.endswith("skipped: no")


def test_a_busy_box_is_said():
    """Numbers taken beside a neighbour are not sold as those of an idle box."""
    assert any("This box was busy: measured on 1 of 2 cores" in line for line in optimize.notes(A_REPORT))
    assert not any("busy" in line for line in optimize.notes(replace(A_REPORT, threads=2)))


def test_a_terminal_gets_a_drawn_table_and_a_pipe_columns(capsys, monkeypatch):
    """The same cells either way; markup in a cell is text."""
    lines = [("a", "[bold]1[/bold]"), ("long", "2")]
    print_table(("X", "Y"), lines)
    assert capsys.readouterr().out == plain(("X", "Y"), lines) + "\n" == "X     Y\na     [bold]1[/bold]\nlong  2\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    print_table(("X", "Y"), lines)
    drawn = capsys.readouterr().out
    assert "[bold]1[/bold]" in drawn
    assert "─" in drawn


@pytest.mark.parametrize(("answer", "wanted"), [("y", True), ("", False), ("no", False)])
def test_a_person_is_asked_before_anything_is_installed(monkeypatch, answer, wanted):
    """Enter alone installs nothing."""
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert optimize._is_wanted(SimpleNamespace(yes=False, json=False), A_REPORT) is wanted
