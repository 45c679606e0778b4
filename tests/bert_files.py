"""Tiny BERT models as GGUF files, and the same models computed plainly in numpy."""

import struct
from pathlib import Path

import numpy as np
from gguf_files import BOOL, F32, I32, STRING, array, key, string, tensor, text, u32

WIDTH, WIDE, HEADS, BLOCKS, CONTEXT = 32, 64, 4, 2, 64
MEAN, CLS, LAST, RANK = 1, 2, 3, 4
POOLING = {"mean": MEAN, "cls": CLS, "last": LAST, "rank": RANK}
WORDS = ("the", "cat", "dog", "bird", "king", "queen", "red", "blue", "runs", "sleeps", "sings", ".", "?")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"\u2581{word}" for word in WORDS))
_IDS = {word: 5 + i for i, word in enumerate(WORDS)}
_ALIGNMENT_BYTES = 32
_BEGIN, _SEPARATOR = 2, 3


def ids(sentence: str) -> list[int]:
    """As the file's tokenizer has it, for sentences of the known words."""
    words = sentence.lower().replace(".", " .").replace("?", " ?").split()
    return [_BEGIN, *(_IDS[word] for word in words), _SEPARATOR]


def pair_ids(query: str, document: str) -> list[int]:
    return [*ids(query), *ids(document)[1:]]


class Bert:
    """Random weights; one seed is one model."""

    def __init__(self, *, pooling: int | None, seed: int = 7, rerank_template: str | None = None) -> None:
        self.pooling = pooling
        self.rerank_template = rerank_template
        random = np.random.default_rng(seed)

        def some(*shape: int) -> np.ndarray:
            return random.normal(0, 0.5, shape).astype(np.float32)

        def norm(name: str) -> dict[str, np.ndarray]:
            return {f"{name}.weight": 1 + some(WIDTH) / 4, f"{name}.bias": some(WIDTH) / 4}

        self.weights = {
            "token_embd.weight": some(len(VOCABULARY), WIDTH),
            "token_types.weight": some(2, WIDTH),
            "position_embd.weight": some(CONTEXT, WIDTH),
            **norm("token_embd_norm"),
        }
        for block in (f"blk.{i}" for i in range(BLOCKS)):
            for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
                self.weights |= {f"{block}.{name}.weight": some(WIDTH, WIDTH), f"{block}.{name}.bias": some(WIDTH)}
            self.weights |= {f"{block}.ffn_up.weight": some(WIDE, WIDTH), f"{block}.ffn_up.bias": some(WIDE)}
            self.weights |= {f"{block}.ffn_down.weight": some(WIDTH, WIDE), f"{block}.ffn_down.bias": some(WIDTH)}
            self.weights |= norm(f"{block}.attn_output_norm") | norm(f"{block}.layer_output_norm")
        if pooling == RANK:
            self.weights |= {"cls.weight": some(WIDTH, WIDTH), "cls.bias": some(WIDTH)}
            self.weights |= {"cls.output.weight": some(1, WIDTH), "cls.output.bias": some(1)}

    def write(self, path: Path) -> Path:
        data, tensors = bytearray(), []
        for name, values in self.weights.items():
            tensors.append(tensor(name, values.shape[::-1], offset=len(data)))
            data += values.tobytes() + bytes(-values.nbytes % _ALIGNMENT_BYTES)
        keys = self._keys()
        header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(keys) + b"".join(tensors)
        path.write_bytes(header + bytes(-len(header) % _ALIGNMENT_BYTES) + data)
        return path

    def _keys(self) -> list[bytes]:
        numbers = {
            "bert.block_count": BLOCKS,
            "bert.context_length": CONTEXT,
            "bert.embedding_length": WIDTH,
            "bert.feed_forward_length": WIDE,
            "bert.attention.head_count": HEADS,
            "tokenizer.ggml.token_type_count": 2,
            "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.ggml.unknown_token_id": 1,
            "tokenizer.ggml.bos_token_id": _BEGIN,
            "tokenizer.ggml.cls_token_id": _BEGIN,
            "tokenizer.ggml.eos_token_id": _SEPARATOR,
            "tokenizer.ggml.seperator_token_id": _SEPARATOR,
            "tokenizer.ggml.mask_token_id": 4,
        }
        if self.pooling is not None:
            numbers["bert.pooling_type"] = self.pooling
        kinds = struct.pack(f"<{len(VOCABULARY)}i", *(3 if i < 5 else 1 for i in range(len(VOCABULARY))))
        template = self.rerank_template
        return [
            *([] if template is None else [string("tokenizer.chat_template.rerank", template)]),
            string("general.architecture", "bert"),
            string("general.name", "Tiny BERT"),
            *(u32(name, value) for name, value in numbers.items()),
            key("bert.attention.layer_norm_epsilon", F32, struct.pack("<f", 1e-12)),
            key("bert.attention.causal", BOOL, b"\0"),
            string("tokenizer.ggml.model", "bert"),
            string("tokenizer.ggml.pre", "default"),
            array("tokenizer.ggml.tokens", STRING, len(VOCABULARY), b"".join(map(text, VOCABULARY))),
            array("tokenizer.ggml.token_type", I32, len(VOCABULARY), kinds),
        ]

    # -- the same in numpy --

    def vector(self, tokens: list[int], pooling: int | None = None) -> np.ndarray:
        """What a text comes to: a vector of length one, or the score alone."""
        pooling = pooling or self.pooling or MEAN
        states = self._states(tokens)
        if pooling == RANK:
            hidden = np.tanh(self._linear("cls", states[0]))
            return self._linear("cls.output", hidden)
        pooled = {MEAN: states.mean(axis=0), CLS: states[0], LAST: states[-1]}[pooling]
        return pooled / np.linalg.norm(pooled)

    def _states(self, tokens: list[int]) -> np.ndarray:
        w = self.weights
        x = w["token_embd.weight"][tokens] + w["token_types.weight"][0] + w["position_embd.weight"][: len(tokens)]
        x = self._norm("token_embd_norm", x)
        for block in (f"blk.{i}" for i in range(BLOCKS)):
            x = self._norm(f"{block}.attn_output_norm", x + self._attention(block, x))
            inner = self._linear(f"{block}.ffn_up", x)
            inner = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))
            x = self._norm(f"{block}.layer_output_norm", x + self._linear(f"{block}.ffn_down", inner))
        return x

    def _attention(self, block: str, x: np.ndarray) -> np.ndarray:
        each = WIDTH // HEADS
        q, k, v = (self._linear(f"{block}.attn_{n}", x).reshape(len(x), HEADS, each).transpose(1, 0, 2) for n in "qkv")
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(each)
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ v
        return self._linear(f"{block}.attn_output", mixed.transpose(1, 0, 2).reshape(len(x), WIDTH))

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]
