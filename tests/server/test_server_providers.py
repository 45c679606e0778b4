"""Clients of OpenAI's API and providers of any: images, calls and left-out parameters all the way through the port."""

import asyncio
import base64
import json

import pytest
from builders import a_route
from server_builders import a_chat, serving

from edged.testing import ScriptedUpstream

KINDS = pytest.mark.parametrize("kind", ["openai", "anthropic"])
STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
PIXEL = base64.b64encode(b"\x89PNG\r\n\x1a\nrest").decode()
PICTURE = [
    {"type": "text", "text": "what is this?"},
    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}},
]
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


class Provider(ScriptedUpstream):
    """A provider of one kind, with a model that may see."""

    def __init__(self, kind, *, vision=True):
        super().__init__()
        self._fields = {"kind": kind}
        self._vision = vision

    def config(self, name="cloud", **changes):
        model = {"name": "scripted-model", "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}
        return super().config(name, model=[{**model, "vision": self._vision}], **self._fields, **changes)


async def answer_of(port, **fields):
    """Status, text, calls by index, and the edged object, streamed or whole."""
    async with port.post(a_chat(**fields)) as response:
        if not fields.get("stream"):
            document = await response.json()
            message = (document.get("choices") or [{}])[0].get("message") or {}
            calls = [call["function"] for call in message.get("tool_calls") or ()]
            return response.status, message.get("content"), calls, document.get("edged") or document
        lines = [line[6:] for line in (await response.text()).split("\n") if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    deltas = [choice["delta"] for event in events for choice in event.get("choices") or ()]
    calls = {}
    for call in (call for delta in deltas for call in delta.get("tool_calls") or ()):
        found = calls.setdefault(call["index"], {"name": "", "arguments": ""})
        found["name"] += call["function"].get("name") or ""
        found["arguments"] += call["function"].get("arguments") or ""
    text = "".join(delta.get("content") or "" for delta in deltas)
    return response.status, text, list(calls.values()), events[-1].get("edged")


@KINDS
@STREAMED
def test_an_image_in_openais_form_reaches_any_provider(kind, stream):
    """Base64 in, the provider's own form out, the answer back."""

    async def main():
        async with serving(upstream=Provider(kind)) as port:
            port.upstream.reply(text="a cat")
            status, text, _, told = await answer_of(port, text=PICTURE, stream=stream)
            assert (status, text) == (200, "a cat")
            assert (told["served_by"], told["reason"]) == ("cloud", "capability")
            sent = json.dumps(port.upstream.seen[0].body["messages"])
            assert PIXEL in sent
            await port.at_rest()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fields", "vision"),
    [({}, False), ({"edged": {"locality": "local_only"}}, True), ({"model": "small"}, True)],
)
def test_an_image_that_nobody_may_see_is_a_400(fields, vision):
    """Without a model that sees, with a label that keeps it here, pinned to a local model."""

    async def main():
        async with serving(upstream=Provider("openai", vision=vision)) as port:
            status, _, _, body = await answer_of(port, text=PICTURE, **fields)
            assert status == 400
            error = body["error"]
            assert (error["code"], error["param"]) == ("unsupported_parameter", "messages")
            assert "vision" in error["message"]
            assert not port.upstream.seen
            assert port.engine.steps == []

    asyncio.run(main())


@KINDS
@STREAMED
def test_calls_come_back_in_openais_form_from_any_provider(kind, stream):
    """Two calls at once, arguments whole, whatever the provider calls them."""

    async def main():
        async with serving(upstream=Provider(kind), routes=[a_route(local="")]) as port:
            port.upstream.reply(calls=[("weather", '{"city": "Oslo"}'), ("weather", "{}")])
            _, _, calls, _ = await answer_of(port, tools=[WEATHER], stream=stream)
            assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
                ("weather", {"city": "Oslo"}),
                ("weather", {}),
            ]

    asyncio.run(main())


@STREAMED
def test_what_was_left_out_is_told(stream):
    """The edged object of the answer names it."""

    async def main():
        async with serving(upstream=Provider("anthropic"), routes=[a_route(local="")]) as port:
            _, _, _, told = await answer_of(port, seed=7, stream=stream)
            assert told["attempts"][-1]["dropped_parameters"] == ["seed"]

    asyncio.run(main())


@KINDS
@pytest.mark.parametrize(
    "field",
    [{"base_url": "http://evil.example"}, {"extra_body": {"api_base": "http://evil.example"}}, {"api_key": "sk-x"}],
)
def test_no_client_says_where_a_call_goes(kind, field):
    """An unknown parameter is refused, not passed on (E08)."""

    async def main():
        async with serving(upstream=Provider(kind), routes=[a_route(local="")]) as port:
            status, _, _, body = await answer_of(port, **field)
            assert (status, body["error"]["code"]) == (400, "unknown_parameter")
            assert not port.upstream.seen

    asyncio.run(main())
