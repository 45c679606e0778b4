"""What is asked of a provider is what the request says; what it answers is read strictly, variants included."""

import json

import pytest
from upstream_builders import a_decoder, a_request, encode, text_of

from edged.core import FinishReason, Message, Role, Sampling, Token, Tool, ToolCall, Usage
from edged.errors import (
    Unsupported,
    UpstreamBusy,
    UpstreamDenied,
    UpstreamProtocolError,
    UpstreamRejected,
    UpstreamUnavailable,
)
from edged.upstream.openai import Dialect

ALWAYS = {"model": "m", "stream": True, "stream_options": {"include_usage": True}}
USER = [{"role": "user", "content": "hello"}]


def chunk(content=None, *, index=0, finish=None, **extra):
    delta = {} if content is None else {"content": content}
    return json.dumps({"choices": [{"index": index, "delta": delta, "finish_reason": finish}], **extra})


def decode(*events, decoder=None, **fields):
    decoder = decoder or a_decoder(**fields)
    chunks = [found for event in events for found in decoder.event(event)]
    return chunks + decoder.close()


# -- asking ----------------------------------------------------------------------------------------------------------


def test_only_what_was_asked_for_is_sent():
    """A bare request carries model, messages and the stream options, nothing else."""
    call = encode(a_request())
    assert call.path == "/chat/completions"
    assert call.body == {**ALWAYS, "messages": USER}


def test_every_documented_parameter_is_sent_under_openais_name():
    """Each value the request set appears once, unchanged."""
    sampling = Sampling(temperature=0.0, top_p=0.5, presence_penalty=1.0, frequency_penalty=-1.0, seed=7)
    request = a_request(sampling=sampling, max_tokens=9, stop=("a", "b"), n=2, top_logprobs=3)
    assert encode(request).body == {
        **ALWAYS,
        "messages": USER,
        "max_tokens": 9,
        "stop": ["a", "b"],
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "temperature": 0.0,
        "top_p": 0.5,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "seed": 7,
    }


def test_a_plain_completion_goes_to_its_own_endpoint():
    """A text prompt asks /completions, with its form of logprobs."""
    call = encode(a_request(prompt="once", top_logprobs=2, max_tokens=5), dialect=Dialect("max_completion_tokens"))
    assert call.path == "/completions"
    assert call.body == {**ALWAYS, "prompt": "once", "logprobs": 2, "max_tokens": 5}


def test_openai_itself_gets_its_renamed_limit():
    """api.openai.com refuses max_tokens for newer models; others know only that name."""
    assert Dialect.of("https://api.openai.com/v1").limit_field == "max_completion_tokens"
    assert Dialect.of("https://api.openai.com.evil.example/v1").limit_field == "max_tokens"
    call = encode(a_request(max_tokens=5), dialect=Dialect.of("https://api.openai.com/v1"))
    assert call.body["max_completion_tokens"] == 5
    assert "max_tokens" not in call.body


def test_a_prompt_of_token_ids_never_leaves():
    """Token ids mean something to one local model only."""
    with pytest.raises(Unsupported) as caught:
        encode(a_request(prompt=(1, 2, 3)))
    assert caught.value.param == "prompt"


def test_local_sampler_parameters_follow_a_pin_but_not_an_escalation():
    """top_k, min_p and the repeat penalty are undocumented by OpenAI: sent only where the client named the model."""
    request = a_request(sampling=Sampling(top_k=40, min_p=0.05, repeat_penalty=1.1))
    assert encode(request).body == {**ALWAYS, "messages": USER}
    extensions = {"top_k": 40, "min_p": 0.05, "repetition_penalty": 1.1}
    assert encode(request, pinned=True).body == {**ALWAYS, "messages": USER, **extensions}


def test_a_logit_bias_is_sent_to_the_model_it_was_written_for_or_refused():
    """The same token id is another word elsewhere: a wrong answer must not follow silently."""
    request = a_request(sampling=Sampling(logit_bias=((5, -100.0),)))
    assert encode(request, pinned=True).body["logit_bias"] == {"5": -100.0}
    with pytest.raises(Unsupported) as caught:
        encode(request)
    assert caught.value.param == "logit_bias"


