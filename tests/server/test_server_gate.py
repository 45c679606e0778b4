"""Who may pass, and what those who may not are told: keys, Host, Origin, limits of the body and of the crowd."""

import asyncio
import json
import zlib

import pytest
from server_builders import CHAT, a_chat, http, serving

from edged.config import Secret, ServerConfig
from edged.errors import HostNotAllowed, NotAllowed
from edged.server.auth import Gate
from edged.server.patience import Patience

KEY, OTHER = "sk-canary-1", "sk-canary-2"


async def reply(port, request):
    """Send bytes on a bare connection; (status, headers as text, body)."""
    reader, writer = await port.raw()
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = int(head.lower().partition("content-length: ")[2].split()[0])
    return int(head.split()[1]), head, await reader.readexactly(length)


def error_of(body):
    """The one error object, complete."""
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# -- Host ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "passes"),
    [
        ("localhost", True),
        ("LOCALHOST:8080", True),
        ("127.0.0.1", True),
        ("127.0.0.1:8080", True),
        ("[::1]:8080", True),
        ("::1", True),
        ("192.168.1.7:8080", True),
        ("edge.example", True),
        ("box.localhost", True),
        ("evil.example", False),
        ("evil.example:8080", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("edge.example.evil.example", False),
        ("edge.example@evil.example", False),
        ("", False),
        (None, False),
        ("[::1", True),
        ("[evil.example]", False),
        ("0x7f.1", False),
    ],
)
def test_a_host_is_an_address_or_a_known_name(host, passes):
    """A name that nobody configured is how a page on the web reaches 127.0.0.1 (E01)."""
    gate = Gate(ServerConfig(allowed_hosts=("Edge.example",)), ())
    try:
        gate.check_host(host)
    except HostNotAllowed:
        assert not passes
    else:
        assert passes


@pytest.mark.parametrize(("host", "version"), [("evil.example", "1.1"), ("", "1.1"), (None, "1.0")])
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/health/live", "/nowhere"])
def test_a_foreign_host_gets_403_whatever_it_asks_for(host, version, path):
    """Every path is behind the Host check, health and 404 included."""

    async def main():
        async with serving() as port:
            status, head, body = await reply(port, http(a_chat(), path, host=host, version=version))
            assert status == 403
            assert error_of(body)["code"] == "host_not_allowed"
            assert "x-edged-request-id" in head.lower()
            assert port.records == []

    asyncio.run(main())


# -- Origin ----------------------------------------------------------------------------------------------------------

HOME = "https://home.example"


@pytest.mark.parametrize("origin", [HOME, "https://evil.example", "null", None])
def test_cors_headers_are_for_exact_origins_on_every_kind_of_reply(origin):
    """Preflight, JSON, stream and error replies; never a wildcard, never credentials (E02)."""

    async def main():
        async with serving(server={"cors_origins": (HOME,)}) as port:
            headers = {} if origin is None else {"Origin": origin}
            preflight = port.session.options(port.url + CHAT, headers=headers)
            whole = port.post(a_chat(), headers=headers)
            stream = port.post(a_chat(stream=True), headers=headers)
            wrong = port.post(b"{", headers=headers)
            allowed = []
            for asked in (preflight, whole, stream, wrong):
                async with asked as response:
                    await response.read()
                    allowed.append(response.headers.get("Access-Control-Allow-Origin"))
                    assert "Access-Control-Allow-Credentials" not in response.headers
                    if origin == HOME:
                        assert response.headers["Vary"] == "Origin"
                        assert "x-edged-reason" in response.headers["Access-Control-Expose-Headers"]
                    elif origin is not None:
                        assert response.status == 403
            assert allowed == [HOME if origin == HOME else None] * 4

    asyncio.run(main())


def test_a_page_of_our_own_may_use_us():
    """An Origin that is the Host itself is not foreign."""

    async def main():
        async with serving() as port, port.post(a_chat(), headers={"Origin": port.url}) as response:
            assert response.status == 200

    asyncio.run(main())


# -- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Bearer "}, 401),
        ({"Authorization": f"Basic {KEY}"}, 401),
        ({"Authorization": KEY}, 401),
        ({"Authorization": f"Bearer {KEY}x"}, 401),
        ({"Authorization": f"Bearer {KEY}"}, 200),
        ({"Authorization": f"bearer  {OTHER}"}, 200),
        ({"x-api-key": KEY}, 200),
        ({"x-api-key": "wrong"}, 401),
    ],
)
def test_a_key_is_needed_where_keys_are_configured(headers, status):
    """401 in OpenAI's shape without one; the answer never holds a key."""

    async def main():
        async with serving(keys=(KEY, OTHER)) as port:
            async with port.post(a_chat(), headers=headers) as response:
                body = await response.text()
                assert response.status == status
                assert "canary" not in body
            if status == 401:
                assert error_of(body)["code"] == "invalid_api_key"
                assert port.records == []

    asyncio.run(main())


