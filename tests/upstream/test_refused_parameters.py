"""A parameter that a provider rejects is left out where that is honest, remembered, and said so."""

import pytest
from builders import refusing
from upstream_builders import MODEL, a_client, a_request, collect, run

from edged.core import Sampling, Tool
from edged.errors import ParameterRefused, UpstreamRejected
from edged.testing import ScriptedUpstream
from edged.upstream.codec import Call
from edged.upstream.refusals import Refusals, may_drop, refused_parameter

TARGET = ("cloud", "m")
SENT = {
    "max_tokens": 5,
    "stream_options": {},
    "temperature": 0.1,
    "top_p": 0.5,
    "seed": 1,
    "parallel_tool_calls": True,
    "logprobs": True,
    "usage": {},
}


def openai_error(message, **fields):
    return {"error": {"message": message, "type": "invalid_request_error", **fields}}


@pytest.mark.parametrize(
    ("document", "name"),
    [
        # api.openai.com, reasoning models
        (
            openai_error(
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' "
                "instead.",
                param="max_tokens",
                code="unsupported_parameter",
            ),
            "max_tokens",
        ),
        (
            openai_error(
                "Unsupported value: 'temperature' does not support 0.1 with this model. Only the default (1) value "
                "is supported.",
                param="temperature",
                code="unsupported_value",
            ),
            "temperature",
        ),
        (openai_error("x", param="stream_options.include_usage", code="unknown_parameter"), "stream_options"),
        (openai_error("Unrecognized request argument supplied: 'seed'", param=None, code=None), "seed"),
        # api.anthropic.com
        ({"type": "error", **openai_error("`temperature` is deprecated for this model.")}, "temperature"),
        (
            openai_error("`temperature` and `top_p` cannot both be specified for this model. Please use only one."),
            "top_p",
        ),
        (openai_error("seed: Extra inputs are not permitted"), "seed"),
        # vLLM and others behind FastAPI
        (
            {
                "object": "error",
                "message": "[{'type': 'extra_forbidden', 'loc': ('body', 'stream_options'), "
                "'msg': 'Extra inputs are not permitted'}]",
                "code": 400,
            },
            "stream_options",
        ),
        (
            {
                "detail": [
                    {"type": "extra_forbidden", "loc": ["body", "usage"], "msg": "Extra inputs are not permitted"}
                ]
            },
            "usage",
        ),
        # Google's OpenAI-compatible endpoint, Groq
        (openai_error('Invalid JSON payload received. Unknown name "seed": Cannot find field.'), "seed"),
        (openai_error("property 'parallel_tool_calls' is unsupported"), "parallel_tool_calls"),
    ],
)
def test_a_refusal_that_names_a_parameter_is_understood(document, name):
    """Whether in `param`, in the message or in FastAPI's `detail`."""
    assert refused_parameter(400, document, SENT) == name
    assert refused_parameter(422, document, SENT) == name
    assert refused_parameter(400, document, {"model": "m"}) is None
    assert refused_parameter(500, document, SENT) is None


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"error": None},
        {"error": "unsupported"},
        openai_error("the temperature of the sun is not supported"),
        openai_error("'logprobs' is not supported", param="logprobs", code="unsupported_parameter"),
        openai_error("'tools' is not supported", param="tools", code="unsupported_parameter"),
        openai_error("'temperature' must be at most 1", param="temperature", code="invalid_value"),
        openai_error("This model's maximum context length is 8192 tokens", code="context_length_exceeded"),
        {"error": ["odd"]},
        {"detail": 5},
    ],
)
def test_any_other_refusal_teaches_nothing(document):
    """Mere words, values out of range, and parameters that matter: the refusal stands."""
    assert refused_parameter(400, document, SENT) is None


