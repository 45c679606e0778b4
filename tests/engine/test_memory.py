"""Rules of the memory guard: the estimate, the room, the refusal."""

import subprocess
import sys
from pathlib import Path

import pytest
from gguf_files import I32, File, array, hyperparameters, u32

from edged.config import models_directory
from edged.engine import gguf, memory
from edged.engine.gguf import GgufFile
from edged.engine.memory import MemoryAvailable, MemoryNeed
from edged.errors import EngineError, OutOfMemory

MB = 1_000_000


@pytest.fixture
def a_file(tmp_path):
    def build(**keys: bytes) -> GgufFile:
        path = tmp_path / "model.gguf"
        path.write_bytes(bytes(File(keys=hyperparameters(**keys))))
        return gguf.inspect(path)

    return build


def a_need(*, weights: int = 98, kv: int = 377, compute: int = 37, process: int = 70) -> MemoryNeed:
    return MemoryNeed(
        model="m",
        weights_bytes=weights * MB,
        kv_bytes=kv * MB,
        compute_bytes=compute * MB,
        process_bytes=process * MB,
    )


# -- the refusal -----------------------------------------------------------------------------------------------------


def test_a_model_that_does_not_fit_is_refused_with_every_number() -> None:
    """G05: the operator sees what is needed, for what, and what there is."""
    with pytest.raises(OutOfMemory) as caught:
        memory.check(a_need(), MemoryAvailable(bytes=400 * MB, limit_bytes=512 * MB))
    assert caught.value.message == (
        "model m needs about 582 MB (weights 98, KV 377, compute 37, process 70); "
        "400 MB are available (cgroup limit 512), 32 of them stay free. "
        "Fewer slots, a smaller context_tokens or kv_tokens need less"
    )
    assert isinstance(caught.value, EngineError)
    assert (caught.value.code, caught.value.status) == ("insufficient_memory", 503)


def test_the_last_megabytes_stay_free() -> None:
    """What fits exactly, with the reserve, is loaded; one byte less is not."""
    need = a_need()
    room = need.total_bytes + memory.RESERVE_BYTES
    memory.check(need, MemoryAvailable(bytes=room))
    with pytest.raises(OutOfMemory, match=r"614 MB are available, 32"):
        memory.check(need, MemoryAvailable(bytes=room - 1))


# -- what a model needs ----------------------------------------------------------------------------------------------


def estimate(file: GgufFile, **changes) -> MemoryNeed:
    values = {"pool_tokens": 1_024, "sequences": 2, "batch_tokens": 512, **changes}
    return memory.estimate("m", file, **values)


def test_kv_cells_are_counted_by_block_head_and_format(a_file) -> None:
    """Two blocks of two KV heads with keys and values of 16: 256 bytes a token in f16, and q8_0 takes 34 for 64."""
    file = a_file()
    assert memory.cell_bytes(file) == 2 * (2 * 16 + 2 * 16) * 2
    assert estimate(file).kv_bytes == 1_024 * 256
    assert estimate(file, cell_type="q8_0").kv_bytes == 1_024 * 2 * 2 * 34
    with pytest.raises(KeyError):
        estimate(file, cell_type="f12")


def test_blocks_without_attention_have_no_cells(a_file) -> None:
    """Hybrid models list 0 KV heads for their recurrent blocks."""
    assert memory.cell_bytes(a_file(kv_heads=array("llama.attention.head_count_kv", I32, 2, bytes(8)))) == 0


def test_cells_come_in_blocks_of_256(a_file) -> None:
    """llama.cpp rounds the pool up."""
    assert estimate(a_file(), pool_tokens=1_025).kv_bytes == 1_280 * 256


def test_recurrent_state_is_counted_per_sequence(a_file) -> None:
    """RWKV keeps heads and two token shifts per block and sequence, in 32 bits."""
    file = a_file(wkv=u32("llama.wkv.head_size", 8), kv_heads=u32("llama.attention.head_count_kv", 0))
    assert estimate(file, sequences=3).kv_bytes == 2 * 3 * (8 + 2) * 64 * 4


