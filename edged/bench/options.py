"""Command line options that the subcommands share."""

import argparse
import math

from edged.bench.load import Plan


def counts(text: str) -> tuple[int, ...]:
    """``1,4,8``"""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!a} is not a list of numbers like 1,4,8")
    return values


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!a} is not a number of at least 1")
    return int(text)


def seconds(text: str) -> float:
    """A duration above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!a} is not a number of seconds above 0")
    return value


def add_plan(parser: argparse.ArgumentParser) -> None:
    """Add what a Plan is made of."""
    plan = Plan()
    parser.add_argument("--concurrency", type=counts, default=plan.concurrencies, metavar="N,N", help="default: 1,4,8")
    parser.add_argument("--rounds", type=positive, default=plan.rounds, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--prompt-tokens", type=positive, default=plan.prompt_tokens, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--max-tokens", type=positive, default=plan.max_tokens, metavar="N", help="default: %(default)s"
    )
    parser.add_argument("--requests", type=positive, default=1, metavar="N", help="of each client in a round, in turn")
    parser.add_argument("--api", choices=("chat", "completions"), default="chat", help="default: %(default)s")
    parser.add_argument("--idle-timeout", type=positive, default=120, metavar="S", help="default: %(default)s")
    parser.add_argument("--seed", default=plan.seed, help="of the prompts; another seed gives other prompts")
    parser.add_argument("--json", action="store_true", help="print one JSON object, progress on stderr")


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan that the options describe."""
    return Plan(
        concurrencies=args.concurrency,
        rounds=args.rounds,
        prompt_tokens=args.prompt_tokens,
        max_tokens=args.max_tokens,
        requests=args.requests,
        chat=args.api == "chat",
        idle_timeout_s=args.idle_timeout,
        seed=args.seed,
    )
