"""What real providers put on the wire: each sample is written after what that provider sends or documents."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from upstream_builders import MODEL, a_client, a_request, collect, run, text_of

from edged.config import UpstreamConfig, parse
from edged.core import (
    Clearance,
    FinishReason,
    Image,
    Locality,
    Message,
    OutputFormat,
    OutputKind,
    Role,
    Sampling,
    Tool,
    ToolCallDelta,
    Usage,
)
from edged.errors import Unsupported, UpstreamBusy, UpstreamUnavailable
from edged.testing import ScriptedUpstream
from edged.upstream.openai import Dialect, encode


def sse(*parts):
    """Events from JSON; text and bytes as they are."""
    lines = []
    for part in parts:
        if isinstance(part, bytes):
            lines.append(part)
        else:
            lines.append(f"data: {part if isinstance(part, str) else json.dumps(part)}\n\n".encode())
    return b"".join(lines)


def choice(delta=None, finish=None, **extra):
    return {"index": 0, "delta": delta or {}, "finish_reason": finish, **extra}


def answer_to(body, request=None, **config):
    """The chunks that a provider's bytes become, and the call that asked for them."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, **config) as client:
            up.reply(body=body)
            return await collect(client, request), up.seen[0].body

    return run(main)


# -- OpenRouter ------------------------------------------------------------------------------------------------------

OPENROUTER_HEAD = {
    "id": "gen-1764000000-abc",
    "provider": "Fireworks",
    "model": "meta-llama/llama-3.3-70b-instruct",
    "object": "chat.completion.chunk",
    "created": 1764000000,
}
OPENROUTER = sse(
    b": OPENROUTER PROCESSING\n\n",
    b": OPENROUTER PROCESSING\n\n",
    {**OPENROUTER_HEAD, "choices": [choice({"role": "assistant", "content": "", "reasoning": "Let me think",
     "reasoning_details": [{"type": "reasoning.text", "text": "hm", "index": 0}]}, native_finish_reason=None)]},
    b": OPENROUTER PROCESSING\n\n",
    {**OPENROUTER_HEAD, "choices": [choice({"role": "assistant", "content": "Hi"}, native_finish_reason=None)]},
    {**OPENROUTER_HEAD, "choices": [choice({"role": "assistant", "content": ""}, "stop", native_finish_reason="stop")]},
    {**OPENROUTER_HEAD, "choices": [choice({"role": "assistant", "content": ""})], "usage": {
        "prompt_tokens": 14, "completion_tokens": 6, "total_tokens": 20, "cost": 0.00002212, "is_byok": False,
        "prompt_tokens_details": {"cached_tokens": 10, "audio_tokens": 0},
        "cost_details": {"upstream_inference_cost": None},
        "completion_tokens_details": {"reasoning_tokens": 4, "image_tokens": 0}}},
    "[DONE]",
)  # fmt: skip


def test_openrouter_says_what_it_cost_and_thinks_in_silence():
    """Its comments keep alive, its reasoning is not shown, its own cost figure is kept beside the usage."""
    chunks, _ = answer_to(OPENROUTER)
    assert text_of(chunks) == "Hi"
    last = chunks[-1]
    assert last.usage == Usage(prompt_tokens=14, completion_tokens=6, cached_tokens=10, reasoning_tokens=4)
    assert last.cost_uusd == 23  # rounded up
    assert last.model == "meta-llama/llama-3.3-70b-instruct"


def test_openrouters_preferences_are_passed_on():
    """Provider preferences and fallback models as the operator wrote them; usage is always asked for."""
    preferences = {
        "order": ["fireworks", "together"],
        "allow_fallbacks": False,
        "data_collection": "deny",
        "zdr": True,
        "max_price": {"prompt": 1.0},
    }
    config = {"openrouter": {"provider": preferences, "models": ["openai/gpt-5-mini"]}}
    _, body = answer_to(OPENROUTER, **config)
    assert body["provider"] == preferences
    assert body["models"] == ["openai/gpt-5-mini"]
    assert body["usage"] == {"include": True}


def test_openrouter_is_known_by_its_address():
    """Without a section of its own it is asked for its costs; nobody else is sent that field."""
    assert encode(a_request(), "m", pinned=False, dialect=Dialect.of("https://openrouter.ai/api/v1")).body["usage"]
    assert "usage" not in encode(a_request(), "m", pinned=False, dialect=Dialect.of("https://x.example/v1")).body


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"provider": {"sort": "cheapest"}}, "sort"),
        ({"provider": {"ordr": []}}, "ordr"),
        ({"models": ["m"] * 21}, "models"),
        ({"transforms": []}, "transforms"),
    ],
)
def test_a_preference_that_openrouter_does_not_have_is_a_config_error(change, word):
    """A typo is not a preference that is silently not kept."""
    with pytest.raises(ValidationError, match=word):
        an_upstream(openrouter=change)
    with pytest.raises(ValidationError, match="openrouter"):
        an_upstream(kind="anthropic", openrouter={})


