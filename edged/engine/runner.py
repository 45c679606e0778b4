"""llama.cpp behind a narrow seam: one model, one context, one batch. With ``sampling`` the only importer of llama_cpp.

Owned by the decode thread, except the vocabulary, which is immutable and may be used from the control thread.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import llama_cpp.llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from edged.engine.kv import Copy, KvOp, Trim
from edged.engine.protocol import Load, Params
from edged.engine.sampling import SamplerChain
from edged.engine.scheduler import Row
from edged.errors import EngineError

DECODE_OK = 0
DECODE_NO_SPACE = 1
DECODE_ABORTED = 2

_FIRST_PIECE_BYTES = 64
_LOG_LEVEL_ERROR = 4
_KV_FORMATS = {"f16": llama.GGML_TYPE_F16, "q8_0": llama.GGML_TYPE_Q8_0}

LogSink = Callable[[str, str], None]
_log_callback: object = None  # must outlive every call into llama.cpp


class Sampler(Protocol):
    """What the worker asks of a sampler chain."""

    def sample(self, context: object, row: int) -> int: ...

    def accept(self, token: int) -> None: ...

    def close(self) -> None: ...


def capture_log(sink: LogSink) -> None:
    """Send llama.cpp's own errors to ``sink`` and its chatter nowhere. Once per process."""
    global _log_callback  # noqa: PLW0603 - llama.cpp has one log callback per process

    def callback(level: int, text: bytes | None, _user: object) -> None:
        if level == _LOG_LEVEL_ERROR and text:
            sink("error", text.decode("utf-8", "replace").strip())

    _log_callback = llama.llama_log_callback(callback)
    llama.llama_log_set(_log_callback, None)


