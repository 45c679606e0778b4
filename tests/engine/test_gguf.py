"""Rules of the look into a model file before a worker maps it (hostile, damaged and real files)."""

import ctypes
import importlib.util
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from gguf_files import BOOL, F32, STRING, U8, U64, File, array, hyperparameters, key, string, tensor, text, u32
from hypothesis import given, settings
from hypothesis import strategies as st

from edged.config import models_directory
from edged.engine import gguf
from edged.engine.gguf import GgufFile, TensorType
from edged.errors import EngineError, ModelFileRejected

HUGE = 2**60
REAL = ("smollm2-135m-instruct.gguf", "gemma3-270m.gguf")


@pytest.fixture
def inspect(tmp_path):
    def run(file: File | bytes) -> GgufFile:
        path = tmp_path / "model.gguf"
        path.write_bytes(bytes(file))
        return gguf.inspect(path)

    return run


def keys_with(*extra: bytes, **changes: bytes | None) -> dict[str, bytes]:
    return hyperparameters(**changes) | {f"extra {i}": value for i, value in enumerate(extra)}


SOUND = bytes(File(keys=keys_with(string("tokenizer.chat_template", "{{ x }}"), u32("general.alignment", 32))))


@pytest.fixture(scope="module")
def in_memory():
    """Inspects bytes without a disk, thousands of times a second; None stands for a refusal."""
    file = os.memfd_create("model")

    def run(data: bytes) -> GgufFile | None:
        os.truncate(file, 0)
        os.pwrite(file, data, 0)
        try:
            return gguf.inspect(Path(f"/proc/self/fd/{file}"))
        except ModelFileRejected as exc:
            message = exc.message
        assert message.isprintable()
        return None

    yield run
    os.close(file)


# -- what is accepted ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [2, 3])
def test_a_sound_file_tells_what_the_engine_needs(inspect, version) -> None:
    """Versions 2 and 3 have one layout; missing keys get llama.cpp's defaults."""
    found = inspect(File(version=version))
    assert (found.architecture, found.name, found.version) == ("llama", "Tiny", version)
    assert (found.block_count, found.embedding_length, found.context_tokens) == (2, 64, 128)
    assert (found.heads, found.kv_heads, found.key_length, found.value_length) == ((4, 4), (2, 2), 16, 16)
    assert found.vocab_tokens == 3
    assert found.types == (TensorType("F32", 1, 512), TensorType("Q8_0", 1, 68))
    assert (found.weights_bytes, found.tensor_count, found.alignment_bytes) == (580, 2, 32)
    assert (found.has_chat_template, found.file_type, found.sliding_window_tokens) == (False, None, 0)


def test_explicit_keys_beat_the_defaults(inspect) -> None:
    """Head counts per block, head lengths, window, template, file type and alignment are read where they are there."""
    extra = (
        u32("llama.attention.key_length", 32),
        u32("llama.attention.key_length_swa", 24),
        u32("llama.attention.value_length", 8),
        u32("llama.attention.sliding_window", 512),
        string("tokenizer.chat_template", "{{ messages }}"),
        u32("general.file_type", 7),
        u32("general.alignment", 64),
        key("general.some_flag", BOOL, b"\1"),
        key("general.some_share", F32, struct.pack("<f", 0.5)),
    )
    per_block = array("llama.attention.head_count_kv", 5, 2, struct.pack("<2i", 4, 0))
    found = inspect(File(keys=keys_with(*extra, kv_heads=per_block), alignment_bytes=64))
    assert (found.kv_heads, found.key_length, found.value_length) == ((4, 0), 32, 8)
    assert (found.sliding_window_tokens, found.has_chat_template) == (512, True)
    assert (found.file_type, found.alignment_bytes) == (7, 64)


def test_recurrent_state_and_experts_are_counted(inspect) -> None:
    """A Mamba block keeps a convolution and a scan per sequence; the experts one token uses count together."""
    mamba = tuple(
        u32(f"llama.ssm.{name}", value)
        for name, value in {"conv_kernel": 4, "inner_size": 128, "state_size": 16, "group_count": 1}.items()
    )
    experts = (u32("llama.expert_used_count", 4), u32("llama.expert_feed_forward_length", 96))
    found = inspect(File(keys=keys_with(*mamba, *experts)))
    assert found.recurrent_values == 3 * (128 + 2 * 16) + 128 * 16
    assert found.feed_forward_length == 384


