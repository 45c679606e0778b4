"""Rules of the OpenAI bodies: each field is honoured, ignored with a reason or refused, and every refusal names it."""

import json
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params

from edged.core import Chat, Completion, Limits, Locality, Message, Request, Role, ToolCall
from edged.errors import InvalidRequest, Unsupported
from edged.server.openai_bodies import IGNORED, REFUSED, ChatBody, CompletionBody
from edged.server.openai_requests import ParsedRequest, chat_request, completion_request
from edged.server.wire import encode_json, error_body, parse_json

HELLO = [{"role": "user", "content": "hello"}]


def chat(header: str | None = None, **fields: Any) -> Request:
    return parse_chat(header, **fields).request


def parse_chat(header: str | None = None, **fields: Any) -> ParsedRequest:
    document = {"model": "auto", "messages": HELLO, **fields}
    return chat_request(document, id="r1", received_s=1.5, tenant="t", header=header)


def complete(header: str | None = None, **fields: Any) -> Request:
    document = {"model": "auto", "prompt": "once", **fields}
    return completion_request(document, id="r1", received_s=1.5, tenant="t", header=header).request


def says(message: dict[str, Any]) -> Message:
    request = chat(messages=[message])
    assert isinstance(request.input, Chat)
    return request.input.messages[0]


def prompt_of(prompt: Any) -> Any:
    request = complete(prompt=prompt)
    assert isinstance(request.input, Completion)
    return request.input.prompt


# -- the three groups ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "model"), [(chat_params, ChatBody), (completion_params, CompletionBody)], ids=["chat", "completions"]
)
def test_every_field_openai_documents_is_known(params: Any, model: Any) -> None:
    """A field of the official client's is honoured, ignored with a reason, or refused: none is left to chance."""
    documented = set(get_type_hints(params.CompletionCreateParamsNonStreaming))
    known = set(model.model_fields)
    assert documented - known == set()
    extensions = known - documented
    assert extensions <= {"top_k", "min_p", "repeat_penalty", "edged"}


def test_no_field_is_both_ignored_and_refused() -> None:
    """The groups are disjoint, name real fields, and every ignored field has its reason."""
    fields = set(ChatBody.model_fields) | set(CompletionBody.model_fields)
    assert not set(IGNORED) & set(REFUSED)
    assert set(IGNORED) | set(REFUSED) <= fields
    assert all(IGNORED.values())


IGNORED_VALUES: dict[str, Any] = {
    "user": "u1",
    "safety_identifier": "u1",
    "metadata": {"api_base": "http://169.254.169.254/"},
    "store": True,
    "service_tier": "flex",
    "prompt_cache_key": "k",
    "prompt_cache_options": {"mode": "explicit"},
    "prompt_cache_retention": "24h",
}


def test_ignored_fields_leave_the_request_as_it_was() -> None:
    """What cannot change the answer is accepted and changes nothing."""
    assert set(IGNORED_VALUES) == set(IGNORED)
    assert chat(**IGNORED_VALUES) == chat()


REFUSED_VALUES: list[tuple[str, Any]] = [
    ("functions", [{"name": "f"}]),
    ("function_call", {"name": "f"}),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "alloy", "format": "mp3"}),
    ("prediction", {"type": "content", "content": "x"}),
    ("reasoning_effort", "low"),
    ("verbosity", "high"),
    ("web_search_options", {}),
    ("moderation", {"model": "m"}),
]


@pytest.mark.parametrize(("field", "value"), REFUSED_VALUES)
def test_a_field_that_would_change_the_answer_is_never_ignored(field: str, value: Any) -> None:
    """What is not honoured yet is a 400 that names the field and says so."""
    with pytest.raises(Unsupported) as caught:
        chat(**{field: value})
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "unsupported_parameter", field)
    assert "not supported" in caught.value.message


@pytest.mark.parametrize(("field", "value"), [("echo", True), ("echo", 0), ("suffix", "end"), ("best_of", 3)])
def test_a_completion_field_that_is_not_honoured_is_refused(field: str, value: Any) -> None:
    """Likewise for plain completions."""
    with pytest.raises(Unsupported) as caught:
        complete(**{field: value})
    assert caught.value.param == field


