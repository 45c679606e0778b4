"""``bench serve``: load on servers that already run."""

import argparse
import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any

from edged.bench import report
from edged.bench.client import Target
from edged.bench.load import Plan, measure
from edged.bench.options import add_plan, plan_of


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser = subparsers.add_parser(
        "serve",
        help="measure running OpenAI-compatible servers side by side",
        description="TTFT, ITL and tokens/s of each target, interleaved round by round; ratios to the first target. "
        "A key for the servers is read from $BENCH_API_KEY.",
    )
    parser.add_argument(
        "--target",
        type=target,
        action="append",
        required=True,
        metavar="NAME=URL[,MODEL]",
        help="a server, as edged=http://127.0.0.1:8080,smollm2-135m; repeat it; MODEL: default the first it lists",
    )
    add_plan(parser)
    parser.set_defaults(func=run)


def target(text: str) -> Target:
    """``NAME=URL[,MODEL]``; the URL with or without its ``/v1``."""
    name, _, rest = text.partition("=")
    url, _, model = rest.partition(",")
    if not name or not url.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!a} is not NAME=URL[,MODEL]")
    return Target(name, url.rstrip("/").removesuffix("/v1"), model, os.environ.get("BENCH_API_KEY"))


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 where any request failed. Raises: BenchError."""
    return measure_and_print(plan_of(args), args.target, as_json=args.json)


def measure_and_print(plan: Plan, targets: Sequence[Target], *, as_json: bool) -> int:
    """The whole measurement of running servers; 1 where any request failed. Raises: BenchError."""
    rounds = asyncio.run(measure(plan, targets, report.say))
    if as_json:
        print(json.dumps(report.as_json(plan, rounds)))
    else:
        report.show(plan, rounds)
    return int(any(entry.figures.errors for entry in rounds))
