"""``bench proxy``: real processes on loopback, every answer whole."""

import asyncio
import json

import pytest

from edged.bench import rapid
from edged.bench.__main__ import main
from edged.bench.client import BenchError, Target
from edged.bench.loopback import CHUNKS, _events


def test_edged_and_the_bare_relay_are_measured_side_by_side(capsys):
    """Rates, added latency and memory of each; no answer is lost; what is not installed is said, not made up."""
    flags = ["--seconds", "0.2", "--rounds", "1", "--clients", "4", "--litellm", "/not/there", "--json"]
    assert main(["proxy", *flags]) == 0
    printed = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(printed.out)["rows"]}
    assert list(rows) == ["direct", "relay", "edged"]
    assert "litellm: not there" in printed.err
    for row in rows.values():
        assert row["failed"] == 0
        assert row["plain_per_s"] > 0
        assert row["streamed_per_s"] > 0
    assert rows["direct"]["added_plain_ms"] is None
    assert rows["edged"]["resident_mb"] > 20


@pytest.mark.parametrize("flag", [["--only", "nginx"], ["--seconds", "0"], ["--seconds", "nan"], ["--clients", "x"]])
def test_a_command_line_that_makes_no_sense_is_refused(flag, capsys):
    """With the option or the name at fault."""
    try:
        status = main(["proxy", "--seconds", "0.1", *flag])
    except SystemExit as exc:
        status = exc.code
    assert status in (1, 2)
    assert flag[-1] in capsys.readouterr().err


@pytest.mark.parametrize(("status", "failed"), [(200, False), (503, True)])
def test_a_burst_counts_answers_that_are_not_200(status, failed):
    """A failing proxy must not look fast."""

    async def run():
        async def answer(reader, writer):
            while await reader.readuntil(b"}"):
                await reader.read(65536)
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\nok" % status)

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            seen = await rapid.burst(Target("t", url), clients=2, seconds=0.05, stream=False)
        assert (seen.failed == len(seen.latencies_s)) is failed
        assert seen.latencies_s

    asyncio.run(run())


def test_the_loopback_provider_streams_what_it_says():
    """Ten text events, a usage, the end."""
    events = _events()
    assert sum(b'"content": "' in event and b'"content": ""' not in event for event in events) == CHUNKS
    assert b'"usage"' in events[-2]
    assert events[-1] == b"data: [DONE]\n\n"


def test_a_server_that_closes_the_connection_ends_the_measurement():
    """With its name."""

    async def run():
        async def close(_reader, writer):
            writer.close()

        async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(BenchError, match="cut: ConnectionResetError"):
                await rapid.burst(Target("cut", f"http://127.0.0.1:{port}"), clients=1, seconds=1, stream=False)

    asyncio.run(run())