def test_values_that_ask_for_nothing_are_accepted() -> None:
    """Clients spell out defaults; the defaults of a refused field refuse nothing."""
    for name, values in REFUSED.items():
        for value in values:
            if name in ChatBody.model_fields:
                assert chat(**{name: value}) == chat()
            else:
                assert complete(**{name: value}) == complete()
    assert complete(best_of=1) == complete()
    assert complete(best_of=2, n=2).n == 2


@pytest.mark.parametrize(
    "field", ["api_base", "base_url", "api_key", "extra_headers", "extra_body", "headers", "Model"]
)
@pytest.mark.parametrize("make", [chat, complete], ids=["chat", "completions"])
def test_a_client_cannot_name_an_address_a_key_or_a_header(make: Any, field: str) -> None:
    """E08: whatever is not a documented field is an unknown parameter."""
    with pytest.raises(InvalidRequest) as caught:
        make(**{field: "http://169.254.169.254/"})
    assert (caught.value.code, caught.value.param) == ("unknown_parameter", field)


NOT_NULLABLE = {"model", "messages", "prompt"}


@pytest.mark.parametrize("name", sorted(set(ChatBody.model_fields) - NOT_NULLABLE))
def test_null_means_not_given_in_chat(name: str) -> None:
    """Clients send explicit nulls."""
    assert chat(**{name: None}) == chat()


@pytest.mark.parametrize("name", sorted(set(CompletionBody.model_fields) - NOT_NULLABLE))
def test_null_means_not_given_in_completions(name: str) -> None:
    """Clients send explicit nulls."""
    assert complete(**{name: None}) == complete()


# -- bad values ------------------------------------------------------------------------------------------------------

