"""The official OpenAI client, unchanged, and a provider that speaks Anthropic's API, with the real daemon between."""

import json

import openai
import pytest
from daemon_builders import config_text, daemon, scripted_cloud

MODEL = "cloud/scripted-model"
KEY = "sk-canary-provider-51d0"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}


@pytest.fixture(scope="module")
def cloud():
    with scripted_cloud() as running:
        yield running


@pytest.fixture(scope="module")
def client(cloud, tmp_path_factory):
    text = config_text(cloud=cloud.base_url)
    text = text.replace("base_url =", 'kind = "anthropic"\napi_key = "env:EDGED_TEST_KEY"\nbase_url =')
    text = text.replace('name = "scripted-model"', 'name = "scripted-model"\nvision = true')
    with (
        daemon(tmp_path_factory.mktemp("box"), text, EDGED_TEST_KEY=KEY) as box,
        openai.OpenAI(base_url=f"http://127.0.0.1:{box.port}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def test_a_round_of_tool_use(client, cloud):
    """The client streams a call, answers it, and gets text: each turn in the provider's own form."""
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "weather in Oslo?"}]
    cloud.reply(calls=[("weather", '{"city": "Oslo"}')])
    with client.chat.completions.stream(model=MODEL, messages=messages, tools=[WEATHER]) as stream:
        message = stream.get_final_completion().choices[0].message
    assert json.loads(message.tool_calls[0].function.arguments) == {"city": "Oslo"}
    call = message.tool_calls[0].model_dump(include={"id": True, "type": True, "function": {"name", "arguments"}})
    messages += [{"role": "assistant", "content": None, "tool_calls": [call]}]
    messages += [{"role": "tool", "tool_call_id": call["id"], "content": "rain"}]
    cloud.reply(text="It rains.")
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    assert answer.choices[0].message.content == "It rains."
    sent = cloud.seen[-1]
    assert sent.headers["x-api-key"] == KEY
    assert sent.body["system"] == "be brief"
    assert [turn["role"] for turn in sent.body["messages"]] == ["user", "assistant", "user"]
    assert sent.body["messages"][1]["content"][0]["input"] == {"city": "Oslo"}
    assert sent.body["messages"][2]["content"][0]["content"] == "rain"


def test_a_structured_answer_and_a_picture(client, cloud):
    """A JSON schema and an image, asked for as OpenAI's client asks."""
    parts = [
        {"type": "text", "text": "which city?"},
        {"type": "image_url", "image_url": {"url": "https://x.example/city.jpg"}},
    ]
    schema = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}
    cloud.reply(text='{"city": "Oslo"}')
    messages = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, response_format=schema)
    assert json.loads(answer.choices[0].message.content) == {"city": "Oslo"}
    body = cloud.seen[-1].body
    assert body["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert body["messages"][0]["content"][1] == {
        "type": "image",
        "source": {"type": "url", "url": "https://x.example/city.jpg"},
    }


def test_what_it_cannot_do_is_a_400_of_the_clients_own_kind(client, cloud):
    """Nothing is sent."""
    before = len(cloud.seen)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "x"}], logprobs=True)
    assert caught.value.param == "logprobs"
    assert len(cloud.seen) == before