def test_a_tool_conversation_keeps_its_history():
    """Calls, ids, names and null content survive the trip."""
    call = ToolCall("c1", "weather", '{"city":"Oslo"}')
    messages = [
        Message(Role.SYSTEM, "be brief"),
        Message(Role.USER, "weather?", name="ann"),
        Message(Role.ASSISTANT, None, tool_calls=(call,)),
        Message(Role.TOOL, "rain", tool_call_id="c1"),
    ]
    assert encode(a_request(messages=messages)).body["messages"] == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "weather?", "name": "ann"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Oslo"}'}}
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
    ]


def test_the_body_is_ascii():
    """Whatever the text holds, the bytes on the wire cannot be torn (C11)."""
    body = encode(a_request(text="日本 \ud83d 🚀")).encode()
    assert body.isascii()
    assert json.loads(body)["messages"][0]["content"] == "日本 \ud83d 🚀"


# -- the answer ------------------------------------------------------------------------------------------------------


def test_an_ordinary_stream_becomes_text_then_an_end_with_usage():
    """Role, text, finish, usage, [DONE]: text at once, finish reason and usage on the last chunk."""
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    chunks = decode(
        chunk("", model="real-name"),
        chunk("he"),
        chunk("llo"),
        chunk(finish="stop"),
        json.dumps({"choices": [], "usage": usage}),
        "[DONE]",
    )
    assert [c.text for c in chunks] == ["he", "llo", ""]
    assert chunks[-1].finish is FinishReason.STOP
    assert chunks[-1].usage == Usage(prompt_tokens=3, completion_tokens=2)
    assert chunks[-1].model == "real-name"
    assert [c.usage for c in chunks[:-1]] == [None, None]


@pytest.mark.parametrize(
    "event",
    [
        '{"choices":[]}',
        "{}",
        '{"choices":null}',
        '{"choices":[{"index":0,"delta":{"role":"assistant","content":null},"finish_reason":null}]}',
        '{"choices":[{"delta":null}]}',
        '{"choices":[{"index":null,"delta":{},"finish_reason":""}]}',
        '{"error":null,"choices":[]}',
        " ",
    ],
)
def test_an_event_without_text_is_no_chunk_and_no_first_token(event):
    """Role chunks, empty choices and nulls are legal and say nothing yet."""
    decoder = a_decoder()
    assert decoder.event(event) == []
    assert not decoder.started


@pytest.mark.parametrize(
    "event",
    [
        "{", "[]", "5", '"x"', "null", "<html>", '{"choices":5}', '{"choices":[5]}', '{"choices":[{"delta":[5]}]}',
        '{"choices":[{"delta":{"content":5}}]}', '{"choices":[{"delta":{"content":["a"]}}]}',
        '{"choices":[{"index":"0","delta":{}}]}', '{"choices":[{"index":true,"delta":{}}]}',
        '{"choices":[{"index":1,"delta":{}}]}', '{"choices":[{"index":-1,"delta":{}}]}',
        '{"choices":[{"delta":{},"finish_reason":5}]}', '{"choices":[{"delta":{"content":NaN}}]}',
        "[" * 100_000, '{"a":' + "9" * 5000 + "}",
    ],
)  # fmt: skip
def test_a_malformed_event_is_the_providers_fault_and_is_not_repeated(event):
    """Wrong types, broken JSON, NaN and bombs are a protocol error without the provider's text in it."""
    with pytest.raises(UpstreamProtocolError) as caught:
        a_decoder().event(event)
    assert len(event) < 4 or event not in caught.value.message
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("stop", FinishReason.STOP),
        ("length", FinishReason.LENGTH),
        ("MAX_TOKENS", FinishReason.LENGTH),
        ("content_filter", FinishReason.CONTENT_FILTER),
        ("SAFETY", FinishReason.CONTENT_FILTER),
        ("eos", FinishReason.STOP),
        ("something_new", FinishReason.STOP),
    ],
)
def test_finish_reasons_are_mapped_and_an_unknown_one_is_a_stop(reason, expected):
    """Providers invent words; clients know four."""
    assert decode(chunk("x"), chunk(finish=reason), "[DONE]")[-1].finish is expected


def test_either_ending_alone_completes_an_answer():
    """A finish reason without [DONE], or [DONE] without a finish reason, is a complete answer (F08)."""
    assert decode(chunk("x"), chunk(finish="length"))[-1].finish is FinishReason.LENGTH
    assert decode(chunk("x"), "[DONE]")[-1].finish is FinishReason.STOP


