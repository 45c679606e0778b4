"""Choosing tokens: one llama.cpp sampler chain per sequence."""

import ctypes
import secrets
from typing import Any

import llama_cpp.llama_cpp as llama

from edged.engine.protocol import Params


class SamplerChain:
    """Logit bias, penalties, top-k, top-p, min-p, temperature, then a seeded draw; greedy at temperature 0.

    Sources: OpenAI API reference (fields), llama.cpp ``common/sampling.cpp`` (order).
    """

    def __init__(self, params: Params, *, vocab_tokens: int) -> None:
        self._chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        self._bias = _bias_array(params.logit_bias)
        for sampler in _samplers(params, self._bias, vocab_tokens):
            llama.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, context: llama.llama_context_p, row: int) -> int:
        """The next token from the logits of batch row ``row``; the chain remembers it."""
        return int(llama.llama_sampler_sample(self._chain, context, row))

    def accept(self, token: int) -> None:
        """Remember a token that was generated earlier, and use up the random number it was drawn with."""
        only = llama.llama_token_data(token, 0.0, 1.0)
        llama.llama_sampler_apply(self._chain, llama.llama_token_data_array(ctypes.pointer(only), 1, -1, False))
        llama.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        if self._chain is not None:
            llama.llama_sampler_free(self._chain)
            self._chain = None


def _samplers(params: Params, bias: "ctypes.Array[Any]", vocab_tokens: int) -> list[object]:
    chain: list[object] = []
    if len(bias):
        chain.append(llama.llama_sampler_init_logit_bias(vocab_tokens, len(bias), bias))
    if params.repeat_penalty != 1 or params.frequency_penalty or params.presence_penalty:
        penalties = (params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
        window_tokens = params.max_tokens  # the whole answer, as OpenAI defines them; the prompt is not penalised
        chain.append(llama.llama_sampler_init_penalties(vocab_tokens, window_tokens, *penalties))
    if params.temperature == 0:
        return [*chain, llama.llama_sampler_init_greedy()]
    if params.top_k:
        chain.append(llama.llama_sampler_init_top_k(params.top_k))
    if params.top_p < 1:
        chain.append(llama.llama_sampler_init_top_p(params.top_p, 1))
    if params.min_p:
        chain.append(llama.llama_sampler_init_min_p(params.min_p, 1))
    seed = (secrets.randbits(32) if params.seed is None else params.seed) % llama.LLAMA_DEFAULT_SEED
    return [*chain, llama.llama_sampler_init_temp(params.temperature), llama.llama_sampler_init_dist(seed)]


def _bias_array(pairs: tuple[tuple[int, float], ...]) -> "ctypes.Array[Any]":
    array: ctypes.Array[Any] = (llama.llama_logit_bias * len(pairs))()
    for entry, (token, bias) in zip(array, pairs, strict=True):
        entry.token, entry.bias = token, bias
    return array
