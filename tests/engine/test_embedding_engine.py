"""Embeddings and scores of real workers: against numpy, against llama-cpp-python's own, and when things go wrong."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from bert_files import CONTEXT, MEAN, POOLING, RANK, WIDTH, Bert, ids, pair_ids
from real_engine import a_config, running, until

from edged.core import Completion, EngineState
from edged.core.texts import TextsRequest
from edged.engine.host import Engine
from edged.errors import ContextOverflow, InvalidRequest, NotReady, Unsupported, WorkerLost

KNOWN = ("the cat runs.", "the red dog", "the cat runs?", "the blue bird sings. the king sleeps.")
_ids = itertools.count()


def a_text_request(texts=KNOWN, *, query=None, id=None, **fields):  # noqa: A002 - the field's name
    return TextsRequest(
        id=id or f"t{next(_ids)}",
        model="m",
        input=Completion(""),
        received_s=time.monotonic(),
        texts=tuple(texts),
        field="input" if query is None else "documents",
        query=query,
        **fields,
    )


async def vectors(engine, texts=KNOWN, **fields):
    """Shape: texts x values."""
    found = await engine.embed(a_text_request(texts, **fields))
    return np.frombuffer(found.data, np.float32).reshape(len(texts), found.values)


def bert(directory, pooling="mean", **changes):
    model = Bert(pooling=POOLING.get(pooling), **changes)
    return model, model.write(directory / f"{pooling}.gguf")


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "none"])
def test_vectors_are_those_of_the_model(tmp_path, pooling):
    """As numpy computes them, pooled as the file says, the mean where it says nothing; of length one."""
    model, path = bert(tmp_path, pooling)

    async def main():
        async with running(path, purpose="embed") as engine:
            return await vectors(engine)

    found = asyncio.run(main())
    assert found == pytest.approx(np.array([model.vector(ids(text)) for text in KNOWN]), abs=2e-3)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)


def test_the_config_may_say_how_to_pool(tmp_path):
    """For files that say it wrong, or not at all; token ids are texts too."""
    model, path = bert(tmp_path, "mean")

    async def main():
        async with running(path, purpose="embed", pooling="cls") as engine:
            return await vectors(engine, [tuple(ids(text)) for text in KNOWN])

    expected = np.array([model.vector(ids(text), POOLING["cls"]) for text in KNOWN])
    assert asyncio.run(main()) == pytest.approx(expected, abs=2e-3)


def test_scores_are_those_of_the_ranking_head(tmp_path):
    """Query and document with the tokenizer's separators between and after them."""
    model, path = bert(tmp_path, "rank")

    async def main():
        async with running(path, purpose="rerank") as engine:
            return await vectors(engine, query="the cat sings?")

    expected = np.array([model.vector(pair_ids("the cat sings?", text)) for text in KNOWN])
    assert asyncio.run(main()) == pytest.approx(expected, abs=2e-2)


def test_a_ranking_template_is_used_and_text_never_becomes_its_markup(tmp_path):
    """What the file says of how query and document are joined; a separator a client writes stays plain text."""
    model, path = bert(tmp_path, "rank", rerank_template="[CLS]the{query}[SEP]{document}[SEP]")

    async def main():
        async with running(path, purpose="rerank") as engine:
            scores = await vectors(engine, query="cat sings?")
            plain = await engine.embed(a_text_request(["dog"], query="cat"))
            marked = await engine.embed(a_text_request(["dog [SEP]"], query="cat"))
            return scores, plain.usage.prompt_tokens, marked.usage.prompt_tokens

    scores, plain_tokens, marked_tokens = asyncio.run(main())
    expected = np.array([model.vector(pair_ids("the cat sings?", text)) for text in KNOWN])
    assert scores == pytest.approx(expected, abs=2e-2)
    assert marked_tokens == plain_tokens + 3