def test_done_without_a_finish_reason_does_not_end_an_open_call():
    """Cut arguments are no call: nothing repairs them (F08)."""
    for arguments, is_whole in (('{"city":', False), ('{"city":"Oslo"}', True)):
        decoder = a_decoder(tools=(Tool("weather"),))
        call = {"index": 0, "id": "c", "function": {"name": "weather", "arguments": arguments}}
        decoder.event(json.dumps({"choices": [{"delta": {"tool_calls": [call]}}]}))
        decoder.event("[DONE]")
        if is_whole:
            assert decoder.close()[-1].finish is FinishReason.TOOL_CALLS
        else:
            with pytest.raises(UpstreamProtocolError):
                decoder.close()


@pytest.mark.parametrize("events", [[], [chunk("x")], [chunk("x"), chunk("y")], ['{"choices":[]}']])
def test_an_end_without_either_is_truncation(events):
    """A stream that just ends is an error, however good its text looks (F08)."""
    with pytest.raises(UpstreamProtocolError):
        decode(*events)


def test_an_empty_success_is_an_error():
    """[DONE] without any choice is no answer (F07)."""
    with pytest.raises(UpstreamProtocolError, match="0 of 1"):
        decode("[DONE]")


def test_the_torn_last_event_of_a_finished_answer_is_forgiven():
    """Bytes cut off after the finish reason lose the usage, not the answer."""
    decoder = a_decoder()
    decoder.event(chunk("x", finish="stop"))
    assert decoder.event('{"choices":[],"usa', whole=False) == []
    assert decoder.close()[-1].usage.estimated


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"message": "x", "code": 429}, UpstreamBusy),
        ({"message": "x", "code": "429"}, UpstreamBusy),
        ({"message": "x", "code": 401}, UpstreamDenied),
        ({"message": "x", "code": 502}, UpstreamUnavailable),
        ({"message": "x", "code": 400}, UpstreamRejected),
        ({"code": "rate_limit_exceeded"}, UpstreamBusy),
        ({"code": "context_length_exceeded"}, UpstreamRejected),
        ({"type": "overloaded_error"}, UpstreamBusy),
        ({"type": "invalid_request_error", "code": "invalid_api_key"}, UpstreamDenied),
        ({"code": None, "type": "server_error"}, UpstreamUnavailable),
        ({"code": "never heard of"}, UpstreamUnavailable),
        ("just text", UpstreamUnavailable),
        (["odd"], UpstreamUnavailable),
    ],
)
@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_error_inside_a_success_is_an_error_of_its_kind(error, expected, after):
    """A 200 that holds an error is classified by its code, at the first event or the fourth (F07)."""
    decoder = a_decoder()
    for _ in range(after):
        decoder.event(chunk("x"))
    with pytest.raises(expected) as caught:
        decoder.event(json.dumps({"error": error, "choices": []}))
    assert type(caught.value) is expected


@pytest.mark.parametrize(
    ("event", "name"),
    [
        ('{"object":"error","message":"x","code":429}', "message"),
        ('{"message":"x","code":429}', "error"),
        ('{"type":"error","error":{"code":429}}', "error"),
    ],
)
def test_other_shapes_of_an_error_event_are_found_too(event, name):
    """An error event or vLLM's error object is no empty chunk."""
    with pytest.raises(UpstreamBusy):
        a_decoder().event(event, name=name)


def test_finish_reason_error_is_a_failure():
    """OpenRouter ends a broken answer with the finish reason "error"."""
    with pytest.raises(UpstreamUnavailable):
        decode(chunk("x"), chunk(finish="error"), "[DONE]")


@pytest.mark.parametrize(
    "delta", [{"tool_calls": [{"index": 0, "function": {"name": "f"}}]}, {"function_call": {"name": "f"}}]
)
def test_a_tool_call_nobody_asked_for_is_an_error(delta):
    """It cannot be shown to the client, so it must not pass as an empty answer."""
    with pytest.raises(UpstreamProtocolError):
        a_decoder().event(json.dumps({"choices": [{"index": 0, "delta": delta}]}))


