"""Tools and structured output through the official client, unchanged: answered by the box and by the cloud alike."""

import json
from typing import Literal

import openai
import pytest
from daemon_builders import config_text, daemon, scripted_cloud
from pydantic import BaseModel, Field

from edged.testing.upstream import Reply

MESSAGES = [{"role": "user", "content": "What is the weather in Paris?"}]
FIXED = {"temperature": 0.0, "seed": 7, "max_tokens": 80}


class Weather(BaseModel):
    city: str = Field(max_length=20)
    sky: Literal["sunny", "cloudy", "rainy"]


TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": Weather.model_json_schema()}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CALL = ("get_weather", '{"city": "Rome", "sky": "sunny"}')


@pytest.fixture(scope="module")
def box(tmp_path_factory, model_path):
    """One daemon for all of them: ``auto`` answers locally, ``cloud/scripted-model`` is pinned to the cloud."""
    with scripted_cloud() as cloud:
        text = config_text(model=model_path, cloud=cloud.base_url)
        with daemon(tmp_path_factory.mktemp("box"), text) as running:
            running.wait_ready()
            running.cloud = cloud
            yield running


@pytest.fixture
def client(box):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{box.port}/v1", api_key="none", max_retries=0) as made:
        yield made


BOTH = pytest.mark.parametrize("model", ["auto", "cloud/scripted-model"], ids=["local", "cloud"])


@BOTH
def test_parse_gives_the_model_asked_for(box, client, model):
    """``parse`` with a pydantic model: its schema goes out strict, an instance comes back."""
    box.cloud.default = Reply(text='{"city": "Rome", "sky": "sunny"}')
    made = client.chat.completions.parse(model=model, messages=MESSAGES, response_format=Weather, **FIXED)
    assert isinstance(made.choices[0].message.parsed, Weather)
    assert made.choices[0].finish_reason == "stop"


@BOTH
def test_a_call_whole_and_streamed_is_the_same(box, client, model):
    """The client's own accumulator joins the deltas to what the whole answer says."""
    asked = {"model": model, "messages": MESSAGES, "tools": [TOOL], "tool_choice": NAMED, **FIXED}
    box.cloud.default = Reply(calls=[CALL])
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    for answer in (whole, final):
        [call] = answer.choices[0].message.tool_calls
        assert call.id
        assert call.function.name == "get_weather"
        Weather.model_validate_json(call.function.arguments)
        assert answer.choices[0].finish_reason == "tool_calls"
        assert answer.choices[0].message.content is None
    arguments = [answer.choices[0].message.tool_calls[0].function.arguments for answer in (whole, final)]
    assert arguments[0] == arguments[1]


@BOTH
def test_a_call_and_its_result_go_back_into_the_conversation(box, client, model):
    """What the client keeps of an answer is what it sends next, ``content`` null included (C02)."""
    box.cloud.default = Reply(text="It is sunny.")
    if model != "auto":
        box.cloud.reply(calls=[CALL])
    asked = {"model": model, "tools": [TOOL], **FIXED}
    first = client.chat.completions.create(messages=MESSAGES, tool_choice="required", **asked)
    message = first.choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls]
    again = client.chat.completions.create(messages=[*MESSAGES, message, *results], tool_choice="none", **asked)
    assert again.choices[0].message.content


def test_a_doubted_schema_answer_is_escalated_with_its_schema(box, client):
    """min_confidence 1 always leaves; the provider is asked for the same form."""
    box.cloud.default = Reply(text='{"city": "Rome", "sky": "sunny"}')
    raw = client.chat.completions.with_raw_response.create(
        model="auto",
        messages=MESSAGES,
        response_format={"type": "json_schema", "json_schema": {"name": "w", "schema": Weather.model_json_schema()}},
        extra_body={"edged": {"min_confidence": 1.0}},
        **FIXED,
    )
    assert (raw.headers["x-edged-served-by"], raw.headers["x-edged-reason"]) == ("cloud", "low_confidence")
    assert Weather.model_validate_json(raw.parse().choices[0].message.content).city == "Rome"
    assert box.cloud.seen[-1].body["response_format"]["json_schema"]["schema"] == Weather.model_json_schema()


def test_our_own_forms_are_within_reach(client):
    """``regex`` and ``grammar`` pass through the client as they are."""
    for form, wanted in (
        ({"type": "regex", "regex": "(yes|no)!"}, ("yes!", "no!")),
        ({"type": "grammar", "grammar": 'root ::= "red" | "green"'}, ("red", "green")),
    ):
        made = client.chat.completions.create(model="auto", messages=MESSAGES, response_format=form, **FIXED)
        assert made.choices[0].message.content in wanted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"type": "grammar", "grammar": "root ::= ("}, "response_format"),
        ({"type": "regex", "regex": "[a-z"}, "response_format"),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": []}}},
            "response_format.json_schema.schema.enum",
        ),
    ],
)
def test_what_cannot_be_kept_to_is_a_400_and_the_worker_lives(box, client, form, param, stream):
    """Before the first byte, streamed or not; the next request is answered by the same worker (D05)."""
    worker = box.worker_pid
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="small", messages=MESSAGES, response_format=form, stream=stream, **FIXED)
    assert caught.value.param == param
    made = client.chat.completions.create(
        model="small", messages=MESSAGES, response_format={"type": "regex", "regex": "(yes|no)!"}, **FIXED
    )
    assert made.choices[0].message.content in {"yes!", "no!"}
    assert box.worker_pid == worker


def test_logprobs_of_a_schema_answer_join_to_its_text(client):
    """The tokens shown are those of the content, with the probabilities the model gave them."""
    made = client.chat.completions.create(
        model="small",
        messages=MESSAGES,
        response_format={"type": "json_object"},
        logprobs=True,
        top_logprobs=2,
        **FIXED,
    )
    choice = made.choices[0]
    joined = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content)
    assert joined.decode("utf-8", "ignore") == choice.message.content
    if choice.finish_reason == "stop":
        json.loads(choice.message.content)
