"""Closing the client ends what waits for a provider."""

import asyncio

import pytest
from builders import a_request

from edged.errors import UpstreamUnavailable
from edged.testing.upstream import Reply, ScriptedUpstream
from edged.upstream.client import UpstreamClient


@pytest.mark.parametrize(
    "reply",
    [Reply(hang=True), Reply(first_token_delay_s=60), Reply(text="one two three", chunk_delay_s=60)],
    ids=["before the headers", "before the first token", "in the middle"],
)
def test_closing_the_client_ends_every_call_with_an_error(reply):
    """Wherever a call is, it ends at once and says that the daemon shut down; later calls do not begin."""

    async def main():
        async with ScriptedUpstream(default=reply) as upstream:
            client = UpstreamClient([upstream.config("cloud")])
            await client.start()

            async def read():
                async for _ in client.stream(a_request(stream=True), "cloud", "scripted-model"):
                    pass

            reading = asyncio.create_task(read())
            await upstream.request()
            await asyncio.sleep(0.05)
            await client.close()
            async with asyncio.timeout(1):
                with pytest.raises(UpstreamUnavailable, match="shut down"):
                    await reading
            await client.close()

    asyncio.run(main())