def test_choices_are_kept_apart():
    """n=2: texts by index, one finish reason each, usage on the very last chunk."""
    chunks = decode(
        chunk("a", index=0), chunk("b", index=1), chunk("B", index=1), chunk(index=1, finish="length"),
        chunk("A", index=0, finish="stop"), "[DONE]", n=2,
    )  # fmt: skip
    assert text_of(chunks, 0) == "aA"
    assert text_of(chunks, 1) == "bB"
    ends = [(c.choice, c.finish) for c in chunks if c.finish]
    assert ends == [(0, FinishReason.STOP), (1, FinishReason.LENGTH)]
    assert [c.usage is not None for c in chunks[-2:]] == [False, True]


def test_a_provider_that_ignores_n_is_found_out():
    """Fewer choices than asked for is an error, not a smaller answer (C16)."""
    with pytest.raises(UpstreamProtocolError, match="1 of 2"):
        decode(chunk("a"), chunk(finish="stop"), "[DONE]", n=2)


def test_a_plain_json_body_is_an_answer_too():
    """A server that ignores ``stream`` still answers."""
    decoder = a_decoder()
    body = {
        "model": "x",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    chunks = decoder.body(json.dumps(body).encode()) + decoder.close()
    assert text_of(chunks) == "hi"
    assert chunks[-1].usage == Usage(prompt_tokens=1, completion_tokens=1)


def test_a_plain_completion_is_read_from_its_text_field():
    """The other endpoint's chunks hold ``text``."""
    chunks = decode('{"choices":[{"index":0,"text":"ab","finish_reason":"stop"}]}', "[DONE]", prompt="x")
    assert text_of(chunks) == "ab"


def test_reasoning_counts_as_a_first_token_but_is_not_the_answer():
    """A thinking model is at work: its reasoning moves the deadline and costs tokens, its text stays out."""
    decoder = a_decoder()
    reasoning = {"choices": [{"index": 0, "delta": {"reasoning_content": "hm hm hm"}}]}
    assert decoder.event(json.dumps(reasoning)) == []
    assert decoder.started
    decoder.event(chunk("x", finish="stop"))
    assert decoder.close()[-1].usage.completion_tokens >= 3


def test_a_pair_of_surrogates_split_over_two_chunks_is_one_character():
    """UTF-16 servers cut emoji in half; halves are joined, and a lone half becomes U+FFFD (C11)."""
    halves = [chunk("a\ud83d"), chunk("\ude80b"), chunk("c\ud83d", finish="stop"), "[DONE]"]
    text = text_of(decode(*halves))
    assert text == "a🚀bc\ufffd"
    assert text.encode()


# -- usage, cost, logprobs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2}, Usage(prompt_tokens=5, completion_tokens=2)),
        (
            {"prompt_tokens": 1000, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 900}},
            Usage(prompt_tokens=1000, completion_tokens=2, cached_tokens=900),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 2, "prompt_cache_hit_tokens": 8},
            Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=8),
        ),
        (
            {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 80}},
            Usage(prompt_tokens=10, completion_tokens=2, cached_tokens=10),
        ),
        (
            {"prompt_tokens": 1, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 7}},
            Usage(prompt_tokens=1, completion_tokens=9, reasoning_tokens=7),
        ),
        (
            {
                "prompt_tokens": 1,
                "completion_tokens": 9,
                "total_tokens": 17,
                "completion_tokens_details": {"reasoning_tokens": 7},
            },
            Usage(prompt_tokens=1, completion_tokens=16, reasoning_tokens=7),
        ),
        (
            {"prompt_tokens": 1, "completion_tokens": 9, "prompt_tokens_details": None},
            Usage(prompt_tokens=1, completion_tokens=9),
        ),
    ],
)
def test_usage_is_read_in_every_dialect_and_nothing_counts_twice(wire, expected):
    """Cached and reasoning tokens are parts; where a provider counts reasoning apart, the total decides (F17)."""
    assert decode(chunk("x", finish="stop"), json.dumps({"usage": wire}), "[DONE]")[-1].usage == expected


def test_cumulative_usage_on_every_chunk_counts_once():
    """Some servers repeat a growing usage; the last one is the answer's (F17)."""
    growing = [chunk("x", usage={"prompt_tokens": 5, "completion_tokens": n}) for n in (1, 2, 3)]
    assert decode(*growing, chunk(finish="stop"), "[DONE]")[-1].usage == Usage(prompt_tokens=5, completion_tokens=3)


