"""``bench proxy``: what edged adds between a client and a provider, beside a bare relay and LiteLLM's proxy.

LiteLLM refuses to start without a key, so every run makes one up, and edged asks for the same.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from edged.bench.client import BenchError, Target
from edged.bench.options import positive, seconds
from edged.bench.rapid import Burst, burst
from edged.bench.scenarios import resident_bytes
from edged.bench.servers import Server, free_port, process

NAMES = ("litellm", "relay", "edged")
DIRECT = "direct"
_WARM_UP_S = 1.0
_READY_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One proxy's medians over the rounds; ``added`` = its p50 at one client less the provider's own."""

    name: str
    plain_per_s: float
    streamed_per_s: float
    plain_p50_ms: float
    streamed_p50_ms: float
    added_plain_ms: float | None = None
    added_streamed_ms: float | None = None
    resident_mb: float | None = None
    failed: int = 0


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "proxy",
        help="a cloud-only route against a loopback provider, beside LiteLLM's proxy and a bare relay",
        description="Ledger and policy are on. Proxies are measured in turn, round by round, on one loopback provider.",
    )
    parser.add_argument("--clients", type=positive, default=32, metavar="N", help="default: %(default)s")
    parser.add_argument("--seconds", type=seconds, default=4.0, metavar="S", help="of each measurement; %(default)s")
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="default: %(default)s")
    parser.add_argument("--only", default=",".join(NAMES), metavar="NAME,NAME", help="default: %(default)s")
    parser.add_argument(
        "--litellm",
        default=os.environ.get("BENCH_LITELLM", "litellm"),
        metavar="PROGRAM",
        help="default: $BENCH_LITELLM, or from $PATH",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, progress on stderr")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Start what is installed, measure, end it. Raises: BenchError."""
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, ExitStack() as stack:
        directory, key = Path(name), f"sk-{secrets.token_hex(16)}"
        provider = _loopback("upstream")
        target, _ = stack.enter_context(process(provider, directory, _READY_TIMEOUT_S))
        started: list[tuple[Target, int | None]] = [(Target(DIRECT, target.url, "bench"), None)]
        for server in _proxies(args, directory, target.url, key):
            one, pid = stack.enter_context(process(server, directory, _READY_TIMEOUT_S))
            started.append((replace(one, api_key=key), pid))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            seen = runner.run(_measure(args, [one for one, _ in started]))
        rows = [_row(one.name, seen[one.name], seen[DIRECT], pid) for one, pid in started]
    if args.json:
        print(json.dumps({"clients": args.clients, "rounds": args.rounds, "rows": [asdict(row) for row in rows]}))
    else:
        _show(rows, args.clients)
    return int(any(row.failed for row in rows))


@dataclass(frozen=True, slots=True)
class _Kind:
    """One kind of measurement."""

    stream: bool
    crowd: bool


_KINDS = [_Kind(stream, crowd) for stream in (False, True) for crowd in (False, True)]
_Seen = dict[_Kind, list[Burst]]


async def _measure(args: argparse.Namespace, targets: list[Target]) -> dict[str, _Seen]:
    """Every kind, round by round, every target in turn: A B A B."""
    seen: dict[str, _Seen] = {target.name: {kind: [] for kind in _KINDS} for target in targets}
    for target in targets:
        for stream in (False, True):
            await burst(target, clients=4, seconds=min(_WARM_UP_S, args.seconds), stream=stream)
    for number in range(args.rounds):
        for kind in _KINDS:
            for target in targets:
                clients = args.clients if kind.crowd else 1
                one = await burst(target, clients=clients, seconds=args.seconds, stream=kind.stream)
                seen[target.name][kind].append(one)
                form = "streamed" if kind.stream else "plain"
                print(f"round {number + 1} {target.name} {form} {clients}: {one.per_s:.0f}/s", file=sys.stderr)
    return seen


def _row(name: str, own: _Seen, direct: _Seen, pid: int | None) -> Row:
    def middle(seen: _Seen, of: Callable[[Burst], float], *, stream: bool, crowd: bool) -> float:
        return median(of(one) for one in seen[_Kind(stream, crowd)])

    plain_ms = middle(own, _p50_ms, stream=False, crowd=False)
    streamed_ms = middle(own, _p50_ms, stream=True, crowd=False)
    is_proxy = pid is not None
    return Row(
        name=name,
        plain_per_s=middle(own, lambda one: one.per_s, stream=False, crowd=True),
        streamed_per_s=middle(own, lambda one: one.per_s, stream=True, crowd=True),
        plain_p50_ms=plain_ms,
        streamed_p50_ms=streamed_ms,
        added_plain_ms=plain_ms - middle(direct, _p50_ms, stream=False, crowd=False) if is_proxy else None,
        added_streamed_ms=streamed_ms - middle(direct, _p50_ms, stream=True, crowd=False) if is_proxy else None,
        resident_mb=resident_bytes(pid) / 1e6 if pid is not None else None,
        failed=sum(one.failed for bursts in own.values() for one in bursts),
    )


def _p50_ms(one: Burst) -> float:
    return median(one.latencies_s) * 1e3


def _proxies(args: argparse.Namespace, directory: Path, url: str, key: str) -> Iterator[Server]:
    """The wanted proxies that are installed; for one that is not, a line that says how to get it."""
    for name in args.only.split(","):
        match name:
            case "edged":
                yield _edged(directory, url, key)
            case "relay":
                yield _loopback("relay", url)
            case "litellm":
                if program := shutil.which(args.litellm):
                    yield _litellm(program, directory, url, key)
                else:
                    print('litellm: not there; pip install "litellm[proxy]", see --litellm', file=sys.stderr)
            case _:
                raise BenchError(f"--only: {name!a} is none of {', '.join(NAMES)}")


def _loopback(role: str, *rest: str) -> Server:
    port = free_port()
    command = (sys.executable, "-m", "edged.bench.loopback", role, str(port), *rest)
    return Server(role, command, port, "/ready", "bench")


def _edged(directory: Path, url: str, key: str) -> Server:
    port = free_port()
    config, key_file = directory / "proxy.toml", directory / "key"
    key_file.write_text(key, encoding="utf-8")
    config.write_text(
        f'[server]\nlisten = "127.0.0.1:{port}"\napi_keys = [{json.dumps(f"file:{key_file}")}]\n'
        f"[ledger]\npath = {json.dumps(str(directory / 'ledger.db'))}\n"
        f'[[upstream]]\nname = "provider"\nbase_url = "{url}/v1"\n'
        '[[upstream.model]]\nname = "bench"\ninput_usd_per_mtok = 0.1\noutput_usd_per_mtok = 0.4\n'
        '[[route]]\nname = "auto"\nlocal = ""\ncloud = ["provider/bench"]\n[route.budget]\nusd_per_day = 100\n',
        encoding="utf-8",
    )
    command = (sys.executable, "-m", "edged", "serve", "--config", str(config), "--log-level", "warning")
    return Server("edged", command, port, "/health/ready", "auto")


def _litellm(program: str, directory: Path, url: str, key: str) -> Server:
    """LiteLLM reads YAML, of which JSON is a part."""
    port = free_port()
    config = directory / "litellm.yaml"
    params = {"model": "openai/bench", "api_base": f"{url}/v1", "api_key": "none"}
    models = [{"model_name": "bench", "litellm_params": params}]
    text = json.dumps({"model_list": models, "general_settings": {"master_key": key}})
    config.write_text(text, encoding="utf-8")
    command = (program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port))
    return Server("litellm", command, port, "/health/liveliness", "bench")


def _show(rows: list[Row], clients: int) -> None:
    table = Table(box=None, pad_edge=False)
    base = next((row for row in rows if row.name == "litellm"), None)
    for title in ("", f"plain/s, {clients}", f"streamed/s, {clients}", "added ms, 1", "streamed", "MB", "failed"):
        table.add_column(title, justify="right" if title else "left")
    for row in rows:
        cells = [
            _rate(row.plain_per_s, base.plain_per_s if base else None),
            _rate(row.streamed_per_s, base.streamed_per_s if base else None),
        ]
        cells += ["-" if value is None else f"{value:.2f}" for value in (row.added_plain_ms, row.added_streamed_ms)]
        table.add_row(row.name, *cells, "-" if row.resident_mb is None else f"{row.resident_mb:.0f}", str(row.failed))
    Console(highlight=False, markup=False).print(table)


def _rate(per_s: float, base_per_s: float | None) -> str:
    return f"{per_s:.0f}" + (f" (x{per_s / base_per_s:.1f})" if base_per_s else "")