def test_bytes_after_the_last_tensor_are_no_fault(inspect) -> None:
    """Some writers pad the end of the file."""
    assert inspect(bytes(File()) + bytes(100)).tensor_count == 2


def test_a_symlink_leads_to_its_file(tmp_path) -> None:
    """Model stores link names to blobs."""
    (tmp_path / "blob").write_bytes(bytes(File()))
    (tmp_path / "model.gguf").symlink_to(tmp_path / "blob")
    assert gguf.inspect(tmp_path / "model.gguf").architecture == "llama"


# -- what is refused -------------------------------------------------------------------------------------------------

ONE = (tensor("a", (32,)),)
HOSTILE = {
    "nothing at all": (b"", "not GGUF"),
    "a web page": (b"<!DOCTYPE html>\x1b[2J", "begins with '<!DO'"),
    "an old format": (File(magic=b"ggjt"), "not GGUF"),
    "version 1": (File(version=1), "version 1; supported are 2 and 3"),
    "a future version": (File(version=4), "version 4"),
    "big-endian": (File(version=3 << 24), "big-endian"),
    "2^60 keys": (File(key_count=HUGE), "limit is 16384"),
    "2^63 tensors": (File(tensor_count=2**63), "limit is 65536"),
    "more keys than bytes": (File(key_count=16_000), "claims 16000 metadata keys in"),
    "more tensors than bytes": (File(tensor_count=60_000), "claims 60000 tensors in"),
    "no tensors": (File(tensors=()), "no tensors"),
    "a key of 2^63 bytes": (File(keys={"k": struct.pack("<Q", 2**63) + bytes(64)}), "limit is 65535"),
    "a key longer than the file": (File(keys={"k": struct.pack("<Q", 60_000)}, data_bytes=8_000), "cut short"),
    "an empty key": (File(keys=keys_with(u32("", 1))), "is empty"),
    "a key that is not ASCII": (File(keys=keys_with(u32("schlüssel", 1))), "not ASCII"),
    "a key twice": (File(keys=keys_with(u32("llama.block_count", 2))), "'llama.block_count' is there twice"),
    "a string of 2^63 bytes": (
        File(keys=keys_with(key("x", STRING, struct.pack("<Q", 2**63)))),
        "'x' claims 9223372036854775808 bytes, the limit is 16777216",
    ),
    "a string past the end": (File(keys=keys_with(key("x", STRING, struct.pack("<Q", 9_000)))), "'x' would end after"),
    "an unknown value type": (File(keys=keys_with(key("x", 13, bytes(8)))), "unknown value type 13"),
    "a boolean of 2": (File(keys=keys_with(key("x", BOOL, b"\2"))), "boolean of value 2"),
    "an array of arrays": (File(keys=keys_with(array("x", 9, 1, bytes(32)))), "an array of arrays"),
    "an array of an unknown type": (File(keys=keys_with(array("x", 77, 1, bytes(32)))), "unknown value type 77"),
    "an array of 2^60 numbers": (File(keys=keys_with(array("x", U64, HUGE, b""))), f"claims {HUGE} values"),
    "an array of 2^64-1 bytes": (File(keys=keys_with(array("x", U8, 2**64 - 1, b""))), "values in"),
    "an array of 2^60 strings": (File(keys=keys_with(array("x", STRING, HUGE, b""))), f"claims {HUGE} values"),
    "an array string of 2^62": (
        File(keys=keys_with(array("x", STRING, 2, text("a") + struct.pack("<Q", 2**62)))),
        "a string in 'x' claims",
    ),
    "an array string past the end": (
        File(keys=keys_with(array("x", STRING, 2, text("a") + struct.pack("<Q", 99_999)))),
        "'x' would end after",
    ),
    "alignment 0": (File(keys=keys_with(u32("general.alignment", 0))), "from 1 to 65536"),
    "alignment 48": (File(keys=keys_with(u32("general.alignment", 48))), "not a power of two"),
    "alignment 2^31": (File(keys=keys_with(u32("general.alignment", 2**31))), "from 1 to 65536"),
    "alignment as text": (File(keys=keys_with(string("general.alignment", "32"))), "whole number"),
    "no architecture": (File(keys=hyperparameters(architecture=None)), "general.architecture"),
    "a strange architecture": (
        File(keys=hyperparameters(architecture=string("general.architecture", "a\n/b"))),
        "not the name of an architecture",
    ),
    "no blocks": (File(keys=hyperparameters(blocks=u32("llama.block_count", 0))), "from 1 to 512"),
    "too many blocks": (File(keys=hyperparameters(blocks=u32("llama.block_count", 513))), "from 1 to 512"),
    "no block count": (File(keys=hyperparameters(blocks=None)), "'llama.block_count' is missing"),
    "no width": (File(keys=hyperparameters(width=u32("llama.embedding_length", 0))), "embedding_length"),
    "2^31 heads": (File(keys=hyperparameters(heads=u32("llama.attention.head_count", 2**31))), "head_count"),
    "heads for another depth": (
        File(keys=hyperparameters(heads=array("llama.attention.head_count", 4, 3, bytes(12)))),
        "3 values for 2 blocks",
    ),
    "no heads in the list": (
        File(keys=hyperparameters(heads=array("llama.attention.head_count", 4, 0, b""))),
        "head_count",
    ),
    "negative heads": (
        File(keys=hyperparameters(heads=array("llama.attention.head_count", 5, 2, struct.pack("<2i", -1, 4)))),
        "head_count",
    ),
    "one part of a split": (File(keys=keys_with(key("split.count", 2, struct.pack("<H", 3)))), "split model"),
    "a tensor name of 64": (File(tensors=(tensor("n" * 64, (32,)),)), "limit is 63"),
    "a tensor twice": (File(tensors=(*ONE, tensor("a", (32,), offset=128))), "'a' is there twice"),
    "no dimensions": (File(tensors=(tensor("a", ()),)), "0 dimensions, from 1 to 4"),
    "2^32-1 dimensions": (File(tensors=(text("a") + b"\xff" * 64,)), "4294967295 dimensions"),
    "a dimension of 0": (File(tensors=(tensor("a", (32, 0)),)), "dimension of 0"),
    "dimensions whose product wraps to 0": (File(tensors=(tensor("a", (2**32, 2**32)),)), "claims"),
    "negative dimensions": (File(tensors=(tensor("a", (2**64 - 1, 2**64 - 1)),)), "claims"),
    "a removed format": (File(tensors=(tensor("a", (32,), kind=4),)), "unknown format 4"),
    "an unknown format": (File(tensors=(tensor("a", (32,), kind=2**31),)), "unknown format 2147483648"),
    "part of a block": (File(tensors=(tensor("a", (33,), kind=8),)), "not a multiple of its format's 32"),
    "an offset past the end": (File(tensors=(tensor("a", (32,), offset=2**40),)), "begins at 1099511627776"),
    "an offset that wraps": (File(tensors=(tensor("a", (32,), offset=2**64 - 32),)), "must follow"),
    "an unaligned offset": (File(tensors=(tensor("a", (32,), offset=16),)), "must follow"),
    "overlapping tensors": (File(tensors=(*ONE, tensor("b", (32,), offset=0))), "must follow the one before it at 128"),
    "data cut short": (File(data_bytes=579), "its tensors end at byte"),
}