def test_usage_is_found_where_groq_puts_it():
    """Under x_groq in the last chunk."""
    last = chunk(finish="stop", x_groq={"usage": {"prompt_tokens": 5, "completion_tokens": 1}})
    assert decode(chunk("x"), last, "[DONE]")[-1].usage == Usage(prompt_tokens=5, completion_tokens=1)


@pytest.mark.parametrize(
    "usage",
    [
        None, {}, [], "lots", {"prompt_tokens": "5", "completion_tokens": 1},
        {"prompt_tokens": -1, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1}, {"prompt_tokens": 10**18, "completion_tokens": 1},
        {"prompt_tokens": 0, "completion_tokens": 0},
    ],
)  # fmt: skip
def test_missing_or_senseless_usage_is_estimated_and_marked(usage):
    """An answer whose count was dropped is not free (F16)."""
    end = decode(chunk("some text", finish="stop"), json.dumps({"usage": usage}), "[DONE]")[-1]
    assert end.usage.estimated
    assert end.usage.prompt_tokens > 0
    assert end.usage.completion_tokens >= 2


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"cost": 0.95}, 950_000),
        ({"cost": 0.000001}, 1),
        ({"cost": 0.0000001}, 1),
        ({"cost": 0}, 0),
        ({"cost": 0.01, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.2}}, 210_000),
        ({"cost": 0.01, "cost_details": {"upstream_inference_cost": 0.2}}, 10_000),
        ({"cost": -1}, None),
        ({"cost": "1"}, None),
        ({"cost": True}, None),
        ({"cost": 1e308}, None),
        ({}, None),
    ],
)
def test_the_providers_own_cost_is_read_exactly_and_rounded_up(usage, expected):
    """Micro-dollars, never below what the provider states; nonsense is no figure."""
    wire = {"usage": {"prompt_tokens": 1, "completion_tokens": 1, **usage}}
    assert decode(chunk("x", finish="stop"), json.dumps(wire), "[DONE]")[-1].cost_uusd == expected


def test_logprobs_become_tokens_with_their_bytes():
    """The bytes win over the text, which cannot spell half a character; alternatives are ranked."""
    content = [
        {
            "token": "\ufffd",
            "bytes": [0xE6, 0x97],
            "logprob": -0.5,
            "top_logprobs": [
                {"token": "b", "bytes": None, "logprob": -2.0},
                {"token": "\ufffd", "bytes": [0xE6, 0x97], "logprob": -0.5},
            ],
        }
    ]
    event = {"choices": [{"index": 0, "delta": {"content": "\ufffd"}, "logprobs": {"content": content}}]}
    found = a_decoder(top_logprobs=2).event(json.dumps(event))
    assert found[0].tokens == (Token(b"\xe6\x97", -0.5, margin=1.5, top=((b"\xe6\x97", -0.5), (b"b", -2.0))),)


def test_logprobs_of_plain_completions_are_parallel_lists():
    """The older form says the same."""
    logprobs = {"tokens": ["a", "b"], "token_logprobs": [None, -1.0], "top_logprobs": [None, {"b": -1.0, "c": -3.0}]}
    event = {"choices": [{"index": 0, "text": "ab", "logprobs": logprobs}]}
    found = a_decoder(prompt="x", top_logprobs=2).event(json.dumps(event))
    assert found[0].tokens == (Token(b"b", -1.0, margin=2.0, top=((b"b", -1.0), (b"c", -3.0))),)


@pytest.mark.parametrize(
    "logprobs",
    [
        5, {"content": 5}, {"content": [5]}, {"content": [{"token": "a", "logprob": "x"}]},
        {"content": [{"token": "a", "logprob": -1, "bytes": [300]}]}, {"content": [{"logprob": -1, "bytes": ["x"]}]},
        {"content": [{"token": "a", "logprob": True}]}, {"tokens": ["a"], "token_logprobs": []},
    ],
)  # fmt: skip
def test_malformed_logprobs_matter_only_where_they_were_asked_for(logprobs):
    """Unasked, they are skipped unread; asked for, they are a protocol error."""
    event = json.dumps({"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": logprobs}]})
    assert a_decoder().event(event)[0].tokens == ()
    with pytest.raises(UpstreamProtocolError):
        a_decoder(top_logprobs=1).event(event)
