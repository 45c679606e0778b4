"""The probe process: real commands on the real model, and how its end is told."""

import signal

import pytest

from edged.engine import probe_protocol as protocol
from edged.engine.probe_protocol import Foresee, Foreseen, Open, Opened, Question, Score, Scored, Time, Timed, Write
from edged.optimize.child import Probe, ProbeFailed

GGUF_MAGIC = b"GGUF"


@pytest.fixture
def probe():
    running = Probe()
    yield running
    running.close()


def opened(probe, path, **fields):
    usual = {"threads": 1, "pool_tokens": 512, "slots": 8, "batch_tokens": 128}
    return probe.ask(Open(path=str(path), **(usual | fields)), Opened)


@pytest.mark.parametrize(("weight_format", "most_bytes"), [("Q8_0", 150_000_000), ("Q4_0", 98_000_000)])
def test_a_file_is_written_in_another_format(probe, model_path, tmp_path, weight_format, most_bytes):
    """What comes out is a model of the foreseen size that llama.cpp calls by that format."""
    target = tmp_path / "candidate.gguf.part"
    foreseen = probe.ask(Foresee(str(model_path), weight_format), Foreseen)
    assert foreseen.fallback_share < 0.1
    probe.ask(Write(str(model_path), str(target), weight_format, 2), protocol.Written)
    assert target.read_bytes()[:4] == GGUF_MAGIC
    assert foreseen.weight_bytes < target.stat().st_size < foreseen.weight_bytes + 5_000_000
    assert target.stat().st_size < most_bytes
    assert opened(probe, target).description.endswith(weight_format)


def test_foreseeing_writes_nothing(probe, model_path, tmp_path):
    """Rows of 576 are no multiple of a K-quant's 256: llama.cpp would fall back, and says so beforehand."""
    before = model_path.stat().st_mtime_ns
    assert probe.ask(Foresee(str(model_path), "Q4_K_M"), Foreseen).fallback_share > 0.5
    assert model_path.stat().st_mtime_ns == before


def test_options_are_scored_alike_whatever_was_asked_before(probe, model_path):
    """Sharing the prefix changes no score, nor do other questions, nor more tokens than one batch has outputs."""
    opened(probe, model_path)
    capital = Question("The capital of France is", (" Paris", " Rome", " made of old cheese"))
    colour = Question("The sky is", (" blue", " a very long and green caterpillar that eats leaves all day"))
    (alone,) = probe.ask(Score("", (capital,)), Scored).scores
    both = probe.ask(Score("", (colour, capital, colour)), Scored).scores
    assert both[1] == pytest.approx(alone, abs=1e-3)
    assert both[0] == pytest.approx(both[2], abs=1e-3)
    assert alone[0] == max(alone)
    shared = probe.ask(Score("The capital of", (Question(" France is", capital.options),)), Scored).scores[0]
    assert shared == pytest.approx(alone, abs=0.05)


@pytest.mark.parametrize("kv_format", ["f16", "q8_0"])
def test_a_request_is_timed_in_two_parts(probe, model_path, kv_format):
    """Both parts take time, and the process that did it has the weights in its memory."""
    opened(probe, model_path, kv_format=kv_format)
    timed = probe.ask(Time("some text", 40, 3, 1, 16), Timed)
    assert timed.prefill_s > 0
    assert timed.decode_s > 0
    assert timed.resident_bytes > 90_000_000


@pytest.mark.parametrize(
    "command",
    [
        Foresee("/nowhere.gguf", "Q8_0"),
        Write("/nowhere.gguf", "/nowhere/else", "Q8_0", 1),
        Open("/nowhere.gguf", 1, 64, 4, 64),
        Time("text", 8, 1, 1, 8),
        Score("", ()),
    ],
)
def test_what_cannot_be_done_is_an_answer(probe, command):
    """A missing file, or a command before its time: refused in words, and the probe goes on."""
    with pytest.raises(ProbeFailed):
        probe.ask(command, protocol.Written)
    with pytest.raises(ProbeFailed, match="does not exist"):
        opened(probe, "/nowhere.gguf")


def test_a_file_that_is_no_model_is_refused(probe, tmp_path):
    (tmp_path / "bad.gguf").write_bytes(GGUF_MAGIC + bytes(200))
    with pytest.raises(ProbeFailed):
        opened(probe, tmp_path / "bad.gguf")


@pytest.mark.parametrize("died", [signal.SIGSEGV, signal.SIGABRT])
def test_a_crash_is_told_by_its_signal(probe, died):
    """The command goes on: the end of a probe is an error with a name."""
    probe._process.send_signal(died)
    probe._process.wait()
    with pytest.raises(ProbeFailed, match=died.name):
        probe.ask(Time("text", 8, 1, 1, 8), Timed)


def test_a_probe_that_hangs_is_given_up():
    """No answer in time: killed, in words."""
    probe = Probe(timeout_s=0.1)
    try:
        probe._process.send_signal(signal.SIGSTOP)
        with pytest.raises(ProbeFailed, match=r"no answer within 0\.1 s"):
            probe.ask(Time("text", 8, 1, 1, 8), Timed)
    finally:
        probe.close()