@pytest.mark.parametrize(
    ("name", "value", "escalated", "pinned"),
    [
        ("stream_options", {}, True, True),
        ("usage", {}, True, True),
        ("seed", 1, True, False),
        ("temperature", 0.0, True, False),
        ("top_p", 0.5, True, False),
        ("presence_penalty", 1.0, True, False),
        ("frequency_penalty", 1.0, True, False),
        ("parallel_tool_calls", True, True, True),
        ("parallel_tool_calls", False, False, False),
        ("logprobs", True, False, False),
        ("n", 2, False, False),
        ("stop", ["a"], False, False),
        ("tools", [], False, False),
        ("tool_choice", "none", False, False),
        ("response_format", {}, False, False),
        ("logit_bias", {}, False, False),
        ("max_tokens", 5, False, False),
        ("provider", {}, False, False),
    ],
)
def test_the_table_of_what_may_be_left_out(name, value, escalated, pinned):
    """What changes the answer's form, length or content as asked is never left out; a pin is an order."""
    assert may_drop(name, value, pinned=False) is escalated
    assert may_drop(name, value, pinned=True) is pinned


def test_a_renamed_limit_is_renamed_and_a_refused_pair_is_left_alone():
    """max_tokens becomes max_completion_tokens; where neither is known nothing is dropped in silence."""
    refusals, call = Refusals(), Call("/x", {"model": "m", "max_tokens": 5})
    refusals.learn(TARGET, "max_tokens")
    fitted = refusals.fit(call, TARGET, pinned=True)
    assert fitted.body == {"model": "m", "max_completion_tokens": 5}
    assert fitted.dropped == ()
    refusals.learn(TARGET, "max_completion_tokens")
    assert refusals.fit(call, TARGET, pinned=False) is call
    assert refusals.fit(call, ("cloud", "other"), pinned=False) is call


# -- over real sockets -----------------------------------------------------------------------------------------------


def test_a_refused_parameter_is_learned_once_and_every_call_is_counted(caplog):
    """The first call says what is refused; the next ones, of any request, go without it and say so."""

    async def main():
        async with ScriptedUpstream(respond=refusing("max_tokens", "temperature")) as up, a_client(up) as client:
            request = a_request(max_tokens=5, sampling=Sampling(temperature=0.5))
            for name in ("max_tokens", "temperature"):
                with pytest.raises(ParameterRefused) as caught:
                    await collect(client, request)
                assert caught.value.param == name
                assert not caught.value.may_cost
            chunks = await collect(client, request)
            assert chunks[-1].dropped_parameters == ("temperature",)
            assert up.seen[-1].body["max_completion_tokens"] == 5
            plain = await collect(client, a_request())
            assert plain[-1].dropped_parameters == ()
            assert client.calls == len(up.seen) == 4
            assert client.refusals.learned == {("cloud", MODEL): {"max_tokens", "temperature"}}

    run(main)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    assert all("left out" in warning for warning in warnings)


def test_a_pin_is_never_answered_without_what_it_asked_for():
    """The client named this model: its refusal is the answer, each time anew."""

    async def main():
        async with ScriptedUpstream(respond=refusing("temperature")) as up, a_client(up) as client:
            request = a_request(model=f"cloud/{MODEL}", sampling=Sampling(temperature=0.5))
            for _ in range(2):
                with pytest.raises(UpstreamRejected) as caught:
                    await collect(client, request)
                assert type(caught.value) is UpstreamRejected
                assert caught.value.param == "temperature"
            assert len(up.seen) == 2

    run(main)


def test_a_stream_without_usage_is_estimated():
    """A provider that refuses stream_options still costs something (F16)."""

    async def main():
        async with ScriptedUpstream(respond=refusing("stream_options")) as up, a_client(up) as client:
            with pytest.raises(ParameterRefused):
                await collect(client)
            chunks = await collect(client)
            assert chunks[-1].usage.estimated
            assert chunks[-1].dropped_parameters == ("stream_options",)

    run(main)


@pytest.mark.parametrize("parallel", [True, False])
def test_a_ban_on_parallel_calls_is_not_left_out(parallel):
    """True is every provider's default; False forbids something."""

    async def main():
        async with ScriptedUpstream(respond=refusing("parallel_tool_calls")) as up, a_client(up) as client:
            with pytest.raises(UpstreamRejected) as caught:
                await collect(client, a_request(tools=(Tool("f"),), parallel_tool_calls=parallel))
            assert isinstance(caught.value, ParameterRefused) is parallel

    run(main)


def test_what_anthropic_lacks_is_reported_with_the_answer():
    """What was left out before the first call is said as well."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up, kind="anthropic") as client:
            chunks = await collect(client, a_request(sampling=Sampling(seed=7)))
            assert chunks[-1].dropped_parameters == ("seed",)

    run(main)
