"""The learning thread around real files and real child processes; only the fit is sometimes a double."""

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from learning_builders import KEY, OPTIONS, a_stream, a_task, an_artefact, an_observation

from edged.calibration import artefact as artefacts
from edged.calibration.artefact import Level
from edged.calibration.heads import Head
from edged.calibration.shelf import Shelf
from edged.errors import CatalogueError
from edged.learning import journal, pupil
from edged.learning import store as store_module
from edged.learning.forgetting import forget
from edged.learning.learning import Learning, Tuning
from edged.learning.observations import Observation
from edged.learning.store import read

QUICK = Tuning(keep_every_s=0.01, look_every_s=0.02, retry_every_s=0.02)


@contextmanager
def learning(directory: Path, *, key_of=lambda _: KEY, task=None, tuning=QUICK, **tuned) -> Iterator[Learning]:
    found = Learning([task or a_task()], directory=directory, key_of=key_of, tuning=replace(tuning, **tuned))
    found.start()
    try:
        yield found
    finally:
        assert found.close(10)


def until(told: Callable[[], object], *, within_s: float = 20.0) -> None:
    """Look until it is so; the thread under test has no event to wait on."""
    due_s = time.monotonic() + within_s
    while not told():
        assert time.monotonic() < due_s, "it did not happen"
        threading.Event().wait(0.005)


def unnumbered(kept: list[Observation]) -> list[Observation]:
    """As they were before they were given numbers."""
    return [msgspec.structs.replace(seen, number=0) for seen in kept]


def events(directory: Path) -> list[str]:
    return [event.what for event in journal.read(directory / "intent")]


def a_double(tmp_path: Path, code: str) -> tuple[str, ...]:
    """A command in the place of the fit."""
    path = tmp_path / "fit.py"
    path.write_text("import json, os, signal, sys, time\norder = json.load(sys.stdin)\n" + code)
    return sys.executable, str(path)


def test_what_was_seen_is_kept_and_taken_up_by_the_next_run(tmp_path: Path) -> None:
    """A restart costs no label."""
    stream = list(a_stream(40))
    with learning(tmp_path) as first:
        for seen in stream:
            first.take("intent", seen)
        until(lambda: first.stats.kept == 40)
    kept = list(read(tmp_path / "intent"))
    assert unnumbered(kept) == stream
    assert [seen.number for seen in kept] == list(range(40))
    with learning(tmp_path) as second:
        until(lambda: second._pupils["intent"]._lesson.labels == 40)


def test_closing_keeps_what_is_queued(tmp_path: Path) -> None:
    """Nothing is lost on the way down."""
    with learning(tmp_path, keep_every_s=60.0) as found:
        until(lambda: found.standing("intent").key)
        for seen in a_stream(10):
            found.take("intent", seen)
    assert len(list(read(tmp_path / "intent"))) == 10


def test_the_box_learns_from_what_the_cloud_said(tmp_path: Path) -> None:
    """From labels to an artefact that is in use, through the real fit in its own process."""
    with learning(tmp_path, task=a_task(max_error=0.2)) as found:
        until(lambda: found.standing("intent").problem == "nothing was measured yet")
        for seen in a_stream(300, noise=0.3, unbiased=1.0):
            found.take("intent", seen)
        until(lambda: found.standing("intent").artefact, within_s=60)
        standing = found.standing("intent")
    assert standing.version >= 1
    assert standing.artefact.threshold is not None
    assert standing.artefact.certificate.alpha == 0.2
    assert "taken_over" in events(tmp_path)


def test_one_learnt_version_follows_the_other(tmp_path: Path) -> None:
    """Each with weights of its own: what is compared of them is what they are called."""
    head = Head(
        classes=OPTIONS,
        mean=np.zeros(6),
        scale=np.ones(6),
        weights=np.zeros((3, 6)),
        bias=np.zeros(3),
        knots_x=np.array([0.0]),
        knots_y=np.array([0.9]),
    )
    with learning(tmp_path) as found:
        for number in range(1, 4):
            Shelf(tmp_path).put(an_artefact(level=Level.FEATURES, head=head))
            until(lambda number=number: found.standing("intent").version == number)
        assert found._thread.is_alive()