@pytest.mark.parametrize("more", [{"pool_tokens": 2_048}, {"sequences": 900}, {"batch_tokens": 1_024}])
def test_every_dimension_of_the_context_costs_compute_memory(a_file, more) -> None:
    """A guard that ignored one of them would be walked around by it."""
    file = a_file(vocabulary=u32("llama.vocab_size", 50_000), tokens=None)
    assert estimate(file, **more).compute_bytes > estimate(file).compute_bytes


def test_sliding_windows_need_a_second_mask(a_file) -> None:
    """Blocks with and without a window mask different cells."""
    plain, sliding = a_file(), a_file(window=u32("llama.attention.sliding_window", 64))
    assert estimate(sliding).compute_bytes - estimate(plain).compute_bytes == pytest.approx(
        1.15 * 1_024 * 512 * 2, rel=0.01
    )


# -- what there is ---------------------------------------------------------------------------------------------------


class Box:
    """A pretended /proc and /sys/fs/cgroup."""

    def __init__(self, root: Path, *, groups: str) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        self.write(self.proc / "self" / "cgroup", groups)
        self.cgroups.mkdir()

    def write(self, path: Path, text: str | int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="ascii")

    def group(self, name: str, **files: str | int) -> None:
        for file, text in files.items():
            self.write(self.cgroups / name / file.replace("__", "."), text)

    def available(self, *, machine: int = 8_000, mapped: int = 0) -> tuple[int, int | None]:
        room = memory.available(
            machine_bytes=machine * MB, mapped_bytes=mapped * MB, proc=self.proc, cgroups=self.cgroups
        )
        return room.bytes // MB, None if room.limit_bytes is None else room.limit_bytes // MB


@pytest.fixture
def v2(tmp_path) -> Box:
    return Box(tmp_path, groups="0::/system.slice/edged.service")


@pytest.fixture
def v1(tmp_path) -> Box:
    return Box(tmp_path, groups="12:cpu,cpuacct:/other\n7:memory:/docker/abc\n1:name=systemd:/x")


def test_without_a_group_limit_the_machine_decides(v2) -> None:
    """ "max" is no limit, and a group without files is none."""
    v2.group("system.slice/edged.service", memory__max="max", memory__high="max", memory__current=90 * MB)
    assert v2.available() == (8_000, None)


def test_weights_of_loaded_models_are_not_free(v2) -> None:
    """Their mapped pages count as available to the kernel; dropping them makes those models crawl."""
    assert v2.available(machine=1_000, mapped=300) == (700, None)
    assert v2.available(machine=100, mapped=300) == (0, None)


def test_the_groups_limit_decides_when_it_is_tighter(v2) -> None:
    """G05: MemoryMax= of the unit; page cache nobody maps is room, what loaded models map is not."""
    v2.group(
        "system.slice/edged.service",
        memory__max=512 * MB,
        memory__current=300 * MB,
        memory__stat=f"anon 1\ninactive_file {100 * MB}\nactive_file {50 * MB}",
    )
    assert v2.available() == (312, 512)
    assert v2.available(mapped=40) == (272, 512)
    assert v2.available(mapped=4_000) == (212, 512)


def test_a_group_above_may_be_the_tightest(v2) -> None:
    """A slice's limit binds every service in it; so does the top, where a container sees only itself."""
    v2.group("system.slice/edged.service", memory__max=900 * MB, memory__current=100 * MB)
    v2.group("system.slice", memory__max=600 * MB, memory__current=500 * MB)
    assert v2.available() == (100, 600)
    v2.group(".", memory__max=550 * MB, memory__current=500 * MB)
    assert v2.available() == (50, 550)


def test_memory_high_is_a_limit(v2) -> None:
    """Above it the kernel slows the group down to a crawl."""
    v2.group("system.slice/edged.service", memory__max=900 * MB, memory__high=400 * MB, memory__current=100 * MB)
    assert v2.available() == (300, 400)


