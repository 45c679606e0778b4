"""The hidden state that comes with scores: the model's own, each request's own, and no other number changed by it."""

import asyncio
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from real_engine import LONG, a_request, running

from edged.core import Completion
from edged.core.questions import OptionScores, OptionsItem, QuestionsRequest
from edged.errors import Unsupported

HEAD = "Sentence: play some jazz\nIntent: PlayMusic\n\nSentence: "
OPTIONS = (" GetWeather", " PlayMusic", " BookRestaurant", " SearchCreativeWork")
STATES = [f"{HEAD}{text}\nIntent:" for text in ("will it rain in Oslo on Friday", "a table for two", LONG * 9)]

DIRECT = """
import json, sys
import llama_cpp.llama_cpp as llama
import numpy as np

quiet = llama.llama_log_callback(lambda level, text, user: None)
llama.llama_log_set(quiet, None)
path, texts = sys.argv[1], json.loads(sys.argv[2])
llama.llama_backend_init()
model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
vocab = llama.llama_model_get_vocab(model)
found = []
for text in texts:
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 1024, 1, 1
    params.embeddings, params.pooling_type = True, llama.LLAMA_POOLING_TYPE_NONE
    context = llama.llama_init_from_model(model, params)
    data = text.encode()
    buffer = (llama.llama_token * (len(data) + 8))()
    tokens = buffer[: llama.llama_tokenize(vocab, data, len(data), buffer, len(buffer), True, False)]
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, True
    batch.n_tokens = len(tokens)
    assert llama.llama_decode(context, batch) == 0
    pointer = llama.llama_get_embeddings_ith(context, len(tokens) - 1)
    found.append(np.ctypeslib.as_array(pointer, (llama.llama_model_n_embd(model),)).tolist())
    llama.llama_free(context)
print(json.dumps(found))
"""


def asked(name: str, *, wants_state: bool = True) -> QuestionsRequest:
    return QuestionsRequest(
        id=name,
        model="m",
        input=Completion("x"),
        received_s=time.monotonic(),
        state="x",
        questions=(),
        wants_state=wants_state,
    )


def item(text: str) -> OptionsItem:
    return OptionsItem(text, OPTIONS)


def state_of(scores: OptionScores) -> np.ndarray:
    assert scores.states is not None
    (state,) = scores.states
    return np.frombuffer(state, dtype="<f2").astype(np.float64)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def furthest(one: OptionScores, other: OptionScores) -> float:
    """The largest difference of any token's log-probability."""
    pairs = zip(one.logprobs[0], other.logprobs[0], strict=True)
    return max(abs(a - b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


def test_a_state_is_what_the_model_asked_directly_gives(model_path):
    """Alone, from the cache, and amid eight requests and two answers being written; the odds stay what they were."""
    command = [sys.executable, "-c", DIRECT, str(model_path), json.dumps(STATES)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    truth = [np.array(values) for values in json.loads(done.stdout)]

    async def main():
        async with running(model_path, slots=8, kv_tokens=8192) as engine:

            async def tell() -> None:
                async for _ in engine.generate(await engine.prepare(a_request("Tell me a story", max_tokens=60))):
                    pass

            async def score(i: int, text: str, *, wants_state: bool = True) -> OptionScores:
                return await engine.score(asked(f"q{i}", wants_state=wants_state), [item(text)])

            for i, text in enumerate(STATES):  # from now on all that is compared is computed behind the cache
                await score(i, text, wants_state=False)
            plain = [await score(i, text, wants_state=False) for i, text in enumerate(STATES)]
            warm = [await score(i, text) for i, text in enumerate(STATES)]
            stories = [asyncio.create_task(tell()) for _ in range(2)]
            together = await asyncio.gather(*(score(i, STATES[i % 3]) for i in range(8)))
            many = await engine.score(asked("many"), [item(text) for text in STATES])
            await asyncio.gather(*stories)
            return plain, warm, together, many

    plain, warm, together, many = asyncio.run(main())
    assert all(scores.states is None for scores in plain)
    for found, direct, before in zip(warm, truth, plain, strict=True):
        assert cosine(state_of(found), direct) > 0.999
        assert furthest(found, before) < 0.02
    for i, found in enumerate(together):
        assert cosine(state_of(found), truth[i % 3]) > 0.999
        assert furthest(found, plain[i % 3]) < 0.3  # cells lie in another order, with or without states
    assert many.states is not None
    for state, direct in zip(many.states, truth, strict=True):
        assert cosine(np.frombuffer(state, dtype="<f2").astype(np.float64), direct) > 0.999
    assert cosine(truth[0], truth[1]) < 0.99


def test_a_cold_long_prompt_gives_its_state_too(model_path):
    """Its step is never larger than the outputs there is room for: llama.cpp ends the process over that."""

    async def main():
        async with running(model_path) as engine:
            cold = await engine.score(asked("a"), [item(STATES[2])])
            warm = await engine.score(asked("b"), [item(STATES[2])])
            return cold, warm

    cold, warm = asyncio.run(main())
    assert cold.usage.cached_tokens == 0
    assert cosine(state_of(cold), state_of(warm)) > 0.999
    assert furthest(cold, warm) < 0.02


def test_a_model_that_does_not_continue_text_says_so(model_path):
    """Before anything is loaded for it."""

    async def main():
        async with running(model_path, purpose="embed", pooling="mean") as engine:
            with pytest.raises(Unsupported, match="purpose embed"):
                await engine.score(asked("a"), [item(STATES[0])])

    asyncio.run(main())
