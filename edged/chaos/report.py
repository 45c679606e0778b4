"""What a storm comes to, for people and for programs."""

from collections import Counter
from typing import Any

from edged.chaos.checks import nearest_rank, not_judged, violations
from edged.chaos.evidence import cloud_attempts, is_audit
from edged.chaos.run import Options, Result
from edged.core import Target

SHOWN = 20


def document(options: Options, result: Result) -> dict[str, Any]:
    """The object ``scripts/chaos --json`` prints."""
    evidence = result.evidence
    found = violations(evidence)
    served = [record.served_by for record in evidence.records]
    return {
        "seed": options.seed,
        "seconds": options.seconds,
        "requests": len(evidence.asks),
        "records": len(evidence.records),
        "errors": dict(Counter(sorted(record.error or "none" for record in evidence.records))),
        "served": {target.value: served.count(target) for target in Target},
        "upstream_calls": len(evidence.calls),
        "hedged": sum(any(d.stage == "hedge" for d in record.decisions) for record in evidence.records),
        "audited": sum(is_audit(a, record) for record in evidence.records for a in cloud_attempts(record)),
        "injected": dict(sorted(result.injected.items())),
        "reloads": "SIGHUP" if result.reloads else "this daemon does not reload its config: none were made",
        "live_p99_s": nearest_rank(evidence.live_s, 99) if evidence.live_s else None,
        "live_probes": len(evidence.live_s),
        "live_probes_set_aside": len(evidence.live_set_aside_s),
        "live_p99_s_set_aside": nearest_rank(evidence.live_set_aside_s, 99) if evidence.live_set_aside_s else None,
        "not_judged": list(not_judged(evidence)),
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
        f"({served}), {report['upstream_calls']} upstream calls, "
        f"{report['hedged']} hedged, {report['audited']} calls of audits"
    )
    live = f"/health/live p99 {_live(report, '')}; while other programs used the box {_live(report, '_set_aside')}"
    out = [
        heading,
        f"reloads: {report['reloads']}",
        live,
        "injected",
        *(f"  {name:<20} {number:>6}" for name, number in report["injected"].items()),
        *(f"not judged: {why}" for why in report["not_judged"]),
        "violations",
        *(f"  {name:<20} {number:>6}" for name, number in report["violations"].items()),
    ]
    for name, found in report["details"].items():
        out += [f"{name}:", *(f"  {line}" for line in found)]
    return out


def _live(report: dict[str, Any], which: str) -> str:
    return f"{(report[f'live_p99_s{which}'] or 0) * 1000:.0f} ms over {report[f'live_probes{which}']} probes"