def test_other_weights_make_the_artefact_stale_and_say_so(tmp_path: Path) -> None:
    """It is never used, the event is noted once, and the old weights bring it back."""
    Shelf(tmp_path).put(an_artefact())
    keys = [KEY]
    with learning(tmp_path, key_of=lambda _: keys[0]) as found:
        until(lambda: found.standing("intent").artefact)
        keys[0] = msgspec.structs.replace(KEY, model_sha256="f" * 64)
        until(lambda: found.standing("intent").artefact is None)
        until(lambda: events(tmp_path))
        assert found.standing("intent").problem == "stale: made for another model_sha256"
        keys[0] = KEY
        until(lambda: found.standing("intent").artefact)
    assert events(tmp_path) == ["stale"]


def test_a_model_that_cannot_be_read_leaves_nothing_certified(tmp_path: Path) -> None:
    """And nothing is learnt under a key that is not known."""

    def key_of(_: object) -> None:
        raise CatalogueError("it is not installed")

    Shelf(tmp_path).put(an_artefact())
    with learning(tmp_path, key_of=key_of) as found:
        until(lambda: "not installed" in (found.standing("intent").problem or ""))
        assert found.standing("intent").artefact is None


def test_an_artefact_of_another_process_is_taken_up(tmp_path: Path) -> None:
    """``edged calibrate`` and ``edged tasks --roll-back`` work beside a running daemon."""
    with learning(tmp_path) as found:
        until(lambda: found.standing("intent").key)
        Shelf(tmp_path).put(an_artefact())
        until(lambda: found.standing("intent").artefact)
        Shelf(tmp_path).roll_back("intent", "by hand")
        until(lambda: found.standing("intent").artefact is None)


def test_a_broken_promise_is_taken_back(tmp_path: Path) -> None:
    """Audits of wrong answers roll back past every version that they speak against; the event has the numbers."""
    shelf = Shelf(tmp_path)
    shelf.put(an_artefact())
    shelf.put(an_artefact())
    with learning(tmp_path) as found:
        until(lambda: found.standing("intent").version == 2)
        for _ in range(60):
            found.take("intent", an_observation(choice=0, label=1, is_unbiased=True, is_local=True, version=2))
        until(lambda: found.standing("intent").version == 0)
        assert "its last version was taken back: 60 of 60 audited" in found.standing("intent").problem
    told = journal.read(tmp_path / "intent")
    assert {event.what for event in told} == {"rolled_back"}
    assert "audited local answers differed from the cloud's" in told[0].why


def test_right_answers_and_escalated_ones_break_nothing(tmp_path: Path) -> None:
    """Only the unbiased sample of what was served speaks of the promise."""
    Shelf(tmp_path).put(an_artefact())
    with learning(tmp_path) as found:
        until(lambda: found.standing("intent").artefact)
        for number in range(60):
            found.take("intent", an_observation(is_unbiased=True, is_local=True, version=1))
            found.take("intent", an_observation(choice=0, label=1, is_local=False, version=1, at=float(number)))
        until(lambda: found.stats.kept == 120)
        assert found.standing("intent").version == 1


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("sys.exit('out of luck')", "it exited with status 1: out of luck"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "it died of SIGSEGV"),
        ("time.sleep(60)", "it was ended after 0.5 s"),
        ("print('?')", "it answered something else"),
        (
            "print(json.dumps({'artefact': '{}', 'labels': 3, 'progress': {}, 'why': ''}))",
            "the result cannot be kept: not an artefact",
        ),
    ],
)
def test_a_fit_that_fails_costs_nothing_but_itself(tmp_path: Path, code: str, told: str) -> None:
    """What is in use stays, the event says why, and labels are kept on."""
    Shelf(tmp_path / "state").put(an_artefact())
    command = a_double(tmp_path, code)
    with learning(tmp_path / "state", command=command, time_limit_s=0.5) as found:
        for seen in a_stream(100):
            found.take("intent", seen)
        until(lambda: "fit_failed" in events(tmp_path / "state"))
        assert found.standing("intent").version == 1
        found.take("intent", an_observation())
        until(lambda: found.stats.kept == 101)
    (event,) = [event for event in journal.read(tmp_path / "state" / "intent") if event.what == "fit_failed"]
    assert told in event.why


