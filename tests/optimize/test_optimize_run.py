"""A whole optimization, small, on the real model: what it finds, what it leaves, how it goes on."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from optimize_builders import ENTRY, NAME, TINY, Stages, an_optimization, names

from edged.catalogue import Store
from edged.errors import CatalogueError, EngineError
from edged.optimize import Verdict, writing
from edged.optimize.bench import Benches
from edged.optimize.child import ProbeFailed

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]  # other work on the box stretches it
LEFT = {"gguf", "gguf.json", "optimizing.json"}


def test_a_candidate_is_measured_and_only_the_state_stays(finished):
    """Speeds, memory, quality where it is faster; the candidate's file is gone when it is over."""
    store, report = finished
    published, q4 = report.rows
    assert (published.name, published.verdict, published.accuracy is None) == ("published", Verdict.PUBLISHED, False)
    assert q4.name == "Q4_0"
    assert q4.problem is None
    assert q4.bytes < published.bytes
    assert min(q4.prefill_tps, q4.decode_tps, q4.request_ratio, q4.resident_bytes) > 0
    assert report.items == 2 * TINY.items
    assert names(store) == LEFT


def test_a_finished_optimization_is_read_not_repeated(finished):
    """The same file, library and CPU: nothing is loaded a second time."""
    store, first = finished
    again = an_optimization(store, listener=(stages := Stages()))
    assert again.is_resumed
    assert again.run() == first
    assert not stages.seen
    again.forget()
    assert not again.is_resumed


def test_what_is_installed_is_what_was_measured(finished):
    """Writing the format again gives the same digest; a state that says otherwise is not believed."""
    store, _ = finished
    optimization = an_optimization(store)
    part = optimization.write("Q4_0")
    assert part.stat().st_size == optimization.state.formats["Q4_0"].bytes
    part.unlink()
    optimization.state.formats["Q4_0"].sha256 = "0" * 64
    with pytest.raises(EngineError, match="different from what was measured"):
        optimization.write("Q4_0")
    assert names(store) == LEFT


def test_a_format_llama_cpp_cannot_use_is_skipped_in_words(store):
    """Rows of 576 do not fill blocks of 256: not measured, not written, said."""
    report = an_optimization(store, effort=replace(TINY, formats=("Q4_K_M",), items=1)).run()
    assert report.rows[1].verdict is Verdict.SKIPPED
    assert "no multiple of its block" in report.rows[1].problem
    assert report.choice is None


def test_a_full_disk_is_found_out_before_anything_is_written(store):
    """With the numbers; nothing but the state is left."""
    with pytest.raises(EngineError, match=r"not enough free disk .* Q4_0 needs 1[34]\d\.\d MB, 0\.0 MB are free"):
        an_optimization(store, effort=replace(TINY, items=1), free_bytes=lambda _: 1000).run()
    assert names(store) == LEFT


def test_a_candidate_that_fails_is_part_of_the_result(store, monkeypatch):
    """A file that llama.cpp cannot load, such as one cut short: the others are still measured."""
    written = writing.write

    def cut_short(source, files, weight_format, **options):
        part = written(source, files, weight_format, **options)
        if weight_format == "Q8_0":
            os.truncate(part, part.stat().st_size // 2)
        return part

    monkeypatch.setattr(writing, "write", cut_short)
    report = an_optimization(store, effort=replace(TINY, formats=("Q8_0", "Q4_0"), items=1)).run()
    assert [row.verdict for row in report.rows[:2]] == [Verdict.PUBLISHED, Verdict.FAILED]
    assert report.rows[1].problem
    assert report.rows[2].problem is None
    assert names(store) == LEFT


def test_a_published_file_that_cannot_be_measured_ends_it(store, monkeypatch):
    """There is nothing to compare with: an error, not a table of failures."""

    def time(self, setup):
        assert setup.path == store.files(ENTRY).final
        failed = ProbeFailed("it died of SIGKILL")
        failed.path = setup.path
        raise failed

    monkeypatch.setattr(Benches, "time", time)
    with pytest.raises(EngineError, match="the published file cannot be measured: it died of SIGKILL"):
        an_optimization(store, effort=replace(TINY, items=1)).run()
    assert names(store) == LEFT


def test_a_model_that_is_not_installed_is_not_optimized(tmp_path):
    with pytest.raises(CatalogueError, match=f"edged models pull {NAME}"):
        an_optimization(Store(tmp_path))


def test_ctrl_c_leaves_the_state_and_the_next_run_goes_on(store):
    """Answers that were given are not asked for again."""

    def interrupt(stage):
        if stage == "Q4_0: writing":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        an_optimization(store, listener=Stages(interrupt)).run()
    assert names(store) == LEFT
    an_optimization(store, listener=(stages := Stages())).run()
    assert "published: answers" not in stages.seen
    assert "Q4_0: speed" in stages.seen


def test_kill_9_in_the_middle_loses_nothing_that_was_measured(store):
    """The probes die with it, the candidate it left behind is cleared, and the next run goes on."""
    with child(store) as killed:
        assert killed.stdout is not None
        stage = next(line for line in killed.stdout if "speed" in line)
        probes = probes_of(killed.pid)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert stage == "Q4_0: speed\n"
    assert probes
    assert {"Q4_0.gguf.part"} < names(store)
    before = json.loads(store.files(ENTRY).optimizing.read_text())
    optimization = an_optimization(store, listener=(stages := Stages()))
    optimization.run()
    assert "published: answers" not in stages.seen
    assert {name: [tuple(scores) for scores in given] for name, given in before["published"].items()} == (
        optimization.state.published
    )
    assert names(store) == LEFT
    assert not [pid for pid in probes if Path(f"/proc/{pid}/exe").exists() and is_probe(pid)]


def child(store):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, str(Path(__file__).parent / "optimize_builders.py"), str(store.directory)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def probes_of(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in children if is_probe(child)]


def is_probe(pid):
    try:
        return b"edged.engine.probe" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