def test_health_needs_no_key_and_nothing_else_goes_without():
    """A probe has no key; metrics, models and unknown paths are behind it."""

    async def main():
        async with serving(keys=(KEY,)) as port:
            found = {}
            for path in ("/health/live", "/health/ready", "/health", "/metrics", "/v1/models", "/nowhere"):
                async with port.get(path) as response:
                    found[path] = response.status
            assert found == {
                "/health/live": 200,
                "/health/ready": 200,
                "/health": 200,
                "/metrics": 401,
                "/v1/models": 401,
                "/nowhere": 401,
            }

    asyncio.run(main())


def test_tenants_are_told_apart_without_keeping_their_keys():
    """Two keys, two tenants, in the record and before the engine; neither tells the key."""

    async def main():
        async with serving(keys=(KEY, OTHER)) as port:
            for key in (KEY, OTHER, KEY):
                async with port.post(a_chat(), headers={"x-api-key": key}) as response:
                    assert response.status == 200
            first, second, third = (record.tenant for record in port.records)
            assert first == third != second
            assert "canary" not in first + second

    asyncio.run(main())


def test_every_key_is_compared_in_constant_time(monkeypatch):
    """All known keys are compared, with hmac.compare_digest, whichever matches."""
    compared = []
    monkeypatch.setattr("edged.server.auth.hmac.compare_digest", lambda a, b: compared.append(b) or a == b)
    gate = Gate(ServerConfig(), [Secret(KEY), Secret(OTHER)])
    gate.tenant(f"Bearer {KEY}", None)
    with pytest.raises(NotAllowed):
        gate.tenant("Bearer wrong", None)
    assert len(compared) == 4
    assert "canary" not in repr(gate)


# -- bodies ----------------------------------------------------------------------------------------------------------

SMALL = {"max_body_bytes": 10_000}


def test_a_body_over_the_limit_is_413_and_the_connection_lives_on():
    """Counted by what it says and by what it is; in OpenAI's shape (E12)."""

    async def main():
        async with serving(server=SMALL) as port:
            for body in (a_chat("x" * 9_000), a_chat("x" * 11_000), a_chat("x" * 500_000), a_chat()):
                async with port.post(body) as response:
                    document = await response.json()
                    size = len(json.dumps(body))
                    assert response.status == (200 if size <= 10_000 else 413)
                    if size > 10_000:
                        assert document["error"]["code"] == "request_too_large"
                        assert "10000" in document["error"]["message"]

    asyncio.run(main())


def test_a_chunked_body_is_counted_too():
    """No Content-Length, no end: cut at the limit (E12)."""

    async def main():
        async with serving(server=SMALL) as port:

            async def endless():
                for _ in range(100):
                    yield b" " * 1_000

            async with port.session.post(port.url + CHAT, data=endless()) as response:
                assert response.status == 413
                assert error_of(await response.read())["code"] == "request_too_large"

    asyncio.run(main())


def test_a_content_length_that_lies_harms_nobody():
    """Too long: the deadline ends it. Too short: the rest is not a request (E12)."""

    async def main():
        async with serving(patience=Patience(body_s=0.2)) as port:
            honest = http(a_chat())
            length = b"Content-Length: %d" % len(honest.partition(b"\r\n\r\n")[2])
            status, _, body = await reply(port, honest.replace(length, b"Content-Length: 5000"))
            assert (status, error_of(body)["code"]) == (408, "request_timeout")
            status, _, _ = await reply(port, honest.replace(length, b"Content-Length: 9"))
            assert status == 400
            status, _, _ = await reply(port, honest)
            assert status == 200

    asyncio.run(main())


@pytest.mark.parametrize("broken", [b"zz\r\n{}\r\n0\r\n\r\n", b"5\r\n{}\r\n"])
def test_a_body_that_is_not_correctly_chunked_is_400(broken):
    """A transfer that breaks its own framing is refused without a traceback."""

    async def main():
        async with serving(patience=Patience(body_s=0.2)) as port:
            reader, writer = await port.raw()
            head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
            writer.write(head.encode() + broken)
            assert (await reader.readline()).split()[1] in {b"400", b"408"}

    asyncio.run(main())


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "gzip, gzip"])
def test_a_compressed_body_is_415_and_never_inflated(encoding):
    """Ten megabytes of zeros are ten kilobytes on the wire (E10)."""

    async def main():
        async with serving() as port:
            packed = zlib.compress(b"\0" * 10_000_000, wbits=31)
            async with port.session.post(port.url + CHAT, data=packed, headers={"Content-Encoding": encoding}) as r:
                assert r.status == 415
                error = error_of(await r.read())
            assert (error["code"], error["param"]) == ("unsupported_encoding", "Content-Encoding")

    asyncio.run(main())