BAD_VALUES: list[tuple[dict[str, Any], str, str, str]] = [
    ({"model": None}, "invalid_type", "model", "a string"),
    ({"model": 5}, "invalid_type", "model", "a string"),
    ({"model": ""}, "invalid_value", "model", "at least 1"),
    ({"model": "m" * 10_000}, "invalid_value", "model", "at most 200"),
    ({"temperature": -0.1}, "invalid_value", "temperature", "at least 0"),
    ({"temperature": 2.1}, "invalid_value", "temperature", "at most 2"),
    ({"temperature": "1"}, "invalid_type", "temperature", "a number"),
    ({"temperature": True}, "invalid_type", "temperature", "a number"),
    ({"temperature": float("nan")}, "invalid_value", "temperature", "finite"),
    ({"temperature": float("inf")}, "invalid_value", "temperature", "finite"),
    ({"temperature": 10**400}, "invalid_value", "temperature", "too large"),
    ({"top_p": 1.01}, "invalid_value", "top_p", "at most 1"),
    ({"top_k": -1}, "invalid_value", "top_k", "at least 0"),
    ({"top_k": 1.5}, "invalid_type", "top_k", "an integer"),
    ({"top_k": 2**31}, "invalid_value", "top_k", "at most 2147483647"),
    ({"min_p": 2}, "invalid_value", "min_p", "at most 1"),
    ({"presence_penalty": 2.5}, "invalid_value", "presence_penalty", "at most 2"),
    ({"frequency_penalty": -2.5}, "invalid_value", "frequency_penalty", "at least -2"),
    ({"repeat_penalty": 0}, "invalid_value", "repeat_penalty", "greater than 0"),
    ({"seed": 1.0}, "invalid_type", "seed", "an integer"),
    ({"seed": 2**63}, "invalid_value", "seed", "at most"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens", "at least 1"),
    ({"max_tokens": -1}, "invalid_value", "max_tokens", "at least 1"),
    ({"max_tokens": True}, "invalid_type", "max_tokens", "an integer"),
    ({"max_tokens": 1e9}, "invalid_type", "max_tokens", "an integer"),
    ({"max_tokens": "16"}, "invalid_type", "max_tokens", "an integer"),
    ({"n": 0}, "invalid_value", "n", "at least 1"),
    ({"n": -1}, "invalid_value", "n", "at least 1"),
    ({"n": 5_000_000}, "invalid_value", "n", "at most 8"),
    ({"n": True}, "invalid_type", "n", "an integer"),
    ({"stop": 5}, "invalid_type", "stop", "a string or an array"),
    ({"stop": {}}, "invalid_type", "stop", "a string or an array"),
    ({"stop": ""}, "invalid_value", "stop", "at least 1"),
    ({"stop": ["a", ""]}, "invalid_value", "stop[1]", "at least 1"),
    ({"stop": ["a", 5]}, "invalid_type", "stop[1]", "a string"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "invalid_value", "stop", "at most 4"),
    ({"stop": "s" * 5_000}, "invalid_value", "stop", "at most 1000"),
    ({"stream": "true"}, "invalid_type", "stream", "true or false"),
    ({"stream": 1}, "invalid_type", "stream", "true or false"),
    ({"stream_options": {}}, "invalid_value", "stream_options", "stream to be true"),
    ({"stream": True, "stream_options": []}, "invalid_type", "stream_options", "an object"),
    (
        {"stream": True, "stream_options": {"include_usage": 1}},
        "invalid_type",
        "stream_options.include_usage",
        "true or false",
    ),
    ({"stream": True, "stream_options": {"x": 1}}, "unknown_parameter", "stream_options.x", "unknown"),
    ({"logit_bias": []}, "invalid_type", "logit_bias", "an object"),
    ({"logit_bias": {"abc": 1}}, "invalid_value", "logit_bias", "token ids"),
    ({"logit_bias": {"-1": 5}}, "invalid_value", "logit_bias", "token ids"),
    ({"logit_bias": {"05": 5}}, "invalid_value", "logit_bias", "token ids"),
    ({"logit_bias": {"\u0665": 5}}, "invalid_value", "logit_bias", "token ids"),
    ({"logit_bias": {"9" * 10: 5}}, "invalid_value", "logit_bias", "token ids"),
    ({"logit_bias": {"9" * 5_000: 5}}, "invalid_value", "logit_bias", "token ids"),
    ({"logit_bias": {"5": "x"}}, "invalid_type", "logit_bias", "numbers"),
    ({"logit_bias": {"5": True}}, "invalid_type", "logit_bias", "numbers"),
    ({"logit_bias": {"5": 101}}, "invalid_value", "logit_bias", "-100 to 100"),
    ({"logit_bias": {"5": float("nan")}}, "invalid_value", "logit_bias", "-100 to 100"),
    ({"logit_bias": {str(i): 1 for i in range(1_000)}}, "invalid_value", "logit_bias", "at most 300"),
    ({"user": 5}, "invalid_type", "user", "a string"),
    ({"edged": "local_only"}, "invalid_type", "edged", "an object"),
    (
        {"edged": {"locality": "here"}},
        "invalid_value",
        "edged.locality",
        "'any', 'redact', 'site_only', 'local_only' or 'cloud_only'",
    ),
    ({"edged": {"min_confidence": 1.5}}, "invalid_value", "edged.min_confidence", "at most 1"),
    ({"edged": {"deadline_ms": 0}}, "invalid_value", "edged.deadline_ms", "greater than 0"),
    ({"edged": {"max_cost_usd": -1}}, "invalid_value", "edged.max_cost_usd", "at least 0"),
    ({"edged": {"task": "../x"}}, "invalid_value", "edged.task", "match"),
    ({"edged": {"key": 1}}, "unknown_parameter", "edged.key", "unknown"),
]


@pytest.mark.parametrize("make", [chat, complete], ids=["chat", "completions"])
@pytest.mark.parametrize(("fields", "code", "param", "said"), BAD_VALUES)
def test_a_bad_value_names_the_field_and_the_limit(
    make: Any, fields: dict[str, Any], code: str, param: str, said: str
) -> None:
    """C13, C15, C16, C17: a wrong type or a value out of range is a 400 with the right param, on both endpoints."""
    with pytest.raises(InvalidRequest) as caught:
        make(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
    assert said in caught.value.message
    assert param in caught.value.message
    assert len(caught.value.message) < 250


BAD_CHATS: list[tuple[dict[str, Any], str, str]] = [
    ({"messages": None}, "invalid_type", "messages"),
    ({"messages": "hello"}, "invalid_type", "messages"),
    ({"messages": {}}, "invalid_type", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": HELLO * 10_001}, "invalid_value", "messages"),
    ({"max_completion_tokens": 0}, "invalid_value", "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_value", "max_completion_tokens"),
    ({"logprobs": 1}, "invalid_type", "logprobs"),
    ({"top_logprobs": 3}, "invalid_value", "top_logprobs"),
    ({"logprobs": False, "top_logprobs": 3}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 10**9}, "invalid_value", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "invalid_value", "top_logprobs"),
    ({"metadata": {"a": 1}}, "invalid_type", "metadata.a"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "invalid_value", "metadata"),
    ({"prompt": "once"}, "unknown_parameter", "prompt"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD_CHATS)
def test_a_bad_chat_field_is_named(fields: dict[str, Any], code: str, param: str) -> None:
    """C01, C16, C17 in the fields that only chats have."""
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


def test_required_fields_are_asked_for_by_name() -> None:
    """C01: `{}` says what is missing."""
    for document, param in (({}, "model"), ({"model": "auto"}, "messages")):
        with pytest.raises(InvalidRequest) as caught:
            chat_request(document, id="r1", received_s=0)
        assert (caught.value.code, caught.value.param) == ("missing_required_parameter", param)
    with pytest.raises(InvalidRequest) as caught:
        completion_request({"model": "auto"}, id="r1", received_s=0)
    assert (caught.value.code, caught.value.param) == ("missing_required_parameter", "prompt")


# -- messages --------------------------------------------------------------------------------------------------------

CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
AUDIO = {"type": "input_audio", "input_audio": {}}
TEXT = {"type": "text", "text": "hi"}

BAD_MESSAGES: list[tuple[Any, str, str]] = [
    (None, "invalid_type", "messages[0]"),
    ("hello", "invalid_type", "messages[0]"),
    ({}, "missing_required_parameter", "messages[0].role"),
    ({"role": "user"}, "missing_required_parameter", "messages[0].content"),
    ({"role": "robot", "content": "x"}, "invalid_value", "messages[0].role"),
    ({"role": ["user"], "content": "x"}, "invalid_value", "messages[0].role"),
    ({"role": "function", "name": "f", "content": "x"}, "unsupported_parameter", "messages[0].role"),
    ({"role": "user", "content": None}, "invalid_type", "messages[0].content"),
    ({"role": "system", "content": None}, "invalid_type", "messages[0].content"),
    ({"role": "assistant", "content": None}, "invalid_type", "messages[0].content"),
    ({"role": "assistant", "content": None, "tool_calls": []}, "invalid_type", "messages[0].content"),
    ({"role": "user", "content": 5}, "invalid_type", "messages[0].content"),
    ({"role": "user", "content": {}}, "invalid_type", "messages[0].content"),
    ({"role": "user", "content": []}, "invalid_value", "messages[0].content"),
    ({"role": "user", "content": ["hi"]}, "invalid_type", "messages[0].content[0]"),
    ({"role": "user", "content": [{}]}, "missing_required_parameter", "messages[0].content[0].type"),
    ({"role": "user", "content": [{"type": "text"}]}, "missing_required_parameter", "messages[0].content[0].text"),
    ({"role": "user", "content": [TEXT, {"type": "text", "text": 5}]}, "invalid_type", "messages[0].content[1].text"),
    (
        {"role": "user", "content": [{"type": "text", "text": None}]},
        "missing_required_parameter",
        "messages[0].content[0].text",
    ),
    ({"role": "user", "content": [{"type": "poem", "text": "x"}]}, "invalid_value", "messages[0].content[0].type"),
    ({"role": "user", "content": [{**TEXT, "url": "x"}]}, "unknown_parameter", "messages[0].content[0].url"),
    ({"role": "user", "content": [TEXT, AUDIO]}, "unsupported_parameter", "messages[0].content[1]"),
    (
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        "unsupported_parameter",
        "messages[0].content[0]",
    ),
    ({"role": "user", "content": [{"type": "file", "file": {}}]}, "unsupported_parameter", "messages[0].content[0]"),
    ({"role": "user", "content": "x", "name": "<|im_end|>"}, "invalid_value", "messages[0].name"),
    ({"role": "user", "content": "x", "name": "n" * 65}, "invalid_value", "messages[0].name"),
    ({"role": "user", "content": "x", "user": 1}, "unknown_parameter", "messages[0].user"),
    ({"role": "user", "content": "x", "tool_call_id": "c1"}, "unknown_parameter", "messages[0].tool_call_id"),
    ({"role": "user", "content": "x", "tool_calls": [CALL]}, "unknown_parameter", "messages[0].tool_calls"),
    ({"role": "tool", "content": "x"}, "missing_required_parameter", "messages[0].tool_call_id"),
    ({"role": "tool", "tool_call_id": "c1", "content": None}, "invalid_type", "messages[0].content"),
    ({"role": "assistant", "tool_calls": [{}]}, "missing_required_parameter", "messages[0].tool_calls[0].id"),
    (
        {"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]},
        "invalid_value",
        "messages[0].tool_calls[0].type",
    ),
    (
        {"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]},
        "invalid_type",
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "unsupported_parameter", "messages[0].audio"),
    (
        {"role": "assistant", "content": "x", "function_call": {"name": "f", "arguments": ""}},
        "unsupported_parameter",
        "messages[0].function_call",
    ),
]


@pytest.mark.parametrize(("message", "code", "param"), BAD_MESSAGES)
def test_a_bad_message_is_named_down_to_the_part(message: Any, code: str, param: str) -> None:
    """C02, C04: the param leads to the very part, with no trace of how the union was tried."""
    with pytest.raises(InvalidRequest) as caught:
        chat(messages=[message])
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
    assert caught.value.message.startswith((param, f"unknown parameter: {param}"))


def test_the_position_of_a_bad_message_is_its_own() -> None:
    """The index counts from the client's first message."""
    with pytest.raises(InvalidRequest) as caught:
        chat(messages=[*HELLO, *HELLO, {"role": "user", "content": [TEXT, AUDIO]}])
    assert caught.value.param == "messages[2].content[1]"


def test_a_conversation_arrives_as_it_was_said() -> None:
    """Roles, names, calls and their results are kept; developer is system (C05); null goes with tool calls (C02)."""
    request = chat(
        messages=[
            {"role": "developer", "content": "be brief", "name": "boss"},
            {
                "role": "user",
                "content": [TEXT, {**TEXT, "text": "there", "prompt_cache_breakpoint": {"mode": "explicit"}}],
            },
            {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "c2", "index": 1}]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "42"}], "name": "f"},
            {"role": "assistant", "content": ""},
        ]
    )
    assert request.input == Chat(
        (
            Message(Role.SYSTEM, "be brief", "boss"),
            Message(Role.USER, "hi\nthere"),
            Message(Role.ASSISTANT, None, tool_calls=(ToolCall("c1", "f", "{}"), ToolCall("c2", "f", "{}"))),
            Message(Role.TOOL, "42", "f", tool_call_id="c1"),
            Message(Role.ASSISTANT, ""),
        )
    )


def test_an_answer_can_be_sent_back_as_history() -> None:
    """A message dumped by the official client, nulls included, is a legal turn; so is a refusal."""
    nulls = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
    assert says({"role": "assistant", "content": "yes", **nulls}) == Message(Role.ASSISTANT, "yes")
    assert says({"role": "assistant", "content": None, "refusal": "no"}) == Message(Role.ASSISTANT, "no")
    parts = [{"type": "refusal", "refusal": "no"}]
    assert says({"role": "assistant", "content": parts}) == Message(Role.ASSISTANT, "no")


# -- what a good body becomes ----------------------------------------------------------------------------------------


def test_a_full_chat_body_becomes_one_request() -> None:
    """Every honoured field arrives; an integer is a fine number."""
    parsed = parse_chat(
        model="smollm2",
        temperature=1,
        top_p=0.9,
        top_k=0,
        min_p=0.1,
        presence_penalty=-2,
        frequency_penalty=2,
        repeat_penalty=1.1,
        logit_bias={"0": -100, "50256": 1.5},
        seed=-(2**63),
        max_completion_tokens=7,
        stop=["a", "b"],
        n=8,
        logprobs=True,
        top_logprobs=20,
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
    )
    request = parsed.request
    assert (request.id, request.model, request.received_s, request.tenant) == ("r1", "smollm2", 1.5, "t")
    assert request.sampling.temperature == 1
    assert request.sampling.top_k == 0
    assert request.sampling.logit_bias == ((0, -100.0), (50256, 1.5))
    assert request.sampling.seed == -(2**63)
    assert (request.max_tokens, request.stop, request.n) == (7, ("a", "b"), 8)
    assert (request.top_logprobs, request.stream, parsed.include_usage) == (20, True, True)


def test_what_was_not_asked_for_is_none() -> None:
    """A backend can tell "not given" from a value."""
    request = chat()
    assert request == Request(
        id="r1", model="auto", input=Chat((Message(Role.USER, "hello"),)), received_s=1.5, tenant="t", limits=Limits()
    )


def test_token_limits_may_agree_but_not_differ() -> None:
    """C17: both names are honoured."""
    assert chat(max_tokens=5, max_completion_tokens=5).max_tokens == 5
    assert chat(max_tokens=5).max_tokens == chat(max_completion_tokens=5).max_tokens == 5
    assert chat(max_tokens=10**9).max_tokens == 10**9


def test_logprobs_without_a_number_means_those_of_the_chosen_tokens() -> None:
    """0 is not None: it asks."""
    assert chat(logprobs=True).top_logprobs == 0
    assert chat(logprobs=False).top_logprobs is None
    assert complete(logprobs=0).top_logprobs == 0
    assert complete(logprobs=5).top_logprobs == 5


@pytest.mark.parametrize("value", [6, -1, True, "5"])
def test_a_completion_has_up_to_five_logprobs(value: Any) -> None:
    """OpenAI's limit, and no boolean."""
    with pytest.raises(InvalidRequest) as caught:
        complete(logprobs=value)
    assert caught.value.param == "logprobs"


def test_one_stop_string_needs_no_array() -> None:
    """Both spellings are the same request."""
    assert chat(stop="a") == chat(stop=["a"])
    assert chat(stop=[]) == chat()


@pytest.mark.parametrize(
    ("prompt", "becomes"),
    [("once", "once"), (["once"], "once"), ([1, 2, 3], (1, 2, 3)), ([[1, 2, 3]], (1, 2, 3)), ("[1]", "[1]")],
)
def test_a_prompt_is_text_or_tokens(prompt: Any, becomes: Any) -> None:
    """All four spellings that mean one prompt."""
    assert prompt_of(prompt) == becomes


@pytest.mark.parametrize(
    ("prompt", "code", "param"),
    [
        (None, "invalid_type", "prompt"),
        (5, "invalid_type", "prompt"),
        ({}, "invalid_type", "prompt"),
        ("", "invalid_value", "prompt"),
        ([], "invalid_value", "prompt"),
        ([""], "invalid_value", "prompt[0]"),
        ([[]], "invalid_value", "prompt[0]"),
        ([["a"]], "invalid_type", "prompt[0][0]"),
        ([[[1]]], "invalid_type", "prompt[0][0]"),
        (["a", "b"], "unsupported_parameter", "prompt"),
        ([[1], [2]], "unsupported_parameter", "prompt"),
        ([1, "a"], "invalid_type", "prompt[1]"),
        ([1, True], "invalid_type", "prompt[1]"),
        ([1, 1.0], "invalid_type", "prompt[1]"),
        ([-1], "invalid_value", "prompt[0]"),
        ([2**31], "invalid_value", "prompt[0]"),
    ],
)
def test_a_prompt_that_is_not_one_prompt_is_refused(prompt: Any, code: str, param: str) -> None:
    """C01: an empty prompt is a 400, as are several prompts and anything that is not a token id."""
    with pytest.raises(InvalidRequest) as caught:
        complete(prompt=prompt)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)


