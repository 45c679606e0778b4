"""Requests and calls with defaults, so that a test shows only what matters to it."""

import asyncio
from contextlib import aclosing

from edged.core import Chat, Clearance, Completion, Locality, Message, Request, Role, Sampling
from edged.errors import UpstreamError
from edged.upstream import openai
from edged.upstream.client import UpstreamClient

MODEL = "scripted-model"


def a_request(*, text="hello", prompt=None, messages=None, model="auto", sampling=None, **fields):
    """A chat request, or a plain completion where ``prompt`` is given."""
    fields.setdefault("clearance", Clearance(Locality.ANY))
    asked = Completion(prompt) if prompt is not None else Chat(tuple(messages or [Message(Role.USER, text)]))
    return Request(id="r1", model=model, input=asked, received_s=0.0, sampling=sampling or Sampling(), **fields)


def encode(request, *, model="m", pinned=False, dialect=None):
    return openai.encode(request, model, pinned=pinned, dialect=dialect)


def a_decoder(request=None, **fields):
    request = request or a_request(**fields)
    return openai.Decoder(request, upstream="cloud", call=encode(request))


async def collect(client, request=None, *, upstream="cloud", model=MODEL):
    """Every chunk of one answer."""
    async with aclosing(client.stream(request or a_request(), upstream, model)) as stream:
        return [chunk async for chunk in stream]


def text_of(chunks, choice=0):
    return "".join(chunk.text for chunk in chunks if chunk.choice == choice)


def a_client(up, **config):
    """A client with quick deadlines for one scripted upstream named "cloud"."""
    quick = {"connect_timeout_s": 1.0, "first_token_timeout_s": 2.0, "idle_timeout_s": 2.0}
    return UpstreamClient([up.config(**{**quick, **config})])


def run(main):
    """Run an async test under a deadline of its own."""

    async def bounded():
        async with asyncio.timeout(20):
            return await main()

    return asyncio.run(bounded())


async def outcome(client):
    """The text that came, and the error that ended it or None."""
    text, error = "", None
    try:
        async for chunk in client.stream(a_request(), "cloud", MODEL):
            text += chunk.text
    except UpstreamError as exc:
        error = exc
    return text, error
