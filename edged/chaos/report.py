"""What a storm comes to, for people and for programs."""

from collections import Counter
from typing import Any

from edged.chaos.checks import nearest_rank, violations
from edged.chaos.run import Options, Result
from edged.core import Target

SHOWN = 20


def document(options: Options, result: Result) -> dict[str, Any]:
    """The object ``scripts/chaos --json`` prints."""
    evidence = result.evidence
    found = violations(evidence)
    served = [record.served_by for record in evidence.records]
    live_s = evidence.live_s
    return {
        "seed": options.seed,
        "seconds": options.seconds,
        "requests": len(evidence.asks),
        "records": len(evidence.records),
        "errors": dict(Counter(sorted(record.error or "none" for record in evidence.records))),
        "served": {target.value: served.count(target) for target in Target},
        "upstream_calls": len(evidence.calls),
        "injected": dict(sorted(result.injected.items())),
        "reloads": "SIGHUP" if result.reloads else "this daemon does not reload its config: none were made",
        "live_p99_s": nearest_rank(live_s, 99) if live_s else None,
        "live_probes": len(live_s),
        "live_probes_set_aside": result.set_aside,
        "local_s": {"with_network": min(evidence.local_before_s), "without": min(evidence.local_cut_off_s)},
        "violations": {name: len(lines) for name, lines in found.items()},
        "violations_total": sum(map(len, found.values())),
        "details": {name: lines[:SHOWN] for name, lines in found.items() if lines},
    }


def lines(report: dict[str, Any]) -> list[str]:
    """The same for a terminal."""
    served = ", ".join(f"{count} {name}" for name, count in report["served"].items())
    heading = (
        f"seed {report['seed']}, {report['seconds']:g} s: {report['requests']} requests, {report['records']} records "
        f"({served}), {report['upstream_calls']} upstream calls"
    )
    live = (
        f"/health/live p99 {(report['live_p99_s'] or 0) * 1000:.0f} ms over {report['live_probes']} probes "
        f"({report['live_probes_set_aside']} set aside: the box itself was late)"
    )
    out = [
        heading,
        f"reloads: {report['reloads']}",
        live,
        "injected",
        *(f"  {name:<20} {number:>6}" for name, number in report["injected"].items()),
        "violations",
        *(f"  {name:<20} {number:>6}" for name, number in report["violations"].items()),
    ]
    for name, found in report["details"].items():
        out += [f"{name}:", *(f"  {line}" for line in found)]
    return out