@pytest.mark.parametrize(("file", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_refused_with_the_reason(inspect, file, reason) -> None:
    """E05, G06: the refusal names what is wrong, and neither time nor memory follows a claimed number."""
    tracemalloc.start()
    started_s = time.monotonic()
    try:
        with pytest.raises(ModelFileRejected) as caught:
            inspect(file)
        assert time.monotonic() - started_s < 0.5
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert reason in caught.value.message
    assert caught.value.message.isprintable()


def test_a_refusal_is_the_engines_error_and_shows_no_path(inspect, tmp_path) -> None:
    """Messages may reach a client."""
    with pytest.raises(EngineError) as caught:
        inspect(b"garbage")
    assert caught.value.code == "model_file_rejected"
    assert str(tmp_path) not in str(caught.value)


def test_the_160_byte_file_with_2_to_the_60_keys(inspect) -> None:
    """E05 as reported: it returns at once."""
    attack = (b"GGUF" + struct.pack("<IQQ", 3, 1, HUGE)).ljust(160, b"\0")
    with pytest.raises(ModelFileRejected, match="claims 1152921504606846976 metadata keys"):
        inspect(attack)


@pytest.mark.parametrize("claimed", [2**31, 2**32, HUGE, 2**64 - 1])
def test_no_number_is_believed(in_memory, claimed) -> None:
    """A huge number anywhere in a sound file is refused, or changes only what the file says of itself; never space."""
    tracemalloc.start()
    try:
        for at in range(4, len(SOUND) - 590):
            found = in_memory(SOUND[:at] + struct.pack("<Q", claimed) + SOUND[at + 8 :])
            assert found is None or found.weights_bytes <= 580
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()


def test_a_file_cut_anywhere_is_refused(in_memory) -> None:
    """G06: the last byte of the last tensor counts."""
    assert in_memory(SOUND)
    for length in range(len(SOUND)):
        assert in_memory(SOUND[:length]) is None


@settings(max_examples=2_000, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_never_raises_anything_but_a_refusal(in_memory, seed) -> None:
    """Whatever a few changed bytes and a lost end make of it, the outcome is a description or ModelFileRejected."""
    chance = random.Random(seed)
    damaged = bytearray(SOUND)
    for _ in range(chance.randint(1, 6)):
        damaged[chance.randrange(len(SOUND) - 590)] = chance.choice([0, 1, 255, chance.randrange(256)])
    found = in_memory(bytes(damaged[: len(damaged) - chance.choice([0, 0, 0, 3])]))
    assert found is None or 0 < found.weights_bytes <= found.size_bytes


@settings(max_examples=500, deadline=None)
@given(noise=st.binary(max_size=400))
def test_noise_after_the_magic_is_refused(in_memory, noise) -> None:
    """Random bytes are no model."""
    assert in_memory(b"GGUF\3\0\0\0" + noise) is None


# -- limits of size and time -----------------------------------------------------------------------------------------


def test_a_large_vocabulary_is_stepped_over_in_no_time_and_space(inspect) -> None:
    """262,144 tokens with scores take under half a second and a few megabytes."""
    tokens = array("tokenizer.ggml.tokens", STRING, 2**18, text("a token") * 2**18)
    scores = array("tokenizer.ggml.scores", F32, 2**18, bytes(4 * 2**18))
    file = bytes(File(keys=keys_with(scores, tokens=tokens)))
    started_s = time.monotonic()
    assert inspect(file).vocab_tokens == 2**18
    assert time.monotonic() - started_s < 0.5


def test_a_header_over_the_limit_is_refused(tmp_path) -> None:
    """A sparse gigabyte cannot keep the reader busy: the header ends at 64 MiB."""
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(File(keys=keys_with(array("x", STRING, 2**25, b"")), data_bytes=0)))
    os.truncate(path, 2**30)
    with pytest.raises(ModelFileRejected, match="values in"):
        gguf.inspect(path)
    path.write_bytes(bytes(File(keys=keys_with(*(key(f"k{i}", STRING, text(b"\0" * 2**24)) for i in range(4))))))
    with pytest.raises(ModelFileRejected, match="header is larger than the limit of 67108864 bytes"):
        gguf.inspect(path)


def test_a_header_that_cannot_be_read_in_time_is_refused(tmp_path) -> None:
    """A dying disk does not hold a load for ever."""
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(File()))
    with pytest.raises(ModelFileRejected, match="in time"):
        gguf.inspect(path, time_limit_s=-1)


# -- what is no file -------------------------------------------------------------------------------------------------


def test_only_a_regular_file_is_read(tmp_path) -> None:
    """A FIFO would wait for ever, a device may answer without end; a symlink to one is the same."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path / "fifo", tmp_path / "link", tmp_path):
        with pytest.raises(ModelFileRejected, match="not a regular file"):
            gguf.inspect(path)


def test_a_file_that_cannot_be_opened_is_refused_without_its_path(tmp_path) -> None:
    """Missing, a loop of links, or no path at all."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "missing", tmp_path / "loop", Path("a\0b")):
        with pytest.raises(ModelFileRejected, match="cannot be read") as caught:
            gguf.inspect(path)
        assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("change", ["truncate", "append", "touch"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, change) -> None:
    """What was checked must be what is there afterwards."""
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(File()))
    read = os.pread

    def changing(file: int, count: int, at: int) -> bytes:
        match change:
            case "truncate":
                os.truncate(path, 100)
            case "append":
                os.truncate(path, path.stat().st_size + 1)
            case "touch":
                os.utime(path, ns=(1, 1))
        return read(file, count, at)

    monkeypatch.setattr(os, "pread", changing)
    with pytest.raises(ModelFileRejected, match="changed while it was read"):
        gguf.inspect(path)


# -- against llama.cpp -----------------------------------------------------------------------------------------------


def ggml_base() -> Path:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "lib" / "libggml-base.so"


def test_the_formats_are_those_of_the_llama_cpp_we_load() -> None:
    """A block size that is off by one would let a tensor reach past the end of the file."""
    ggml = ctypes.CDLL(str(ggml_base()))
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    ggml.ggml_type_name.restype = ctypes.c_char_p
    for number, (name, block, block_bytes) in gguf.TENSOR_TYPES.items():
        assert ggml.ggml_type_name(number).decode().upper() == name
        assert (ggml.ggml_blck_size(number), ggml.ggml_type_size(number)) == (block, block_bytes)


READ_WITH_GGML = """
import ctypes, sys
ggml = ctypes.CDLL(sys.argv[1])
class Params(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]
ggml.gguf_init_from_file.restype = ctypes.c_void_p
ggml.gguf_init_from_file.argtypes = [ctypes.c_char_p, Params]
for path in sys.argv[2:]:
    print(int(bool(ggml.gguf_init_from_file(path.encode(), Params(True, None)))))
"""


def test_what_is_accepted_llama_cpp_accepts_too(in_memory, tmp_path) -> None:
    """Ours is never the laxer reader: every damaged file that passes is one llama.cpp's own reader takes."""
    passed = []
    for at in range(4, len(SOUND) - 580):
        for value in (0, 1, 255):
            damaged = SOUND[:at] + bytes([value]) + SOUND[at + 1 :]
            if in_memory(damaged):
                passed.append(tmp_path / f"{at}-{value}.gguf")
                passed[-1].write_bytes(damaged)
    assert len(passed) > 100
    command = [sys.executable, "-c", READ_WITH_GGML, str(ggml_base()), *map(str, passed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    verdicts = done.stdout.split()
    refused = [path for path, verdict in zip(passed, verdicts, strict=True) if verdict == "0"]
    assert not refused, done.stderr[-2000:]


@pytest.mark.model
@pytest.mark.parametrize("name", REAL)
def test_real_models_are_accepted_in_half_a_second(name) -> None:
    """Both models used in the tests, the larger with 262,144 tokens."""
    path = models_directory() / name
    if not path.exists():
        pytest.skip(f"{name} is not on this machine: edged models pull")
    started_s = time.monotonic()
    found = gguf.inspect(path)
    assert time.monotonic() - started_s < 0.5
    assert 0.9 * found.size_bytes < found.weights_bytes < found.size_bytes
    assert (found.architecture, found.vocab_tokens) in {("llama", 49_152), ("gemma3", 262_144)}


@pytest.mark.model
@pytest.mark.parametrize("cut_bytes", [1, 1_000_000])
def test_a_real_model_that_lost_its_end_is_refused(tmp_path, cut_bytes) -> None:
    """G06: llama.cpp would load it and read past its end later."""
    path = models_directory() / REAL[0]
    if not path.exists():
        pytest.skip(f"{REAL[0]} is not on this machine: edged models pull")
    cut = tmp_path / "cut.gguf"
    with path.open("rb") as whole:
        cut.write_bytes(whole.read(4_000_000))
    os.truncate(cut, path.stat().st_size - cut_bytes)
    with pytest.raises(ModelFileRejected, match="cut short"):
        gguf.inspect(cut)
