"""Embeddings and ranking through the real daemon: official client, ledger, metrics, a client that leaves."""

import base64
import json
import sqlite3
import struct
from contextlib import closing

import numpy as np
import openai
import psutil
import pytest
from bert_files import POOLING, WIDTH, Bert, ids
from daemon_builders import CHAT, a_chat, daemon, in_background, until

TEXTS = ["the cat runs.", "the red dog", "the cat runs?"]
EMBED, RERANK = "/v1/embeddings", "/v1/rerank"
DOCUMENTS = ["the king sleeps.", {"text": "the cat sings?"}, "the red dog"]


def config(model_path, directory):
    """A chat model that nobody loads, the same file as a model that embeds, and two tiny ones."""
    files = {name: Bert(pooling=POOLING[name]).write(directory / f"{name}.gguf") for name in ("cls", "rank")}
    models = [
        ("small", model_path, 'load = "first_use"'),
        ("starter", model_path, 'purpose = "embed"\nload = "first_use"\nprefill_chunk_tokens = 16'),
        ("tiny", files["cls"], 'purpose = "embed"'),
        ("ranker", files["rank"], 'purpose = "rerank"'),
    ]
    parts = ['[server]\nlisten = "127.0.0.1:0"\n']
    parts += [f'[[model]]\nname = "{n}"\nfile = "{f}"\nthreads = 1\n{more}\n' for n, f, more in models]
    parts.append('[[route]]\nname = "auto"\nlocal = "small"\n[[route]]\nname = "search"\nlocal = "tiny"\n')
    parts.append("[route.thresholds]\nqueue = 0\n")
    return "\n".join(parts)


@pytest.fixture(scope="module")
def box(tmp_path_factory, model_path):
    directory = tmp_path_factory.mktemp("box")
    with daemon(directory, config(model_path, directory)) as running:

        def loaded():
            states = json.loads(running.get("/health/ready")[1])["models"]
            return states["tiny"] == states["ranker"] == "ready"

        until(loaded)
        yield running


@pytest.fixture
def client(box):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{box.port}/v1", api_key="none", max_retries=0) as made:
        yield made


def post(box, path, headers=None, **body):
    status, found, data = box.request("POST", path, json.dumps(body), headers)
    return status, found, json.loads(data)


def rows(box, sql):
    """From the ledger, once it has been written."""

    def read():
        with closing(sqlite3.connect(f"file:{box.ledger}?mode=ro", uri=True)) as connection:
            return connection.execute(sql).fetchall()

    return until(read, within_s=10)


def test_the_official_client_gets_its_vectors(client):
    """It asks for base64 by itself and decodes it; floats are the same numbers, and both the model's."""
    model = Bert(pooling=POOLING["cls"])
    found = client.embeddings.create(model="tiny", input=TEXTS)
    floats = client.embeddings.create(model="search", input=TEXTS, encoding_format="float")
    expected = np.array([model.vector(ids(text)) for text in TEXTS])
    assert np.array([row.embedding for row in found.data]) == pytest.approx(expected, abs=2e-3)
    assert np.array([row.embedding for row in floats.data]) == pytest.approx(expected, abs=2e-3)
    assert [row.index for row in found.data] == [0, 1, 2]
    tokens = sum(len(ids(text)) for text in TEXTS)
    assert (found.model, found.usage.prompt_tokens, found.usage.total_tokens) == ("tiny", tokens, tokens)
    assert (found.edged["served_by"], found.edged["route"]) == ("local", "tiny")
    assert floats.edged["route"] == "search"


def test_one_text_and_token_ids_are_inputs_too(client):
    """The same text three ways is the same vector; ``dimensions`` keeps its head, of length one."""
    asked = (TEXTS[0], ids(TEXTS[0]), [ids(TEXTS[0])])
    one, two, three = (client.embeddings.create(model="tiny", input=given).data[0].embedding for given in asked)
    assert one == two == three
    short = client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=4).data[0].embedding
    head = np.array(one[:4])
    assert short == pytest.approx((head / np.linalg.norm(head)).tolist(), abs=1e-5)