def an_upstream(**fields):
    model = {"name": "m", "input_usd_per_mtok": 1, "output_usd_per_mtok": 1}
    document = {"name": "cloud", "base_url": "http://127.0.0.1:9/v1", "model": [model], **fields}
    return UpstreamConfig.model_validate(document)


def test_openrouters_error_in_mid_stream_is_an_error():
    """Inside a 200, beside a choice whose finish reason is "error" (F07)."""
    error = {"code": 502, "message": "Provider disconnected"}
    wire = sse({**OPENROUTER_HEAD, "error": error, "choices": [choice({"content": ""}, "error")]})
    with pytest.raises(UpstreamUnavailable):
        answer_to(wire)


def test_openrouters_error_document_is_an_error():
    """A 200 with nothing but an error."""
    with pytest.raises(UpstreamBusy):
        answer_to(sse({"error": {"message": "Rate limit exceeded", "code": 429}, "user_id": "u"}))


# -- Groq ------------------------------------------------------------------------------------------------------------

GROQ = sse(
    {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "llama-3.3-70b", "system_fingerprint": "fp",
     "choices": [choice({"role": "assistant", "content": ""}, logprobs=None)], "x_groq": {"id": "req_1"}},
    {"id": "chatcmpl-1", "choices": [choice({"content": "Hi"}, logprobs=None)]},
    {"id": "chatcmpl-1", "choices": [choice({}, "stop", logprobs=None)], "x_groq": {"id": "req_1", "usage": {
        "queue_time": 0.01, "prompt_tokens": 21, "prompt_time": 0.001, "completion_tokens": 3,
        "completion_time": 0.01, "total_tokens": 24, "total_time": 0.011}}},
    "[DONE]",
)  # fmt: skip


def test_groq_counts_in_a_place_of_its_own():
    """Usage inside x_groq on the chunk that finishes."""
    chunks, _ = answer_to(GROQ)
    assert text_of(chunks) == "Hi"
    assert chunks[-1].usage == Usage(prompt_tokens=21, completion_tokens=3)


def test_groqs_error_event_is_an_error():
    """Named "error", with the status inside."""
    wire = b'event: error\ndata: {"error":{"message":"x","type":"internal_server_error","status_code":500}}\n\n'
    with pytest.raises(UpstreamUnavailable):
        answer_to(wire)


# -- vLLM, llama-server, another edged -------------------------------------------------------------------------------

VLLM = sse(
    {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "Qwen", "choices": [
        choice({"role": "assistant", "content": "", "reasoning_content": None}, logprobs=None, token_ids=None)],
     "prompt_token_ids": None},
    {"id": "chatcmpl-1", "choices": [choice({"reasoning_content": "hm"}, stop_reason=None)]},
    {"id": "chatcmpl-1", "choices": [choice({"tool_calls": [{"index": 0, "id": "chatcmpl-tool-1", "type": "function",
     "function": {"name": "weather", "arguments": ""}}]})]},
    {"id": "chatcmpl-1", "choices": [choice({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})]},
    {"id": "chatcmpl-1", "choices": [choice({"content": ""}, "tool_calls", stop_reason=None)]},
    {"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 5, "total_tokens": 9, "completion_tokens": 4,
     "prompt_tokens_details": None}},
    "[DONE]",
)  # fmt: skip


def test_vllm_streams_calls_with_reasoning_before_them():
    """Nulls everywhere, reasoning_content that is not shown, one call."""
    chunks, _ = answer_to(VLLM, a_request(tools=(Tool("weather"),)))
    assert text_of(chunks) == ""
    assert [d for c in chunks for d in c.tool_calls] == [
        ToolCallDelta(0, "chatcmpl-tool-1", "weather"),
        ToolCallDelta(0, arguments="{}"),
    ]
    assert chunks[-1].finish is FinishReason.TOOL_CALLS
    assert chunks[-1].usage == Usage(prompt_tokens=5, completion_tokens=4)


LLAMA_SERVER = sse(
    {"choices": [choice({"role": "assistant", "content": None})], "created": 1, "id": "chatcmpl-1", "model": "gpt-3.5",
     "system_fingerprint": "b7000", "object": "chat.completion.chunk"},
    {"choices": [choice({"content": "Hi"})], "id": "chatcmpl-1"},
    {"choices": [choice({}, "stop")], "id": "chatcmpl-1"},
    {"choices": [], "id": "chatcmpl-1", "usage": {"completion_tokens": 2, "prompt_tokens": 9, "total_tokens": 11},
     "timings": {"cache_n": 4, "prompt_n": 5, "prompt_ms": 12.5, "predicted_n": 2, "predicted_per_second": 80.1}},
    "[DONE]",
)  # fmt: skip


def test_llama_server_opens_with_a_null_text_and_closes_with_timings():
    """Its timings are its own affair; its usage is the usage."""
    chunks, _ = answer_to(LLAMA_SERVER)
    assert text_of(chunks) == "Hi"
    assert chunks[-1].usage == Usage(prompt_tokens=9, completion_tokens=2)


def test_llama_servers_error_event_is_an_error():
    """A data event with an error object in the middle of a 200 (F07)."""
    with pytest.raises(UpstreamUnavailable):
        answer_to(sse({"error": {"code": 500, "message": "slot failed", "type": "server_error"}}))