def test_neighbours_in_a_batch_change_nothing(tmp_path):
    """Two hundred texts of two requests at once: each as if it were alone."""
    model, path = bert(tmp_path)
    texts = [" ".join(["the", "red", "cat", "runs"][: 1 + i % 4] * (1 + i % 7)) for i in range(100)]

    async def main():
        async with running(path, purpose="embed") as engine:
            return await asyncio.gather(vectors(engine, texts), vectors(engine, texts[::-1]))

    forth, back = asyncio.run(main())
    assert forth == pytest.approx(np.array([model.vector(ids(text)) for text in texts]), abs=2e-3)
    assert back == pytest.approx(forth[::-1], abs=1e-3)


def test_dimensions_keep_the_first_values(tmp_path):
    """Cut and brought to length one again; more than there are is the request's fault, with the limit."""
    _, path = bert(tmp_path)

    async def main():
        async with running(path, purpose="embed") as engine:
            whole, cut = await vectors(engine), await vectors(engine, dimensions=8)
            with pytest.raises(InvalidRequest, match=f"at most {WIDTH}.*got 33") as caught:
                await vectors(engine, dimensions=33)
            return whole, cut, caught.value.param

    whole, cut, param = asyncio.run(main())
    kept = whole[:, :8]
    assert cut == pytest.approx(kept / np.linalg.norm(kept, axis=1, keepdims=True), abs=1e-5)
    assert param == "dimensions"


def test_a_text_that_is_too_long_is_refused_with_numbers(tmp_path):
    """Nothing is cut; the limit is what the model was trained for, whatever context_tokens says."""
    _, path = bert(tmp_path)

    async def main():
        async with running(path, purpose="embed") as engine:
            assert engine.context_tokens == CONTEXT
            with pytest.raises(ContextOverflow, match=r"input\[1\] has 65 tokens; .* at most 64 per text") as caught:
                await vectors(engine, ["the cat", "cat " * 63])
            assert caught.value.param == "input"
            assert len(await vectors(engine, ["cat " * 62])) == 1
            with pytest.raises(InvalidRequest, match="token 999 does not exist"):
                await vectors(engine, [(2, 999, 3)])
            with pytest.raises(ContextOverflow, match=r"input\[0\] has 1562 tokens or more"):
                await vectors(engine, ["c" * 100_000])
            assert engine.in_flight == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("pooling", "purpose", "why"),
    [
        ("rank", "embed", 'needs purpose = "rerank"'),
        ("mean", "rerank", "no ranking head"),
        ("mean", "chat", 'needs purpose = "embed" or "rerank"'),
    ],
)
def test_a_model_that_is_not_for_this_is_not_loaded(tmp_path, pooling, purpose, why):
    """The reason is the engine's problem, in words that say what to change."""
    _, path = bert(tmp_path, pooling)

    async def main():
        engine = Engine(a_config(path, purpose=purpose), threads=1, locate=lambda: path)
        engine.start()
        try:
            assert await asyncio.wait_for(engine.settled(), 30) is EngineState.DOWN
            assert why in engine.problem
            with pytest.raises(Unsupported if purpose == "chat" else NotReady):
                await engine.embed(a_text_request(query="q" if purpose == "rerank" else None))
        finally:
            await engine.close()

    asyncio.run(main())


_REFERENCE = """
import json, sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], embedding=True, pooling_type=1, n_ctx=512, n_batch=512, n_threads=1, verbose=False)
print(json.dumps([model.embed(text, normalize=True) for text in json.loads(sys.argv[2])]))
"""


