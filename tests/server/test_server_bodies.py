"""Bad bodies over a real socket: each is a 400 that names its field, and the daemon is as before."""

import asyncio
import json

from server_builders import a_chat, http, serving

BAD_BODIES = [
    (b"", "invalid_json", None),
    (b"[]", "invalid_json", None),
    (b"null", "invalid_json", None),
    (b"{", "invalid_json", None),
    (b"\xef\xbb\xbf{}", "invalid_json", None),
    ('{"model": "auto"}'.encode("utf-16"), "invalid_json", None),
    (b"[" * 20_000, "invalid_json", None),
    (b'{"a":' * 20_000, "invalid_json", None),
    (b'{"temperature": NaN}', "invalid_json", None),
    (b'{"model": "auto", "messages": [{"role": "user", "content": "\\ud83d"}]}', "invalid_json", None),
    (b"{}", "missing_required_parameter", "model"),
    (a_chat(messages=[]), "invalid_value", "messages"),
    (a_chat(messages=[{"role": "user", "content": None}]), "invalid_type", "messages[0].content"),
    (a_chat(messages=[{"role": "user", "content": [{"type": "text", "text": 5}]}]), "invalid_type", None),
    (a_chat(max_tokens=True), "invalid_type", "max_tokens"),
    (a_chat(max_tokens=0), "invalid_value", "max_tokens"),
    (a_chat(max_tokens=10**400), "invalid_value", "max_tokens"),
    (a_chat(n=5_000_000), "invalid_value", "n"),
    (a_chat(logprobs=True, top_logprobs=10**9), "invalid_value", "top_logprobs"),
    (a_chat(temperature=-1), "invalid_value", "temperature"),
    (a_chat(logit_bias={"abc": 1}), "invalid_value", "logit_bias"),
    (a_chat(logit_bias={"-1": 5}), "invalid_value", "logit_bias"),
    (a_chat(edged={"locality": "mars"}), "invalid_value", "edged.locality"),
    (a_chat(edged={"min_confidence": 2}), "invalid_value", "edged.min_confidence"),
    (a_chat(no_such=1), "unknown_parameter", "no_such"),
]


def test_bad_bodies_are_400_on_a_connection_that_lives_on():
    """Each names its field and its code, none is recorded, and the next good request is answered (C)."""

    async def main():
        async with serving() as port:
            reader, writer = await port.raw()
            for body, code, param in BAD_BODIES:
                writer.write(http(body))
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                answer = await reader.readexactly(int(head.partition("content-length: ")[2].split()[0]))
                assert head.split()[1] == "400", (body, answer)
                error = json.loads(answer)["error"]
                assert error["code"] == code, error
                assert param is None or error["param"] == param, error
                assert "connection: close" not in head
                assert len(answer) < 1_000
            assert port.records == []
            writer.write(http(a_chat()))
            assert b"200" in await reader.readline()
            await port.at_rest()

    asyncio.run(main())