def test_base64_is_little_endian_32_bit_floats(box):
    """As OpenAI sends them."""
    body = {"model": "tiny", "input": "the cat"}
    _, _, text = post(box, EMBED, encoding_format="base64", **body)
    status, headers, plain = post(box, EMBED, **body)
    raw = base64.b64decode(text["data"][0]["embedding"], validate=True)
    assert list(struct.unpack(f"<{WIDTH}f", raw)) == pytest.approx(plain["data"][0]["embedding"], abs=1e-6)
    assert status == 200
    assert headers["x-edged-served-by"] == "local"
    assert headers["x-edged-model"] == "tiny"
    assert headers["x-edged-reason"] == "pinned_local"
    assert headers["x-edged-request-id"] == plain["edged"]["request_id"]


@pytest.mark.parametrize("path", [RERANK, "/rerank"])
def test_documents_are_ranked(box, path):
    """The best first, by the place they were sent at; ``top_n`` keeps so many, ``return_documents`` shows them."""
    status, headers, whole = post(box, path, model="ranker", query="the cat", documents=DOCUMENTS)
    assert status == 200
    scores = [result["relevance_score"] for result in whole["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(result["index"] for result in whole["results"]) == [0, 1, 2]
    assert headers["x-edged-model"] == whole["model"] == "ranker"
    assert whole["usage"]["prompt_tokens"] == whole["usage"]["total_tokens"] > 0
    _, _, best = post(box, path, model="ranker", query="the cat", documents=DOCUMENTS, top_n=1, return_documents=True)
    (first,) = best["results"]
    assert first["index"] == whole["results"][0]["index"]
    assert first["document"]["text"] in ("the king sleeps.", "the cat sings?", "the red dog")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        (EMBED, {"model": "auto", "input": "a"}, ("'auto'", "answers chat", "starter, tiny")),
        (EMBED, {"model": "ranker", "input": "a"}, ("'ranker'", "ranks documents", "/v1/rerank")),
        (RERANK, {"model": "tiny", "query": "q", "documents": ["a"]}, ("'tiny'", "makes embeddings", "ranker")),
        (CHAT, a_chat("hi", model="search"), ("'search'", "makes embeddings", "/v1/embeddings")),
        ("/v1/completions", {"model": "ranker", "prompt": "hi"}, ("'ranker'", "ranks documents")),
    ],
)
def test_a_model_is_used_for_what_it_is_for(box, path, body, words):
    """A clear 400 that names the model, what it does, and who does what was asked."""
    status, _, answer = post(box, path, **body)
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "unsupported_model", "model")
    assert all(word in answer["error"]["message"] for word in words)


@pytest.mark.parametrize(
    ("changes", "kind", "code", "param"),
    [
        ({"input": "cat " * 63}, openai.BadRequestError, "context_length_exceeded", "input"),
        ({"input": ""}, openai.BadRequestError, "invalid_value", "input"),
        ({"input": [[999]]}, openai.BadRequestError, "invalid_request", "input"),
        ({"dimensions": 33}, openai.BadRequestError, "invalid_value", "dimensions"),
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        (
            {"extra_body": {"edged": {"locality": "cloud_only"}}},
            openai.BadRequestError,
            "invalid_value",
            "edged.locality",
        ),
    ],
)
def test_errors_are_the_exceptions_the_client_has_for_them(client, changes, kind, code, param):
    """With their code, and the parameter to blame."""
    with pytest.raises(kind) as caught:
        client.embeddings.create(**{"model": "tiny", "input": "the cat", **changes})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.response.headers["x-edged-request-id"]


def test_models_say_what_they_are_for(client):
    """With the length of one text, which for these is the model's own."""
    listed = {model.id: model for model in client.models.list()}
    purposes = {name: model.edged["purpose"] for name, model in listed.items()}
    assert purposes == {
        "auto": "chat",
        "search": "embed",
        "small": "chat",
        "starter": "embed",
        "tiny": "embed",
        "ranker": "rerank",
    }
    assert listed["tiny"].context_length == listed["search"].context_length == 64


