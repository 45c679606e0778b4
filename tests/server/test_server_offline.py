"""What a client and an operator see of a box that is cut off."""

import asyncio
import json

import pytest
from server_builders import a_chat, events, serving


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_of_a_box_that_is_cut_off_says_so(stream):
    """``x-edged-offline: true``, ``edged.offline``, reason ``cloud_unavailable``; online neither of the first two."""

    async def main():
        async with serving() as port:
            tending = asyncio.create_task(port.dispatcher.upstreams.tend())
            body = a_chat(stream=stream, edged={"min_confidence": 1.0})
            async with port.post(body) as response:
                text = await response.text()
            assert "x-edged-offline" not in response.headers
            said = events(text)[-2]["edged"] if stream else json.loads(text)["edged"]
            assert said["offline"] is False
            await port.upstream.__aexit__()
            while not port.dispatcher.upstreams.offline:
                await port.ask(edged={"min_confidence": 1.0})
            async with port.post(body) as response:
                text = await response.text()
            assert response.headers["x-edged-offline"] == "true"
            assert response.headers["x-edged-served-by"] == "local"
            assert response.headers["x-edged-reason"] == "cloud_unavailable"
            said = events(text)[-2]["edged"] if stream else json.loads(text)["edged"]
            assert said["offline"] is True
            assert [attempt["target"] for attempt in said["attempts"]] == ["local"]
            async with port.get("/health/ready") as response:
                health = await response.json()
            assert (health["offline"], health["upstreams"]) == (True, {"cloud/scripted-model": "offline"})
            tending.cancel()

    asyncio.run(main())