def test_a_killed_fit_is_tried_again_with_more_labels(tmp_path: Path) -> None:
    """``kill -9`` of the child leaves no half artefact, and no hole in the labels."""
    command = a_double(tmp_path, "open('/proc/self/oom_score_adj').read(); time.sleep(60)")
    with learning(tmp_path / "state", command=command) as found:
        for seen in a_stream(100):
            found.take("intent", seen)
        until(lambda: found.stats.fitting)
        os.kill(found._pupils["intent"]._child.pid, signal.SIGKILL)
        until(lambda: "fit_failed" in events(tmp_path / "state"))
        assert Shelf(tmp_path / "state").versions("intent") == ()
        for seen in a_stream(100, seed=1):
            found.take("intent", seen)
        until(lambda: found.stats.fitting)


def test_a_closing_daemon_takes_its_fit_along(tmp_path: Path) -> None:
    """No process is left behind."""
    command = a_double(tmp_path, "time.sleep(60)")
    with learning(tmp_path / "state", command=command) as found:
        for seen in a_stream(100):
            found.take("intent", seen)
        until(lambda: found.stats.fitting)
        pid = found._pupils["intent"]._child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_fit_runs_behind_everything_else_and_within_its_limits(tmp_path: Path) -> None:
    """Lowest priority, bounded memory: asked of the process itself."""
    code = (
        "import resource, runpy; sys.stdin.seek(0); sys.argv = ['fit', *sys.argv[1:]]\n"
        "from edged.learning import fit\n"
        "most = lambda: resource.getrlimit(resource.RLIMIT_AS)[0]\n"
        "fit._answer = lambda order: sys.exit(f'nice {os.nice(0)} memory {most()}')\n"
        "fit.main(sys.argv[1:])\n"
    )
    command = a_double(tmp_path, code)
    with learning(tmp_path / "state", command=command) as found:
        for seen in a_stream(100):
            found.take("intent", seen)
        until(lambda: "fit_failed" in events(tmp_path / "state"))
    assert f"nice 19 memory {2 * 2**30}" in journal.read(tmp_path / "state" / "intent")[0].why


def test_without_scikit_learn_labels_are_kept_and_no_fit_is_begun(tmp_path: Path, monkeypatch) -> None:
    """The extra is asked for in words; nothing runs in vain."""
    monkeypatch.setattr(pupil, "can_fit", lambda: False)
    with learning(tmp_path) as found:
        for seen in a_stream(200):
            found.take("intent", seen)
        until(lambda: found.stats.kept == 200)
        assert found.stats.fitting == 0
    assert events(tmp_path) == []


def test_a_full_disk_holds_up_nobody_and_heals(tmp_path: Path, monkeypatch) -> None:
    """What cannot be kept waits in memory, within its bound, and goes to disk once there is room."""
    with learning(tmp_path, queue_observations=50) as found:
        until(lambda: found.standing("intent").key)

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store_module.os, "pwrite", full)
        for seen in a_stream(80):
            found.take("intent", seen)
        until(lambda: found.stats.error == "No space left on device")
        monkeypatch.undo()
        until(lambda: found.stats.error is None)
        until(lambda: not found.stats.queued)
        stats = found.stats
    assert stats.kept + stats.dropped == 80
    assert stats.kept >= 50
    assert len(list(read(tmp_path / "intent"))) == stats.kept


def test_old_labels_make_room_and_the_sample_stays(tmp_path: Path) -> None:
    """The file is written anew within ``max_labels``."""
    task = a_task(max_labels=100)
    stream = list(a_stream(400, unbiased=0.1))
    with learning(tmp_path, task=task, command=(sys.executable, "-c", "")) as found:
        for place in range(0, 400, 20):
            for seen in stream[place : place + 20]:
                found.take("intent", seen)
            until(lambda place=place: found.stats.kept == place + 20)
    kept = list(read(tmp_path / "intent"))
    assert len(kept) <= 125
    assert unnumbered([seen for seen in kept if seen.is_unbiased]) == [seen for seen in stream if seen.is_unbiased]