# -- paths and crowds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("POST", "/v1/audio/speech", 404, "not_found"),
        ("GET", CHAT, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
        ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404, "model_not_found"),
        ("GET", "/v1/models/%00", 404, "model_not_found"),
        ("GET", "/v1/models/" + "x" * 5_000, 404, "model_not_found"),
    ],
)
def test_what_is_not_here_is_an_error_object_too(method, path, status, code):
    """Unknown paths, wrong methods, models that are paths: OpenAI's shape, an id, and no file opened (E03)."""

    async def main():
        async with serving() as port:
            got, head, body = await reply(port, http(b"", path, method=method))
            assert (got, error_of(body)["code"]) == (status, code)
            assert "x-edged-request-id" in head.lower()
            assert ("allow:" in head.lower()) == (status == 405)
            assert "root:" not in body.decode()
            assert len(body) < 1_000

    asyncio.run(main())


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/b", "%2e%2e", "x\0y", "x" * 10_000, "\ud83d"])
def test_a_model_name_is_a_key_and_never_a_path(name):
    """Traversal in a model's name is an unknown model or a bad request (E03, C11)."""

    async def main():
        async with serving() as port:
            async with port.post(json.dumps(a_chat(model=name)).encode()) as response:
                error = error_of(await response.read())
                assert response.status in {400, 404}
            if error["code"] != "invalid_json":
                assert error["param"] == "model"

    asyncio.run(main())


def test_a_body_cannot_say_where_the_cloud_is():
    """Upstream addresses and headers come from the config alone; the attempt is refused and never sent (E08)."""

    async def main():
        async with serving() as port:
            for name in ("api_base", "base_url", "extra_body", "extra_headers", "api_key"):
                body = a_chat(model="cloud/scripted-model", **{name: "http://169.254.169.254/"})
                async with port.post(body) as response:
                    error = error_of(await response.read())
                assert (response.status, error["param"], error["code"]) == (400, name, "unknown_parameter")
            assert list(port.upstream.seen) == []

    asyncio.run(main())


def test_connections_beyond_the_limit_are_turned_away_and_health_is_not():
    """503 with Retry-After and a closed connection; a probe is still answered; room again when others leave."""

    async def main():
        async with serving(server={"max_connections": 2}) as port:
            idle = [await port.raw() for _ in range(2)]
            for reader, writer in idle:
                writer.write(http(b"", "/health/live", method="GET"))
                assert b"200" in await reader.readline()
            status, head, body = await reply(port, http(a_chat()))
            assert (status, error_of(body)["code"]) == (503, "rejected_busy")
            assert "retry-after:" in head.lower()
            assert "connection: close" in head.lower()
            status, _, _ = await reply(port, http(b"", "/health/live", method="GET"))
            assert status == 200
            for writer in port.raw_writers:
                writer.close()
                await writer.wait_closed()
            port.raw_writers.clear()
            status, _, _ = await reply(port, http(a_chat()))
            assert status == 200

    asyncio.run(main())


def test_garbage_instead_of_http_is_refused_quietly(caplog):
    """What is not HTTP gets a 400; the log does not repeat the key that was in it (E07)."""

    async def main():
        async with serving() as port:
            for garbage in (
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization\x00: Bearer {KEY}\r\n\r\n".encode(),
                f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\x01\r\n\r\n".encode(),
            ):
                reader, writer = await port.raw()
                writer.write(garbage)
                assert (await reader.readline()).split()[1] == b"400"
            async with port.post(a_chat()) as response:
                assert response.status == 200

    asyncio.run(main())
    assert KEY not in caplog.text
    assert [r for r in caplog.records if r.exc_info] == []


def test_a_key_with_a_name_makes_its_owner_known_by_it():
    """Budgets and the ledger go by the name; a key of the plain list has one derived from it; a wrong key has none."""
    gate = Gate(ServerConfig(), [Secret(OTHER)], {"kitchen": Secret(KEY)})
    assert gate.tenant(f"Bearer {KEY}", None) == "kitchen"
    assert gate.tenant(None, OTHER) not in ("", "kitchen", OTHER)
    with pytest.raises(NotAllowed):
        gate.tenant("Bearer kitchen", None)
