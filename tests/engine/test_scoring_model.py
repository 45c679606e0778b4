"""Options scored by the real model in a real worker, against llama.cpp asked directly in another process."""

import asyncio
import json
import subprocess
import sys
import time

import pytest
from real_engine import running

from edged.core import Completion
from edged.core.questions import OptionsItem, QuestionsRequest
from edged.errors import ContextOverflow

STATE = "Sentence: play some jazz\nIntent: PlayMusic\n\nSentence: will it rain in Oslo on Friday\nIntent:"
OPTIONS = (" GetWeather", " PlayMusic", " BookRestaurant", " SearchCreativeWork")

DIRECT = """
import ctypes, json, sys
import llama_cpp.llama_cpp as llama
import numpy as np

quiet = llama.llama_log_callback(lambda level, text, user: None)
llama.llama_log_set(quiet, None)
path, state, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
llama.llama_backend_init()
model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
vocab = llama.llama_model_get_vocab(model)
size = llama.llama_vocab_n_tokens(vocab)

def tokens(text, special):
    data = text.encode()
    buffer = (llama.llama_token * (len(data) + 8))()
    return list(buffer[: llama.llama_tokenize(vocab, data, len(data), buffer, len(buffer), special, False)])

found = []
for option in options:
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 512, 1, 1
    context = llama.llama_init_from_model(model, params)
    prompt, wanted = tokens(state, True), tokens(option, False)
    given = prompt + wanted[:-1]
    batch = llama.llama_batch_init(len(given), 0, 1)
    for i, token in enumerate(given):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
        batch.logits[i] = i >= len(prompt) - 1
    batch.n_tokens = len(given)
    assert llama.llama_decode(context, batch) == 0
    row = []
    for i, token in enumerate(wanted):
        pointer = llama.llama_get_logits_ith(context, len(prompt) - 1 + i)
        logits = np.ctypeslib.as_array(pointer, (size,)).astype(np.float64)
        row.append(float(logits[token] - logits.max() - np.log(np.exp(logits - logits.max()).sum())))
    found.append(row)
    llama.llama_free(context)
print(json.dumps(found))
"""


def asked(text: str) -> QuestionsRequest:
    return QuestionsRequest(
        id="q", model="m", input=Completion(text), received_s=time.monotonic(), state=text, questions=()
    )


def test_scores_are_those_of_the_model_asked_directly(model_path):
    """A fresh context for each option, without sharing, batching or slots, says the same of every token."""
    command = [sys.executable, "-c", DIRECT, str(model_path), STATE, json.dumps(OPTIONS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    truth = json.loads(done.stdout)

    async def main():
        async with running(model_path) as engine:
            first = await engine.score(asked(STATE), [OptionsItem(STATE, OPTIONS)])
            again = await engine.score(asked(STATE), [OptionsItem(STATE, OPTIONS)])
            with pytest.raises(ContextOverflow, match="takes"):
                await engine.score(asked("x " * 1500), [OptionsItem("x " * 1500, OPTIONS)])
            return first, again

    first, again = asyncio.run(main())
    worst = 0.0
    for scores in (first, again):
        (options,) = scores.logprobs
        assert [len(option) for option in options] == [len(option) for option in truth]
        pairs = [pair for ours, direct in zip(options, truth, strict=True) for pair in zip(ours, direct, strict=True)]
        worst = max(worst, *(abs(a - b) for a, b in pairs))
    assert worst < 1e-2
    assert first.usage.cached_tokens == 0
    assert again.usage.cached_tokens > 10