# -- the request's own limits ----------------------------------------------------------------------------------------


def test_limits_come_from_the_body_or_the_header() -> None:
    """Both spellings hold the same object; milliseconds and dollars become the units used inside."""
    options = {
        "locality": "local_only",
        "task": "intent",
        "deadline_ms": 1500,
        "min_confidence": 1.0,
        "max_cost_usd": 0.29,
    }
    limits = Limits(
        locality=Locality.LOCAL_ONLY, task="intent", deadline_s=1.5, min_confidence=1.0, max_cost_uusd=290_000
    )
    assert chat(edged=options).limits == limits
    assert chat(header=json.dumps(options)).limits == limits
    assert complete(header=json.dumps(options)).limits == limits


def test_of_body_and_header_the_tighter_holds() -> None:
    """A proxy's header cannot loosen what the body asks, nor the body what the header asks."""
    body = {"deadline_ms": 500, "min_confidence": 0.2, "max_cost_usd": 1}
    header = '{"locality": "cloud_only", "deadline_ms": 900, "min_confidence": 0.7, "max_cost_usd": 0.0000019}'
    assert chat(header, edged=body).limits == Limits(
        locality=Locality.CLOUD_ONLY, deadline_s=0.5, min_confidence=0.7, max_cost_uusd=1
    )
    assert chat('{"locality": "local_only"}', edged={"locality": "any"}).limits.locality is Locality.LOCAL_ONLY