def test_every_request_leaves_one_record(box):
    """Served or refused; tokens are the prompt's, and the metrics count them."""
    answers = [
        post(box, EMBED, model="tiny", input=TEXTS),
        post(box, RERANK, model="ranker", query="the cat", documents=DOCUMENTS),
        post(box, EMBED, model="tiny", input="cat " * 63),
        post(box, EMBED, model="auto", input="a"),
    ]
    asked = [headers["x-edged-request-id"] for _, headers, _ in answers]
    tokens = "(SELECT sum(prompt_tokens) FROM attempts WHERE attempts.seq = requests.seq)"
    of_id = "SELECT api, model, status, served_by, reason, error, {tokens} FROM requests WHERE id = '{id}'"
    records = [rows(box, of_id.format(tokens=tokens, id=request_id)) for request_id in asked]
    assert [len(found) for found in records] == [1, 1, 1, 1]
    found = [record for (record,) in records]
    prompt_tokens = sum(len(ids(text)) for text in TEXTS)
    assert found[0] == ("embeddings", "tiny", "ok", "local", "pinned_local", None, prompt_tokens)
    assert found[1][:6] == ("rerank", "ranker", "ok", "local", "pinned_local", None)
    assert found[2][:6] == ("embeddings", "tiny", "rejected", "none", "context_overflow", "context_length_exceeded")
    assert found[3][:6] == ("embeddings", "auto", "rejected", "none", "capability", "unsupported_model")
    story = box.command("explain", asked[0]).stdout
    assert "over embeddings" in story
    assert "nothing to generate" in story
    _, metrics = box.get("/metrics")
    assert 'edged_requests_total{reason="pinned_local",route="ranker",served_by="local",status="ok"}' in metrics
    assert 'edged_model_ready{model="tiny"} 1.0' in metrics


def test_a_client_that_leaves_ends_its_work(box):
    """The starter model loads on demand; its long request is cancelled on the record, and the queue is empty again."""
    post(box, EMBED, model="starter", input="Hi")
    connection = box.connection()
    connection.request("POST", EMBED, json.dumps({"model": "starter", "input": ["word " * 900] * 40}))
    until(lambda: "edged_in_flight_requests 1.0" in box.get("/metrics")[1], within_s=10)
    connection.close()
    until(lambda: "edged_in_flight_requests 0.0" in box.get("/metrics")[1], within_s=10)
    until(lambda: rows(box, "SELECT count(*) FROM requests WHERE status = 'cancelled'")[0][0] == 1, within_s=10)
    status, _, answer = post(
        box, EMBED, model="starter", input=["A cat sat on the mat.", "A kitten on the rug.", "Rates"]
    )
    vectors = np.array([row["embedding"] for row in answer["data"]])
    assert status == 200
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]


def test_the_engine_keeps_a_queue_of_its_own(box):
    """Beyond slots and the route's queue a request is turned away with 503, and told when to come back."""
    body = json.dumps({"model": "search", "input": ["the cat runs."] * 2_000})
    connections = [box.connection() for _ in range(12)]
    try:
        for connection in connections:
            connection.request("POST", EMBED, body)
        answers = [(r.status, r.headers.get("Retry-After")) for r in (c.getresponse() for c in connections)]
    finally:
        for connection in connections:
            connection.close()
    assert {status for status, _ in answers} == {200, 503}
    assert all(int(after) >= 1 for status, after in answers if status == 503)


def test_a_worker_that_dies_is_a_503_and_comes_back(box):
    """Who waited hears ``worker_lost`` and when to try again; the next request is answered."""
    post(box, EMBED, model="starter", input="Hi")
    with in_background(post, box, EMBED, model="starter", input=["word " * 900] * 40) as result:
        until(lambda: "edged_in_flight_requests 1.0" in box.get("/metrics")[1], within_s=10)
        for child in psutil.Process(box.process.pid).children():
            child.kill()
        status, headers, answer = result()
    assert (status, answer["error"]["code"]) == (503, "worker_lost")
    assert int(headers["Retry-After"]) >= 1
    until(lambda: post(box, EMBED, model="tiny", input="the cat")[0] == 200, within_s=30)
    (record,) = rows(box, f"SELECT status, reason, error FROM requests WHERE id = '{headers['x-edged-request-id']}'")
    assert record == ("failed", "local_unavailable", "worker_lost")
