"""llama.cpp where it reads texts whole: one model, one context that pools each text into a vector or a score.

Owned by the embedding thread, except the vocabulary, which is immutable and may be used from the control thread.
"""

import ctypes
from collections.abc import Sequence
from enum import IntEnum

import llama_cpp.llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from edged.engine.embedding import Piece, Pooling
from edged.engine.protocol import Load
from edged.engine.runner import AbortFlag, Batch, Vocabulary, context_params, describe, load_model, open_context
from edged.errors import EngineError

_META_BYTES = 64


class _LlamaPooling(IntEnum):
    MEAN = llama.LLAMA_POOLING_TYPE_MEAN
    CLS = llama.LLAMA_POOLING_TYPE_CLS
    LAST = llama.LLAMA_POOLING_TYPE_LAST
    RANK = llama.LLAMA_POOLING_TYPE_RANK


class EmbeddingRunner:
    """A loaded model with its context; ``decode`` computes one batch of pieces of texts."""

    def __init__(self, load: Load) -> None:
        self._model = load_model(load)
        self.vocabulary = Vocabulary(self._model)
        self.pooling = _pooling(self._model, load)
        self.batch_tokens = load.batch_tokens
        self._context = self._new_context(load)
        self._memory = llama.llama_get_memory(self._context)
        self._batch = _Pieces(load.batch_tokens, load.sequences)
        self._abort = AbortFlag(self._context)
        ranks = self.pooling is Pooling.RANK
        self.values: int = (llama.llama_model_n_cls_out if ranks else llama.llama_model_n_embd_out)(self._model)
        whole = not self._memory or not llama.llama_get_causal_attn(self._context)
        fitting = min(load.context_tokens, self.context_train_tokens)
        self.text_tokens = min(fitting, self.batch_tokens) if whole else fitting

    @property
    def description(self) -> str:
        return describe(self._model)

    @property
    def context_train_tokens(self) -> int:
        return int(llama.llama_model_n_ctx_train(self._model))

    def pair_form(self) -> "PairForm":
        """How this model wants a query and a document put together."""
        return PairForm(self._model, self.vocabulary)

    def forget(self) -> None:
        """Begin anew: the next pieces belong to other texts."""
        if self._memory:
            llama.llama_memory_clear(self._memory, False)

    def decode(self, pieces: Sequence[Piece]) -> int:
        """Compute one batch; returns llama.cpp's status. What each piece came to is then ``pooled(piece)``."""
        self._batch.fill(pieces)
        compute = llama.llama_decode if llama.llama_model_has_decoder(self._model) else llama.llama_encode
        return int(compute(self._context, self._batch.raw))

    def pooled(self, piece: Piece) -> NDArray[np.float32]:
        """The piece's own tokens pooled (shape: values), valid until the next decode. Raises: EngineError."""
        pointer = llama.llama_get_embeddings_seq(self._context, piece.slot)
        if not pointer:
            raise EngineError("llama.cpp computed nothing for a text")
        return np.ctypeslib.as_array(pointer, (self.values,))

    def set_threads(self, count: int) -> None:
        llama.llama_set_n_threads(self._context, count, count)

    def set_abort(self, *, on: bool) -> None:
        """Ask a running decode to stop before its next graph node; safe from another thread."""
        self._abort.set(on=on)

    @property
    def is_aborting(self) -> bool:
        return self._abort.is_set

    def _new_context(self, load: Load) -> llama.llama_context_p:
        params = context_params(load, sequences=load.sequences)
        params.embeddings = True
        params.pooling_type = _LlamaPooling[self.pooling.name].value
        return open_context(self._model, params)


class PairForm:
    """A query and a document as the one text a ranking model was trained on.

    The file's own ``rerank`` template where it has one, else the two with the special tokens of the tokenizer around
    them. Text of either never becomes a control token.
    """

    def __init__(self, model: llama.llama_model_p, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        source = llama.llama_model_chat_template(model, b"rerank")
        self._template: str | None = source.decode("utf-8", "replace") if source else None
        vocab = llama.llama_model_get_vocab(model)
        separator, end = llama.llama_vocab_sep(vocab), llama.llama_vocab_eos(vocab)
        ends = [separator if end < 0 else end] if llama.llama_vocab_get_add_eos(vocab) else []
        separators = [separator] if llama.llama_vocab_get_add_sep(vocab) else []
        self._before = [llama.llama_vocab_bos(vocab)] if vocabulary.add_bos else []
        self._between = [token for token in (*ends, *separators) if token >= 0]
        self._after = [token for token in ends or separators if token >= 0]

    def tokens(self, query: str, document: str) -> list[int]:
        if self._template is not None:
            return self._from_template(query, document)
        return [*self._before, *self._plain(query), *self._between, *self._plain(document), *self._after]

    def _from_template(self, query: str, document: str) -> list[int]:
        tokens: list[int] = []
        rest = self._template or ""
        for name, text in (("{query}", query), ("{document}", document)):
            head, _, rest = rest.partition(name)
            tokens += self._vocabulary.tokenize(head, add_special=False, parse_special=True) + self._plain(text)
        return tokens + self._vocabulary.tokenize(rest, add_special=False, parse_special=True)

    def _plain(self, text: str) -> list[int]:
        return self._vocabulary.tokenize(text, add_special=False, parse_special=False)


class _Pieces(Batch):
    """The pieces of one batch; every token is an output, as pooling asks for."""

    def __init__(self, capacity: int, sequences: int) -> None:
        super().__init__(capacity, sequences)
        self.logits[:] = 1

    def fill(self, pieces: Sequence[Piece]) -> None:
        self.clear()
        for piece in pieces:
            self.add(piece.slot, piece.start, piece.tokens)


def _pooling(model: llama.llama_model_p, load: Load) -> Pooling:
    """What the config says, else the file, else the mean. Raises: EngineError where the model cannot do it."""
    if llama.llama_model_has_encoder(model) and llama.llama_model_has_decoder(model):
        raise EngineError("this model turns one text into another: it makes neither embeddings nor scores")
    said = _said_pooling(model)
    if load.purpose == "rerank":
        if said is not Pooling.RANK:
            raise EngineError('this model has no ranking head (its pooling_type is not "rank"): it cannot rerank')
        return said
    if said is Pooling.RANK:
        raise EngineError('this model ranks documents: it needs purpose = "rerank"')
    if load.pooling != "auto":
        return Pooling[load.pooling.upper()]
    return said or Pooling.MEAN


def _said_pooling(model: llama.llama_model_p) -> Pooling | None:
    """The file's own word, if it has one."""
    architecture = _meta(model, "general.architecture") or ""
    value = _meta(model, f"{architecture}.pooling_type") or ""
    known = {str(kind.value): Pooling[kind.name] for kind in _LlamaPooling}
    return known.get(value)


def _meta(model: llama.llama_model_p, key: str) -> str | None:
    buffer = ctypes.create_string_buffer(_META_BYTES)
    if llama.llama_model_meta_val_str(model, key.encode(), buffer, len(buffer)) < 0:
        return None
    return buffer.value.decode("utf-8", "replace")