@pytest.mark.parametrize(
    ("body", "header", "param"),
    [
        ({"locality": "local_only"}, '{"locality": "cloud_only"}', "edged.locality"),
        ({"task": "a"}, '{"task": "b"}', "edged.task"),
        (None, "local_only", "x-edged"),
        (None, "[]", "x-edged"),
        (None, "\udcff", "x-edged"),
        (None, '{"locality": "here"}', "x-edged.locality"),
        (None, '{"base_url": "http://x"}', "x-edged.base_url"),
    ],
)
def test_a_bad_header_or_a_contradiction_is_named(body: Any, header: str, param: str) -> None:
    """Of two different pins neither is tighter: the client has to decide."""
    with pytest.raises(InvalidRequest) as caught:
        chat(header, edged=body)
    assert (caught.value.status, caught.value.param) == (400, param)


# -- anything else ---------------------------------------------------------------------------------------------------

FIELDS = sorted(set(ChatBody.model_fields) | set(CompletionBody.model_fields))
NESTED = ["role", "content", "type", "text", "locality", "include_usage", "tool_calls", "function", "5"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "text", "tool"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NESTED) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "function"]) | SCALARS, "content": ANYTHING},
    optional={"tool_calls": ANYTHING, "tool_call_id": ANYTHING, "name": ANYTHING},
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(FIELDS, ANYTHING),
        "model": st.just("auto") | ANYTHING,
        "messages": st.lists(MESSAGE, max_size=3) | ANYTHING,
        "prompt": st.text() | ANYTHING,
    },
)