def test_a_chat_model_embeds_too_and_in_chunks(model_path):
    """The starter model's vectors are llama-cpp-python's, although a long text is computed sixteen tokens at a time."""
    texts = ["A cat sat on the mat.", "Interest rates rise again in the autumn, the bank said on Tuesday. " * 3, "Hi"]
    done = subprocess.run(
        [sys.executable, "-c", _REFERENCE, str(model_path), json.dumps(texts)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    expected = np.array(json.loads(done.stdout.splitlines()[-1]))

    async def main():
        async with running(model_path, purpose="embed", prefill_chunk_tokens=16, context_tokens=128) as engine:
            return await vectors(engine, texts)

    found = asyncio.run(main())
    assert (found * expected).sum(axis=1) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("pooling", ["last", "cls"])
def test_chunks_pool_as_the_whole_text_does(model_path, pooling):
    """The last token's vector is the last chunk's, the first one's the first chunk's."""
    texts = ["Interest rates rise again in the autumn, the bank said on Tuesday.", "Hi"]

    async def main(chunk_tokens):
        async with running(
            model_path, purpose="embed", pooling=pooling, prefill_chunk_tokens=chunk_tokens, context_tokens=64
        ) as engine:
            return await vectors(engine, texts)

    whole, cut = asyncio.run(main(64)), asyncio.run(main(8))
    assert (whole * cut).sum(axis=1) == pytest.approx(1, abs=1e-2)


def test_a_cancelled_request_is_gone_within_a_batch(model_path):
    """A long one gives way: the worker has nothing left to do, and the next request is answered."""

    async def main():
        async with running(model_path, purpose="embed", prefill_chunk_tokens=32) as engine:
            counted = asyncio.Event()
            request = a_text_request(["word " * 900] * 50)
            task = asyncio.create_task(engine.embed(request, counted=lambda _: counted.set()))
            await asyncio.wait_for(counted.wait(), 30)
            task.cancel()
            await asyncio.wait([task])
            assert engine.in_flight == 0
            began_s = time.monotonic()
            await vectors(engine, ["Hi"])
            return time.monotonic() - began_s

    assert asyncio.run(main()) < 10


def test_a_worker_that_dies_is_said_to_those_who_wait(tmp_path):
    """And the next request finds it restarted."""
    _, path = bert(tmp_path)

    async def main():
        async with running(path, purpose="embed") as engine:
            os.kill(engine.pid, signal.SIGSTOP)  # so that it cannot answer first
            task = asyncio.create_task(engine.embed(a_text_request()))
            await asyncio.sleep(0)
            os.kill(engine.pid, signal.SIGKILL)
            with pytest.raises(WorkerLost):
                await task
            await until(lambda: engine.state is EngineState.READY)
            assert (await vectors(engine)).shape == (len(KNOWN), WIDTH)

    asyncio.run(main())


def test_it_loads_when_asked_and_leaves_when_idle(tmp_path):
    """Residency is the same as a chat model's."""
    _, path = bert(tmp_path)

    async def main():
        engine = Engine(a_config(path, purpose="embed", load="first_use"), threads=1, locate=lambda: path)
        engine.start()
        try:
            assert engine.state is EngineState.UNLOADED
            await vectors(engine)
            assert engine.state is EngineState.READY
            assert engine.resident().bytes == engine.need.total_bytes
            assert await engine.unload()
            assert engine.pid is None
            await vectors(engine)
        finally:
            await engine.close()

    asyncio.run(main())


def test_its_memory_is_foreseen(tmp_path, model_path):
    """Vectors need every token's output: the estimate holds them, and no logits where a model computes none."""

    async def main(path, **changes):
        async with running(path, purpose="embed", **changes) as engine:
            await vectors(engine, ["word " * 200] if path is model_path else KNOWN)
            return psutil.Process(engine.pid).memory_info().rss, engine.need

    for path, changes in ((bert(tmp_path)[1], {}), (model_path, {"context_tokens": 512})):
        resident, need = asyncio.run(main(path, **changes))
        assert resident < 1.1 * need.total_bytes
        assert need.total_bytes < 1.5 * resident


def test_ranks_need_a_query_and_vectors_do_not():
    """The purpose a request asks for."""
    assert a_text_request().purpose == "embed"
    assert a_text_request(query="q").purpose == "rerank"
    assert {MEAN, RANK} < set(POOLING.values())