EDGED = sse(
    b": keep-alive\n\n",
    {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "auto",
     "choices": [choice({"role": "assistant", "content": ""})], "usage": None},
    {"id": "chatcmpl-1", "choices": [choice({"content": "Hi"})], "usage": None},
    {"id": "chatcmpl-1", "choices": [choice({}, "stop")], "usage": None},
    {"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
     "edged": {"served_by": "local", "cost_usd": 0.0, "attempts": []}},
    "[DONE]",
)  # fmt: skip


def test_another_edged_is_a_provider_like_any_other():
    """Its keep-alives, null usages and its own object."""
    chunks, _ = answer_to(EDGED)
    assert text_of(chunks) == "Hi"
    assert chunks[-1].usage == Usage(prompt_tokens=3, completion_tokens=1)


def test_another_edged_that_is_overloaded_is_busy():
    """Its error inside the stream, with its own code."""
    with pytest.raises(UpstreamBusy):
        answer_to(sse({"error": {"message": "x", "type": "overloaded_error", "param": None, "code": "rejected_busy"}}))


# -- capabilities ----------------------------------------------------------------------------------------------------

PICTURE = Message(Role.USER, "what is this?\n\ufffc", images=(Image(url="https://x.example/a.png", detail="low"),))


def test_images_reach_a_model_that_sees():
    """OpenAI's own form, in the order of the parts, with the wish for detail."""
    model = {"name": MODEL, "input_usd_per_mtok": 1, "output_usd_per_mtok": 1, "vision": True}
    _, body = answer_to(EDGED, a_request(messages=[PICTURE]), model=[model])
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "what is this?"},
                {"type": "image_url", "image_url": {"url": "https://x.example/a.png", "detail": "low"}},
            ],
        }
    ]


def test_image_data_is_sent_as_a_data_url():
    """What came as base64 goes as base64."""
    image = Image(mime="image/webp", data="aGk=")
    call = encode(a_request(messages=[Message(Role.USER, "\ufffc", images=(image,))]), "m", pinned=False)
    url = "data:image/webp;base64,aGk="
    assert call.body["messages"][0]["content"] == [{"type": "image_url", "image_url": {"url": url}}]


@pytest.mark.parametrize("trust", ["cloud", "site"])
def test_a_picture_cannot_be_redacted(trust):
    """Under the label redact it goes to a machine of the operator's own site or nowhere."""
    model = {"name": MODEL, "input_usd_per_mtok": 1, "output_usd_per_mtok": 1, "vision": True}
    request = a_request(messages=[PICTURE], clearance=Clearance(Locality.REDACT, redacted=True))

    async def main():
        async with ScriptedUpstream() as up, a_client(up, model=[model], trust=trust) as client:
            if trust == "site":
                assert await collect(client, request)
                return
            with pytest.raises(Unsupported, match="redact"):
                await collect(client, request)
            assert client.calls == 0

    run(main)


@pytest.mark.parametrize(
    ("fields", "flags", "param", "word"),
    [
        ({"messages": [PICTURE]}, {}, "messages", "vision = false"),
        ({"tools": (Tool("f"),)}, {"tools": False}, "tools", "tools = false"),
        (
            {"output": OutputFormat(OutputKind.JSON_SCHEMA, "{}", "x")},
            {"json_schema": False},
            "response_format",
            "json_schema = false",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_model_is_not_asked_for_what_it_cannot_do(kind, fields, flags, param, word):
    """The config says so: nothing is sent and nothing spent."""
    model = {"name": MODEL, "input_usd_per_mtok": 1, "output_usd_per_mtok": 1, **flags}

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind=kind, model=[model]) as client:
            with pytest.raises(Unsupported) as caught:
                await collect(client, a_request(**fields))
            assert (caught.value.param, client.calls, len(up.seen)) == (param, 0, 0)
            assert word in caught.value.message

    run(main)


def test_the_documented_providers_are_a_config_that_loads():
    """Every example of docs/upstreams.md, with a route over them all."""
    text = Path(__file__).parents[2].joinpath("docs", "upstreams.md").read_text(encoding="utf-8")
    examples = text.partition("```toml\n")[2].partition("```")[0]
    names = ["openai/gpt-5-mini", "claude/claude-haiku-4-5", "rack/qwen3-32b"]
    route = f'[[route]]\nname = "auto"\nlocal = ""\ncloud = {json.dumps(names)}\n'
    upstreams = parse(examples + route).upstreams
    assert [upstream.name for upstream in upstreams] == ["openai", "claude", "openrouter", "groq", "rack"]
    assert upstreams[1].kind == "anthropic"


def test_nothing_of_a_client_but_its_values_is_sent():
    """The body is built from an allow-list: there is no field a base_url could travel in (E08)."""
    request = a_request(max_tokens=5, sampling=Sampling(temperature=0.5), tools=(Tool("f"),))
    _, body = answer_to(EDGED, request)
    assert set(body) == {"model", "messages", "stream", "stream_options", "max_tokens", "temperature", "tools"}