def test_a_task_forgotten_beside_the_daemon_begins_anew(tmp_path: Path) -> None:
    """Neither memory nor disk keeps what was to be deleted."""
    with learning(tmp_path, command=(sys.executable, "-c", "")) as found:
        for seen in a_stream(30):
            found.take("intent", seen)
        until(lambda: found.stats.kept == 30)
        assert forget(tmp_path, "intent") == 0
        until(lambda: found._pupils["intent"]._lesson.labels == 0)
        found.take("intent", an_observation())
        until(lambda: found.stats.kept == 31)
    assert len(list(read(tmp_path / "intent"))) == 1


def test_what_an_earlier_run_kept_is_forgotten_beside_the_daemon_as_well(tmp_path: Path) -> None:
    """Also where this run has kept nothing yet."""
    with learning(tmp_path) as first:
        for seen in a_stream(30):
            first.take("intent", seen)
        until(lambda: first.stats.kept == 30)
    with learning(tmp_path) as second:
        until(lambda: second._pupils["intent"]._lesson.labels == 30)
        assert forget(tmp_path, "intent") == 0
        until(lambda: second._pupils["intent"]._lesson.labels == 0)


def test_a_fit_on_what_was_forgotten_takes_nothing_over(tmp_path: Path) -> None:
    """Its result comes too late, or its process is ended."""
    state = tmp_path / "state"
    answer = artefacts.dump(an_artefact()).decode()
    go = tmp_path / "go"
    code = (
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        f"print(json.dumps({{'artefact': {answer!r}, 'progress': order['progress'], 'labels': 99}}))\n"
    )
    with learning(state, command=a_double(tmp_path, code), look_every_s=60.0) as found:
        for seen in a_stream(100):
            found.take("intent", seen)
        until(lambda: found.stats.fitting)
        forget(state, "intent")
        go.touch()
        until(lambda: not found.stats.fitting)
    assert Shelf(state).versions("intent") == ()


def test_promises_nobody_watches_over_are_not_kept(tmp_path: Path, monkeypatch) -> None:
    """Where the thread dies of what nobody foresaw, its tasks are uncertified from then on."""
    Shelf(tmp_path).put(an_artefact())
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    with learning(tmp_path) as found:
        until(lambda: found.standing("intent").artefact)
        monkeypatch.setattr(found._pupils["intent"], "judge_audits", lambda: 1 / 0)
        until(lambda: found.standing("intent").problem == "learning has stopped: see the log")
        assert found.standing("intent").artefact is None


def test_a_shelf_that_cannot_be_read_promises_nothing(tmp_path: Path, monkeypatch) -> None:
    """And costs the thread nothing."""
    monkeypatch.setattr(Shelf, "versions", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with learning(tmp_path) as found:
        until(lambda: found.standing("intent").problem == "its versions cannot be read: Permission denied")


def test_forgetting_takes_what_was_fitted_on_requests_and_leaves_the_rest(tmp_path: Path) -> None:
    """A version from a data set of one's own is no memory of anybody's request."""
    shelf = Shelf(tmp_path)
    shelf.put(an_artefact(source="gold"))
    shelf.put(an_artefact(source="cloud"))
    assert forget(tmp_path, "intent") == 1
    assert [(version.number, version.is_current) for version in shelf.versions("intent")] == [(1, True)]
    assert events(tmp_path) == ["forgotten"]
    assert forget(tmp_path, "nobody") is None


def test_events_are_bounded(tmp_path: Path) -> None:
    """The newest stay."""
    for number in range(2_000):
        journal.note(tmp_path, journal.Event(at="", what="stale", why="x" * 400, version=number))
    kept = journal.read(tmp_path)
    assert len(kept) <= journal.MOST_EVENTS
    assert kept[-1].version == 1_999
    assert (tmp_path / journal.FILE_NAME).stat().st_size < 400_000
    with (tmp_path / journal.FILE_NAME).open("ab") as file:
        file.write(b'{"at": "torn')
    journal.note(tmp_path, journal.Event(at="", what="stale", version=1))
    assert journal.read(tmp_path)[-1].version == 1
    assert json.loads(msgspec.json.encode(kept[-1]))["what"] == "stale"