class Vocabulary:
    """Text to tokens and back. Immutable after load, safe from any thread."""

    def __init__(self, model: llama.llama_model_p) -> None:
        self._model = model
        self._vocab = llama.llama_model_get_vocab(model)
        self.size_tokens: int = llama.llama_vocab_n_tokens(self._vocab)
        self.add_bos: bool = llama.llama_vocab_get_add_bos(self._vocab)
        self._pieces: dict[int, bytes] = {}

    @property
    def chat_template(self) -> str | None:
        source = llama.llama_model_chat_template(self._model, None)
        return source.decode("utf-8", "replace") if source else None

    @property
    def bos_text(self) -> str:
        return self._text(llama.llama_vocab_bos(self._vocab))

    @property
    def eos_text(self) -> str:
        return self._text(llama.llama_vocab_eos(self._vocab))

    @property
    def handle(self) -> object:
        """llama.cpp's own pointer, for libraries that read its vocabulary."""
        return self._vocab

    def end_tokens(self) -> list[int]:
        return [token for token in range(self.size_tokens) if self.is_end(token)]

    def control_texts(self) -> tuple[str, ...]:
        """The texts of all control tokens."""
        ids = range(self.size_tokens)
        return tuple(self._text(i) for i in ids if llama.llama_vocab_is_control(self._vocab, i))

    def is_end(self, token: int) -> bool:
        return bool(llama.llama_vocab_is_eog(self._vocab, token))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        data = text.encode("utf-8")
        capacity = len(data) + 8
        buffer = (llama.llama_token * capacity)()
        count = llama.llama_tokenize(self._vocab, data, len(data), buffer, capacity, add_special, parse_special)
        if count < 0:
            raise EngineError("the tokenizer needs more tokens than the text has bytes")
        return list(buffer[:count])

    def piece(self, token: int) -> bytes:
        """The bytes a token adds to the text; control tokens add none."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token)
        return known

    def _piece(self, token: int) -> bytes:
        size = _FIRST_PIECE_BYTES
        buffer = ctypes.create_string_buffer(size)
        count = llama.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
        if count < 0:  # minus the size it needs
            buffer = ctypes.create_string_buffer(-count)
            count = llama.llama_token_to_piece(self._vocab, token, buffer, -count, 0, False)
        return buffer.raw[:count]

    def _text(self, token: int) -> str:
        if token < 0:
            return ""
        text: bytes = llama.llama_vocab_get_text(self._vocab, token)
        return text.decode("utf-8", "replace")


class Runner:
    """A loaded model with its context; ``decode`` computes one batch."""

    def __init__(self, load: Load, *, sequences: int) -> None:
        self._model = load_model(load)
        _refuse_encoders(self._model)
        self.vocabulary = Vocabulary(self._model)
        self.batch_tokens = load.batch_tokens
        self._context = self._new_context(load, sequences)
        self._memory = llama.llama_get_memory(self._context)
        if not self._memory:
            raise EngineError('this model does not continue text: it needs purpose = "embed" or "rerank"')
        self._vocab_tokens = self.vocabulary.size_tokens
        self._state_values = llama.llama_model_n_embd_out(self._model)
        self._gives_states = False
        self._batch = _Rows(self.batch_tokens, sequences)
        self._abort = AbortFlag(self._context)

    @property
    def description(self) -> str:
        return describe(self._model)

    @property
    def context_train_tokens(self) -> int:
        return int(llama.llama_model_n_ctx_train(self._model))

    @property
    def shares_prefixes(self) -> bool:
        """Whether the state after a prefix can be had from the state after more; recurrent layers cannot."""
        return not (llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model))

    def decode(self, rows: Sequence[Row]) -> int:
        """One batch; returns llama_decode's status.

        Logits of row i's last known token are then ``logits(i)``, of its n-th guess ``logits(i, n)``.
        """
        self._batch.fill(rows)
        self._give_states(any(row.wants_state for row in rows))
        return int(llama.llama_decode(self._context, self._batch.raw))

    def logits(self, row: int, guesses: int = 0) -> NDArray[np.float32]:
        """Logits behind so many of the row's guesses (shape: vocabulary), valid until the next decode."""
        pointer = llama.llama_get_logits_ith(self._context, self._batch.first[row] + guesses)
        return np.ctypeslib.as_array(pointer, (self._vocab_tokens,))

    def state(self, row: int) -> NDArray[np.float32]:
        """The last layer's output, behind the final norm, where ``logits(row)`` come from; valid as long as they are.

        Only of a step with a row that wants it.
        """
        pointer = llama.llama_get_embeddings_ith(self._context, self._batch.first[row])
        return np.ctypeslib.as_array(pointer, (self._state_values,))

    def _give_states(self, wanted: bool) -> None:
        """With states llama.cpp takes every token of a batch for an output, and complains of those that are not."""
        if wanted:
            self._batch.logits[: self._batch.raw.n_tokens] = 1
        if wanted != self._gives_states:
            llama.llama_set_embeddings(self._context, wanted)
            self._gives_states = wanted

    def sampler(self, params: Params) -> Sampler:
        return SamplerChain(params, vocab_tokens=self._vocab_tokens)

    def sample(self, sampler: Sampler, row: int, guesses: int = 0) -> int:
        return sampler.sample(self._context, self._batch.first[row] + guesses)

    def apply(self, op: KvOp) -> bool:
        """Change the real cache; False where the model refuses a partial removal (then clear the slot)."""
        match op:
            case Trim(slot, length):
                return bool(llama.llama_memory_seq_rm(self._memory, slot, length, -1))
            case Copy(source, target, length):
                llama.llama_memory_seq_cp(self._memory, source, target, 0, length)
                return True

    def set_threads(self, count: int) -> None:
        llama.llama_set_n_threads(self._context, count, count)

    def set_abort(self, *, on: bool) -> None:
        """Ask a running decode to stop before its next graph node; safe from another thread."""
        self._abort.set(on=on)

    @property
    def is_aborting(self) -> bool:
        return self._abort.is_set

    def _new_context(self, load: Load, sequences: int) -> llama.llama_context_p:
        params = context_params(load, sequences=sequences)
        params.n_outputs_max = max(sequences, load.output_rows)
        params.pooling_type = llama.LLAMA_POOLING_TYPE_NONE
        return open_context(self._model, params)


class AbortFlag:
    """Stops a context's running decode. llama.cpp calls strlen on it: the empty string goes on, one character stops.

    A Python callback would take the interpreter lock once per graph node, on a compute thread.
    """

    def __init__(self, context: llama.llama_context_p) -> None:
        self._text = ctypes.create_string_buffer(2)
        strlen = ctypes.cast(ctypes.CDLL(None).strlen, llama.ggml_abort_callback)
        llama.llama_set_abort_callback(context, strlen, ctypes.cast(self._text, ctypes.c_void_p))

    @property
    def is_set(self) -> bool:
        return self._text[0] != b"\0"

    def set(self, *, on: bool) -> None:
        self._text[0] = b"1" if on else b"\0"


