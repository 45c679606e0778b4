"""The official client, unchanged, against the real daemon with the real model."""

import asyncio
import os
import signal

import openai
import pytest
from daemon_builders import CHAT, config_text, daemon, scripted_cloud, until

MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
FIXED = {"temperature": 0.0, "seed": 7, "max_tokens": 16}
KEY = "sk-canary-client"


@pytest.fixture(scope="module")
def box(tmp_path_factory, model_path):
    """One daemon for all of them, with a cloud and a key."""
    directory = tmp_path_factory.mktemp("box")
    with scripted_cloud() as cloud:
        text = config_text(model=model_path, cloud=cloud.base_url, server='api_keys = ["env:EDGED_TEST_KEY"]')
        broke = '[[route]]\nname = "broke"\ncloud = ["cloud/scripted-model"]\n[route.budget]\nusd_per_day = 0\n'
        with daemon(directory, text + broke, EDGED_TEST_KEY=KEY) as running:
            running.wait_ready()
            yield running


@pytest.fixture
def client(box):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{box.port}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_chat_whole_and_streamed(client):
    """Text, finish and usage come where the client looks for them, both ways."""
    whole = client.chat.completions.create(model="auto", messages=MESSAGES, **FIXED)
    assert whole.model == "small"
    assert whole.choices[0].message.role == "assistant"
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    stream = client.chat.completions.create(
        model="auto", messages=MESSAGES, stream=True, stream_options={"include_usage": True}, **FIXED
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.strip()
    finishes = [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason]
    assert len(finishes) == 1
    assert finishes[0] in {"stop", "length"}
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert 0 < chunks[-1].usage.completion_tokens <= 16


def test_completions_whole_and_streamed(client):
    """The older endpoint, with a prompt."""
    whole = client.completions.create(model="small", prompt="Once upon a time", **FIXED)
    assert whole.choices[0].text
    chunks = list(client.completions.create(model="small", prompt="Once upon a time", stream=True, **FIXED))
    assert "".join(c.choices[0].text for c in chunks if c.choices)


def test_the_stream_accumulator_of_the_client_understands_us(client):
    """``stream()`` collects the chunks into a whole completion."""
    with client.chat.completions.stream(model="auto", messages=MESSAGES, stop=["a"], **FIXED) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content
    assert final.choices[0].finish_reason == "stop"


def test_headers_and_the_edged_object_are_within_reach(client):
    """``with_raw_response`` for headers, ``extra_body`` for our field, the model's extras for our object."""
    raw = client.chat.completions.with_raw_response.create(
        model="auto", messages=MESSAGES, extra_body={"edged": {"min_confidence": 1.0}}, **FIXED
    )
    assert raw.headers["x-edged-served-by"] == "cloud"
    assert raw.headers["x-edged-reason"] == "low_confidence"
    answer = raw.parse()
    assert answer.edged["request_id"] == raw.headers["x-edged-request-id"]
    assert [a["outcome"] for a in answer.edged["attempts"]] == ["discarded", "served"]
    assert answer.edged["cost_usd"] > 0
    by_header = client.chat.completions.create(
        model="auto", messages=MESSAGES, extra_headers={"x-edged": '{"locality": "cloud_only"}'}, **FIXED
    )
    assert by_header.edged["reason"] == "pinned_cloud"


def test_choices_logprobs_and_stops(client):
    """n, logprobs and stop do what they say."""
    answer = client.chat.completions.create(
        model="small", messages=MESSAGES, n=2, logprobs=True, top_logprobs=2, temperature=1.0, max_tokens=6, stop=["."]
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert "." not in choice.message.content
        assert choice.logprobs.content
        assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in choice.logprobs.content)


def test_models_are_listed_and_found(client):
    """Routes, local models and upstream models, a name with a slash included."""
    listed = {model.id: model for model in client.models.list()}
    assert set(listed) == {"auto", "broke", "small", "cloud/scripted-model"}
    assert listed["small"].context_length == 2048
    assert listed["small"].edged == {"kind": "local", "state": "ready", "purpose": "chat"}
    assert client.models.retrieve("cloud/scripted-model").id == "cloud/scripted-model"
    assert client.models.retrieve("auto").edged["kind"] == "route"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("nobody")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("changes", "kind", "code", "param"),
    [
        ({"temperature": 9}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"messages": []}, openai.BadRequestError, "invalid_value", "messages"),
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found", "model"),
        ({"extra_body": {"no_such_field": 1}}, openai.BadRequestError, "unknown_parameter", "no_such_field"),
        ({"logit_bias": {"999999": 1}}, openai.BadRequestError, "invalid_request", "logit_bias"),
        ({"model": "broke"}, openai.RateLimitError, "budget_exhausted", None),
        (
            {"model": "small", "messages": [{"role": "user", "content": "word " * 5000}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_are_the_exceptions_the_client_has_for_them(client, stream, changes, kind, code, param):
    """Each with its code and the parameter to blame, whether or not a stream was asked for."""
    asked = {"model": "auto", "messages": MESSAGES, "stream": stream, "max_tokens": 4, **changes}
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**asked)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.response.headers["x-edged-request-id"]


def test_a_wrong_key_is_an_authentication_error(box):
    """And its answer does not hold the key."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{box.port}/v1", api_key="sk-wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError) as caught:
            stranger.models.list()
        assert caught.value.code == "invalid_api_key"
        assert "sk-wrong" not in str(caught.value)


def test_a_box_that_cannot_answer_is_an_internal_server_error(tmp_path):
    """503 while no model is up and there is no cloud; the client may try again."""
    with (
        daemon(tmp_path, config_text(model="/nowhere.gguf")) as box,
        openai.OpenAI(base_url=f"http://127.0.0.1:{box.port}/v1", api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(model="auto", messages=MESSAGES)
        assert (caught.value.status_code, caught.value.code) == (503, "not_ready")
        assert int(caught.value.response.headers["retry-after"]) >= 1


def test_the_async_client_works_too(box):
    """Several answers at once, whole and streamed, on one client; leaving a stream early frees its slot."""

    async def main():
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{box.port}/v1", api_key=KEY, max_retries=0) as client:

            async def streamed():
                stream = await client.chat.completions.create(model="small", messages=MESSAGES, stream=True, **FIXED)
                return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

            whole = client.chat.completions.create(model="small", messages=MESSAGES, **FIXED)
            done, text, again = await asyncio.gather(whole, streamed(), streamed())
            assert all((done.choices[0].message.content, text, again))
            long = await client.chat.completions.create(
                model="small", messages=MESSAGES, stream=True, max_tokens=1500, logit_bias={"2": -100}
            )
            await anext(aiter(long))
            await long.close()
            until(lambda: b'edged_model_running{model="small"} 0.0' in metrics(box), within_s=5)

    asyncio.run(main())


def metrics(box):
    return box.request("GET", "/metrics", headers={"Authorization": f"Bearer {KEY}"})[2]


def test_an_sse_error_reaches_the_client_as_an_exception(box, client):
    """An in-band error is what the client's strict parser raises on."""
    stream = client.chat.completions.create(
        model="small", messages=MESSAGES, stream=True, max_tokens=1500, logit_bias={"2": -100}
    )
    next(stream)
    os.kill(box.worker_pid, signal.SIGKILL)
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "worker_lost"
    box.wait_ready()


def test_every_answer_of_the_chat_path_has_a_request_id(box):
    """Good, bad and unauthorised alike."""
    for key, body in ((KEY, b"{"), ("wrong", b"{}"), (KEY, b"[]")):
        status, headers, _ = box.request("POST", CHAT, body, {"Authorization": f"Bearer {key}"})
        assert status in {400, 401}
        assert len(headers["x-edged-request-id"]) == 32
