"""The double is a correct provider until its script says otherwise."""

import asyncio

import openai
import pytest

from edged.testing import Reply, ScriptedUpstream


def a_client(up):
    return openai.AsyncOpenAI(base_url=up.base_url, api_key="k", max_retries=0)


MESSAGES = [{"role": "user", "content": "say it"}]


def test_the_official_client_is_content_with_it():
    """Streamed and not, chat and plain, models and errors."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            assert [m.id async for m in client.models.list()] == ["scripted-model"]
            whole = await client.chat.completions.create(model="m", messages=MESSAGES, n=2)
            assert [c.message.content for c in whole.choices] == ["echo: say it"] * 2
            assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
            stream = await client.chat.completions.create(
                model="m", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "echo: say it"
            assert chunks[-1].usage.completion_tokens == 3
            assert (await client.completions.create(model="m", prompt="x")).choices[0].text == "echo: x"
            up.reply(status=429, headers={"Retry-After": "2"})
            with pytest.raises(openai.RateLimitError):
                await client.chat.completions.create(model="m", messages=MESSAGES)

    asyncio.run(main())


def test_replies_come_in_order_then_from_the_rule_then_from_the_default():
    """The queue wins over ``respond``, which wins over ``default``."""

    async def main():
        def respond(seen):
            return Reply(text="ruled") if seen.body["model"] == "ruled" else None

        async with ScriptedUpstream(respond=respond, default=Reply(text="default")) as up, a_client(up) as client:
            up.reply(text="first")
            up.reply(Reply(text="second"))
            answers = [
                await client.chat.completions.create(model=model, messages=MESSAGES)
                for model in ("m", "m", "ruled", "m")
            ]
            assert [a.choices[0].message.content for a in answers] == ["first", "second", "ruled", "default"]
            assert [seen.completed for seen in up.seen] == [True] * 4
            assert "seen=4" in repr(up)

    asyncio.run(main())


def test_the_log_tells_who_hung_up():
    """A client that leaves is seen to leave; one that stays is not accused."""

    async def main():
        async with ScriptedUpstream() as up, a_client(up) as client:
            up.reply(hang=True)
            call = asyncio.create_task(client.chat.completions.create(model="m", messages=MESSAGES))
            seen = await up.request()
            call.cancel()
            assert await seen.hung_up()
            await client.chat.completions.create(model="m", messages=MESSAGES)
            assert not await (await up.request(2)).hung_up()

    asyncio.run(main())


def test_a_waiting_reply_does_not_hold_up_the_end():
    """Leaving the context ends hanging answers at once."""

    async def main():
        async with asyncio.timeout(5):
            async with ScriptedUpstream() as up:
                client = a_client(up)
                up.reply(hang=True)
                call = asyncio.create_task(client.chat.completions.create(model="m", messages=MESSAGES))
                await up.request()
            with pytest.raises(openai.APIConnectionError):
                await call
            await client.close()

    asyncio.run(main())