def test_a_group_over_its_limit_has_no_room(v2) -> None:
    """Never a negative number."""
    v2.group("system.slice/edged.service", memory__max=100 * MB, memory__current=300 * MB)
    assert v2.available() == (0, 100)


def test_version_1_groups_are_read_too(v1) -> None:
    """Only the memory controller's path counts; the largest page-aligned number means no limit."""
    v1.group(
        "memory/docker/abc",
        memory__limit_in_bytes=512 * MB,
        memory__usage_in_bytes=400 * MB,
        memory__stat=f"inactive_file 5\ntotal_inactive_file {50 * MB}",
    )
    v1.group("memory", memory__limit_in_bytes=9_223_372_036_854_771_712, memory__usage_in_bytes=900 * MB)
    v1.group("memory/other", memory__limit_in_bytes=1, memory__usage_in_bytes=1)
    assert v1.available() == (162, 512)


@pytest.mark.parametrize("groups", ["", "garbage", "0::/../../outside", "0::/gone", "5:memory"])
def test_a_strange_cgroup_file_leaves_the_machine(tmp_path, groups) -> None:
    """Paths above the namespace, vanished groups and other systems are no limit and no error."""
    box = Box(tmp_path, groups=groups)
    box.write(tmp_path / "outside" / "memory.max", 1)
    box.write(tmp_path / "outside" / "memory.current", 1)
    assert box.available() == (8_000, None)


def test_unreadable_numbers_are_no_limit(v2) -> None:
    """A group file with anything but digits is passed over."""
    v2.group("system.slice", memory__max="lots", memory__current=-1, memory__stat="inactive_file")
    v2.group("system.slice/edged.service", memory__max=600 * MB, memory__current=0, memory__stat="inactive_file x")
    assert v2.available() == (600, 600)


def test_this_machine_has_memory() -> None:
    """The real files of the real machine can be read."""
    assert memory.available().bytes > 0


# -- against llama.cpp -----------------------------------------------------------------------------------------------

MEASURE = """
import ctypes, re, sys
import llama_cpp.llama_cpp as llama
lines = []
callback = llama.llama_log_callback(lambda level, text, _: lines.append((text or b"").decode("utf-8", "replace")))
llama.llama_log_set(callback, None)
llama.llama_backend_init()
model = llama.llama_model_load_from_file(sys.argv[1].encode(), llama.llama_model_default_params())
pool, sequences, batch, kind = map(int, sys.argv[2:])
params = llama.llama_context_default_params()
params.n_ctx, params.n_seq_max, params.n_outputs_max = pool, sequences, sequences
params.n_batch = params.n_ubatch = batch
params.kv_unified, params.flash_attn_type, params.type_k, params.type_v = True, 1, kind, kind
assert llama.llama_init_from_model(model, params)
for name in ("KV", "compute", "output"):
    print(sum(float(size) for size in re.findall(name + r" buffer size = *([0-9.]+) MiB", "".join(lines))))
"""
CONTEXTS = {
    "as configured by default": (16_384, 8, 516, "f16"),
    "many sequences, quantized cells": (4_096, 64, 576, "q8_0"),
}


@pytest.mark.model
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS.keys())
@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "gemma3-270m"])
def test_the_estimate_holds_what_llama_cpp_reports(name, context) -> None:
    """KV cells exactly; compute buffers never below what is reported, and at most a third or 4 MB above."""
    path = models_directory() / f"{name}.gguf"
    if not path.exists():
        pytest.skip(f"{name} is not on this machine: edged models pull")
    pool, sequences, batch, cell_type = context
    kind = {"f16": 1, "q8_0": 8}[cell_type]
    command = [sys.executable, "-c", MEASURE, str(path), *map(str, (pool, sequences, batch, kind))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    kv, compute, output = (float(line) * 2**20 for line in done.stdout.split())
    need = memory.estimate(
        name, gguf.inspect(path), pool_tokens=pool, sequences=sequences, batch_tokens=batch, cell_type=cell_type
    )
    assert need.kv_bytes == pytest.approx(kv, rel=0.001)
    assert compute + output <= need.compute_bytes <= 4 / 3 * (compute + output) + 4 * MB
