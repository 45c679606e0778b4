"""Whether a host can be reached is found out for nothing, in time, over any of its addresses."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
import time

import pytest
from dead_ends import an_address, black_hole, refused_port
from upstream_builders import MODEL, a_client, collect, run, text_of

from edged.config import UpstreamConfig
from edged.testing import ScriptedUpstream
from edged.upstream.client import UpstreamClient
from edged.upstream.dns import MAX_THREADS, Lookups
from edged.upstream.reach import Probe


def a_config(base_url, **fields):
    models = [{"name": MODEL, "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}]
    return UpstreamConfig.model_validate({"name": "cloud", "base_url": base_url, "model": models, **fields})


def a_probe(base_url, *, getaddrinfo=socket.getaddrinfo, timeout_s=0.3):
    lookups = Lookups(stuck_after_s=timeout_s, getaddrinfo=getaddrinfo)
    return Probe(a_config(base_url, connect_timeout_s=timeout_s), lookups)


def test_a_host_that_takes_a_connection_is_reached_and_asked_nothing():
    """No request arrives, so nothing can be charged."""

    async def main():
        async with ScriptedUpstream() as up:
            assert await a_probe(up.base_url).reaches()
            await asyncio.sleep(0.05)
            assert not up.seen

    run(main)


def test_a_refused_port_and_a_black_hole_are_not_reached():
    """At once, and after the time-out."""

    async def main():
        assert not await a_probe(f"http://127.0.0.1:{refused_port()}/v1").reaches()
        with black_hole() as port:
            began_s = time.monotonic()
            assert not await a_probe(f"http://127.0.0.1:{port}/v1").reaches()
            assert 0.15 < time.monotonic() - began_s < 1.0

    run(main)


def test_a_host_without_a_name_or_without_tls_is_not_reached():
    """A name that fails to resolve; a server that speaks no TLS where https was configured, as captive portals do."""

    def no_such_name(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    async def main():
        assert not await a_probe("http://cloud.example/v1", getaddrinfo=no_such_name).reaches()
        async with ScriptedUpstream() as up:
            assert not await a_probe(up.base_url.replace("http://", "https://"), timeout_s=2.0).reaches()

    run(main)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_https_is_reached_when_its_certificate_holds(tmp_path, monkeypatch):
    """The handshake is part of the way: a certificate for the name is enough, one for another name is not."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    made += ["-keyout", key, "-out", cert, "-subj", "/CN=cloud.example", "-addext", "subjectAltName=DNS:cloud.example"]
    subprocess.run(made, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))

    async def main():
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(cert, key)
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            here = [an_address("127.0.0.1", port)]
            for host, expected in (("cloud.example", True), ("portal.example", False)):
                probe = a_probe(f"https://{host}:{port}/v1", getaddrinfo=lambda *_, **__: here, timeout_s=3.0)
                assert await probe.reaches() is expected

    run(main)


def test_one_good_address_is_enough():
    """Dead IPv6 beside living IPv4, in either order."""

    async def main():
        async with ScriptedUpstream() as up:
            port = int(up.base_url.rpartition(":")[2].partition("/")[0])
            with black_hole(family=socket.AF_INET6, port=port):
                found = [an_address("::1", port), an_address("127.0.0.1", port)]
                for answer in (found, found[::-1]):
                    probe = a_probe(f"http://both.example:{port}/v1", getaddrinfo=lambda *_, a=answer, **__: a)
                    assert await probe.reaches()

    run(main)


def test_a_dual_stack_host_with_dead_ipv6_costs_a_quarter_of_a_second():
    """Connections race (RFC 8305): the first token does not wait for the dead family's time-out."""

    async def main():
        async with ScriptedUpstream() as up:
            port = int(up.base_url.rpartition(":")[2].partition("/")[0])
            config = up.config(base_url=f"http://both.example:{port}/v1", connect_timeout_s=3.0)
            found = [an_address("::1", port), an_address("127.0.0.1", port)]
            with black_hole(family=socket.AF_INET6, port=port):
                async with UpstreamClient([config], getaddrinfo=lambda *_, **__: found) as client:
                    up.reply(text="well")
                    began_s = time.monotonic()
                    assert text_of(await collect(client)) == "well"
                    assert time.monotonic() - began_s < 1.0

    run(main)


def test_an_ipv6_only_host_is_reached():
    """A literal in brackets, and nothing else."""

    async def main():
        async with ScriptedUpstream(host="::1") as up, a_client(up) as client:
            up.reply(text="six")
            assert text_of(await collect(client)) == "six"
            assert await client.reaches("cloud")

    run(main)


def test_a_kept_connection_dies_with_its_path():
    """What nobody acknowledges for five seconds, or for as long as an upstream may take to connect, ends it."""

    async def main():
        async with ScriptedUpstream() as up:
            for connect_s, dead_ms in ((1.0, 5000), (8.0, 8000)):
                async with a_client(up, connect_timeout_s=connect_s) as client:
                    await collect(client)
                    ((protocol, _),) = next(iter(client._session.connector._conns.values()))
                    sock = protocol.transport.get_extra_info("socket")
                    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == dead_ms
                    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1

    run(main)


@pytest.mark.parametrize("threads", [1, MAX_THREADS])
def test_a_probe_asks_again_beside_a_stuck_lookup_and_everybody_gets_its_answer(threads):
    """The old question may hang for half a minute; a resolver that is back answers the new one. Threads are bounded."""
    go, calls = threading.Event(), []

    def getaddrinfo(*_, **__):
        calls.append(1)
        if len(calls) <= threads:
            go.wait(10)
        return [an_address("192.0.2.1", 443)]

    class Clock:
        now_s = 0.0

        def __call__(self):
            return self.now_s

    async def main():
        clock = Clock()
        lookups = Lookups(stuck_after_s=1.0, getaddrinfo=getaddrinfo, clock=clock)
        waiting = [asyncio.create_task(lookups.addresses("a.example", 443))]
        for _ in range(threads - 1):
            await asyncio.sleep(0)
            clock.now_s += 1.1
            waiting.append(asyncio.create_task(lookups.addresses("a.example", 443, beside_stuck=True)))
        await asyncio.sleep(0)
        clock.now_s += 1.1
        with pytest.raises(OSError, match="stuck"):
            await lookups.addresses("a.example", 443)
        if threads == MAX_THREADS:
            with pytest.raises(OSError, match="stuck"):
                await lookups.addresses("a.example", 443, beside_stuck=True)
            assert len(calls) == MAX_THREADS
        else:
            assert await lookups.addresses("a.example", 443, beside_stuck=True)
            assert await lookups.addresses("a.example", 443)
            assert len(calls) == threads + 1
        go.set()
        assert all(await asyncio.gather(*waiting))

    run(main)
