"""What is kept of a task: numbers only, whole after any end, never more than its bounds."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from learning_builders import KEY, a_state, a_stream, an_observation

from edged.learning import store as store_module
from edged.learning.observations import MAX_FRAME_BYTES, checked, frame, frames
from edged.learning.store import MAX_UNLABELLED, Store, forget, read, worth_keeping

WRITER = """
import sys
from pathlib import Path
from learning_builders import a_stream
from edged.learning.store import Store
store = Store(Path(sys.argv[1]))
for observation in a_stream(100_000):
    store.append([observation])
    print(store.bytes, flush=True)
"""


def test_an_observation_comes_back_as_it_was(tmp_path: Path) -> None:
    """Sums and means of each option, the state at half precision."""
    store = Store(tmp_path / "intent")
    store.append([an_observation(label=None), an_observation(choice=2, is_unbiased=True)])
    first, second = read(tmp_path / "intent")
    assert (first.is_right, second.is_right) == (None, False)
    assert second.is_unbiased
    assert [sum(tokens) for tokens in first.logprobs] == pytest.approx([-1.5, -3.0, -4.0])
    assert [len(tokens) for tokens in first.logprobs] == [2, 1, 1]
    assert first.hidden == a_state(0.5, -1.0)


def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    """However open the umask, and after it was written anew as well."""
    old = os.umask(0)
    try:
        store = Store(tmp_path / "intent")
        store.append([an_observation()])
        assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
        store.keep([an_observation()])
        assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(old)


def test_a_state_that_is_not_finite_is_left_out() -> None:
    """No infinity gets into a fit."""
    assert checked(a_state(0.5, float("inf"))) is None
    assert checked(b"odd") is None
    assert checked(b"") is checked(None) is None


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_torn_end_is_cut_off_and_written_over(tmp_path: Path, cut: int) -> None:
    """What a power cut left unfinished costs that one observation; the next stands behind the last whole one."""
    store = Store(tmp_path)
    store.append([an_observation(at=1.0), an_observation(at=2.0)])
    store.close()
    os.truncate(store.path, store.bytes - cut)
    assert [one.at for one in read(tmp_path)] == [1.0]
    again = Store(tmp_path)
    again.append([an_observation(at=3.0)])
    assert [one.at for one in read(tmp_path)] == [1.0, 3.0]


def test_zeros_at_the_end_are_no_observations(tmp_path: Path) -> None:
    """A file system may give a file its length before its content."""
    store = Store(tmp_path)
    store.append([an_observation()])
    store.close()
    with store.path.open("ab") as file:
        file.write(bytes(4096))
    again = Store(tmp_path)
    again.append([an_observation()])
    assert len(list(read(tmp_path))) == 2


def test_a_flipped_bit_costs_one_observation() -> None:
    """Those behind it are read all the same."""
    data = bytearray(b"".join(frame(an_observation(at=float(n))) for n in range(3)))
    data[len(data) // 2] ^= 4
    assert [one.at for _, one in frames(bytes(data))] == [0.0, 2.0]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        b"\0" * 64,
        (MAX_FRAME_BYTES + 1).to_bytes(4, "little") + bytes(64),
        frame(an_observation(choice=7)),
        frame(an_observation(label=3)),
        frame(an_observation(logprobs=[[], [-1.0], [-1.0]])),
    ],
)
def test_what_is_no_observation_is_none(data: bytes) -> None:
    """Whatever is in the file, nothing of it can break a fit."""
    assert list(frames(data)) == []


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a write is taken back; once there is room it goes on where it was."""
    store = Store(tmp_path)
    store.append([an_observation(at=1.0)])
    real = os.pwrite

    def full(descriptor: int, data: bytes, at: int) -> int:
        real(descriptor, bytes(data)[: len(data) // 2], at)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_module.os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        store.append([an_observation(at=2.0)])
    with pytest.raises(OSError, match="No space"):
        store.keep([an_observation()])
    monkeypatch.undo()
    assert [one.at for one in read(tmp_path)] == [1.0]
    store.append([an_observation(at=3.0)])
    assert [one.at for one in read(tmp_path)] == [1.0, 3.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["observations"]


def test_a_writer_killed_at_any_moment_leaves_whole_observations(tmp_path: Path) -> None:
    """Each one that was reported kept is there."""
    for run in range(3):
        directory = tmp_path / str(run)
        path = f"{Path(__file__).parent}:{Path(__file__).parents[2]}"
        command = [sys.executable, "-c", WRITER, str(directory)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
        ) as child:
            assert child.stdout is not None
            reported = [int(child.stdout.readline()) for _ in range(20 + 7 * run)]
            child.send_signal(signal.SIGKILL)
            reported += [int(line) for line in child.stdout.read().split("\n")[:-1]]
        kept = list(read(directory))
        assert len(kept) >= len(reported)
        assert kept == list(a_stream(len(kept)))


def test_a_link_or_a_pipe_is_not_followed(tmp_path: Path) -> None:
    """Nobody has the daemon write elsewhere."""
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "observations").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Store(tmp_path).append([an_observation()])
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_the_unbiased_sample_is_the_last_to_go() -> None:
    """Over the limit: other definitions, then what has no label, then what the cloud answered anyway."""
    stream = [
        an_observation(at=0.0, is_unbiased=True),
        an_observation(at=1.0),
        an_observation(at=2.0, key="another"),
        an_observation(at=3.0, is_unbiased=True),
        an_observation(at=4.0),
        an_observation(at=5.0, label=None),
    ]
    assert [one.at for one in worth_keeping(stream, key=KEY.id, max_labels=10)] == [0.0, 1.0, 3.0, 4.0, 5.0]
    assert [one.at for one in worth_keeping(stream, key=KEY.id, max_labels=3)] == [0.0, 3.0, 4.0, 5.0]
    assert [one.at for one in worth_keeping(stream, key=KEY.id, max_labels=2)] == [0.0, 3.0, 5.0]
    assert [one.at for one in worth_keeping(stream, key=KEY.id, max_labels=1)] == [3.0, 5.0]
    two = 2 * len(frame(stream[0]))
    assert [one.at for one in worth_keeping(stream, key=KEY.id, max_labels=10, max_bytes=two)] == [0.0, 3.0]


def test_of_what_has_no_label_only_the_newest_is_kept() -> None:
    """It only says what the traffic is like."""
    kept = worth_keeping(
        [an_observation(at=float(n), label=None) for n in range(MAX_UNLABELLED + 5)], key=KEY.id, max_labels=10
    )
    assert (len(kept), kept[0].at) == (MAX_UNLABELLED, 5.0)


def test_forgetting_leaves_no_byte(tmp_path: Path) -> None:
    """And says whether there was anything."""
    store = Store(tmp_path)
    store.append([an_observation()])
    assert forget(tmp_path)
    assert not list(tmp_path.iterdir())
    assert not forget(tmp_path)