class Batch:
    """llama_batch with its arrays wrapped once, so that filling it is slice assignment."""

    def __init__(self, capacity: int, sequences: int) -> None:
        self.raw = llama.llama_batch_init(capacity, 0, 1)
        self.logits = np.ctypeslib.as_array(self.raw.logits, (capacity,))
        self._token = np.ctypeslib.as_array(self.raw.token, (capacity,))
        self._pos = np.ctypeslib.as_array(self.raw.pos, (capacity,))
        np.ctypeslib.as_array(self.raw.n_seq_id, (capacity,))[:] = 1
        self._ids = np.arange(sequences, dtype=np.int32)
        pointers = ctypes.cast(self.raw.seq_id, ctypes.POINTER(ctypes.c_size_t))
        self._seq_id = np.ctypeslib.as_array(pointers, (capacity,))

    def clear(self) -> None:
        self.raw.n_tokens = 0

    def add(self, slot: int, start: int, tokens: Sequence[int]) -> range:
        """Append tokens of one sequence, from position ``start`` on; returns their places in the batch."""
        at = self.raw.n_tokens
        end = at + len(tokens)
        self._token[at:end] = tokens
        self._pos[at:end] = np.arange(start, start + len(tokens), dtype=np.int32)
        self._seq_id[at:end] = self._ids.ctypes.data + slot * self._ids.itemsize
        self.raw.n_tokens = end
        return range(at, end)


class _Rows(Batch):
    """The rows of one step, with logits where they are wanted."""

    def __init__(self, capacity: int, sequences: int) -> None:
        super().__init__(capacity, sequences)
        self.first: list[int] = []  # where each row's logits begin

    def fill(self, rows: Sequence[Row]) -> None:
        self.clear()
        self.first = []
        for row in rows:
            slot = row.sequence.slot
            assert slot is not None
            places = self.add(slot, row.start, row.tokens)
            first = places.stop - 1 - row.drafted
            self.logits[places.start : first] = 0
            self.logits[first : places.stop] = row.wants_logits
            self.first.append(first)


def context_params(load: Load, *, sequences: int) -> llama.llama_context_params:
    """What every context of ours has in common."""
    params = llama.llama_context_default_params()
    params.n_ctx = load.pool_tokens
    params.n_seq_max = sequences
    params.n_batch = params.n_ubatch = load.batch_tokens
    params.n_threads = params.n_threads_batch = load.threads
    params.kv_unified = True
    params.type_k = params.type_v = _KV_FORMATS[load.kv_format]
    params.offload_kqv = load.offload_kv
    params.flash_attn_type = 1
    params.no_perf = True
    return params


def open_context(model: llama.llama_model_p, params: llama.llama_context_params) -> llama.llama_context_p:
    """Raises: EngineError."""
    context = llama.llama_init_from_model(model, params)
    if not context:
        raise EngineError(f"no context of {params.n_ctx} tokens could be made: out of memory?")
    return context


def gpu_note(load: Load) -> str | None:
    """What to say where layers should go to a GPU that this build cannot use."""
    if load.gpu_layers == 0 or llama.llama_supports_gpu_offload():
        return None
    return "gpu_layers is set, but this build of llama.cpp has no GPU back end: it runs on the CPU (see docs/gpu.md)"


def load_model(load: Load) -> llama.llama_model_p:
    """Map the file and its vocabulary. Raises: EngineError."""
    if not Path(load.path).is_file():
        raise EngineError("the model file does not exist")
    llama.llama_backend_init()
    params = llama.llama_model_default_params()
    params.n_gpu_layers = load.gpu_layers
    params.main_gpu = load.main_gpu
    model = llama.llama_model_load_from_file(os.fsencode(load.path), params)
    if not model:
        raise EngineError("llama.cpp cannot load this model file")
    return model


def describe(model: llama.llama_model_p) -> str:
    buffer = ctypes.create_string_buffer(256)
    llama.llama_model_desc(model, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")


def _refuse_encoders(model: llama.llama_model_p) -> None:
    if llama.llama_model_has_encoder(model) or not llama.llama_model_has_decoder(model):
        raise EngineError("this model does not continue text: it has an encoder")