@given(
    document=BODIES | st.dictionaries(st.text(max_size=5), ANYTHING, max_size=3),
    header=st.none() | st.text(max_size=20),
)
@settings(max_examples=120, deadline=None)
@pytest.mark.parametrize("make", [chat_request, completion_request], ids=["chat", "completions"])
def test_any_document_gives_a_request_or_an_invalid_request(
    make: Any, document: dict[str, Any], header: str | None
) -> None:
    """No JSON document raises anything else, and every error can be sent."""
    parsed, error = None, None
    try:
        parsed = make(document, id="r1", received_s=0.0, header=header)
    except InvalidRequest as exc:
        error = exc
    if error is None:
        assert isinstance(parsed, ParsedRequest)
    else:
        assert error.status == 400
        assert len(encode_json(error_body(error))) < 2_000


@given(fields=st.dictionaries(st.sampled_from(FIELDS), SCALARS, max_size=3))
@settings(max_examples=300, deadline=None)
def test_a_request_with_odd_scalars_is_judged_field_by_field(fields: dict[str, Any]) -> None:
    """Whatever is refused is refused for one of the fields that were given."""
    try:
        chat(**fields)
    except InvalidRequest as exc:
        blamed = (exc.param or "").partition("[")[0].partition(".")[0]
        assert blamed in fields or blamed == "stream_options"


def test_a_hostile_body_is_refused_quickly() -> None:
    """The first bad message ends the validation: a quarter of a million of them cost no more than one."""
    document = parse_json(b'{"model": "auto", "messages": [' + b"{}," * 200_000 + b"{}]}")
    with pytest.raises(InvalidRequest) as caught:
        chat_request(document, id="r1", received_s=0)
    assert caught.value.param == "messages[0].role"
