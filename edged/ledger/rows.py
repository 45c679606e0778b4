"""Records as rows and back.

Writing is total: whatever a record holds becomes something SQLite can bind, because one row that cannot be stored (a
lone surrogate, a NaN, an integer beyond 64 bits) must not hold up the rows behind it.
"""

import json
import math
import sqlite3
from collections.abc import Sequence

from edged.core import Attempt, Audit, Decision, Locality, Outcome, Reason, Record, Status, Target, Timings, Usage

Row = dict[str, str | int | float | None]

LABEL_CHARS = 300
ERROR_CHARS = 1_000
TEXT_CHARS = 1_000_000
_WHOLE_MAX = 2**63 - 1


def request_row(record: Record, clock_s: float) -> Row:
    """The row of ``requests``; ``clock_s`` is the ledger's running time."""
    return {
        "id": _text(record.id),
        "received_at": _real(record.received_at),
        "clock_s": clock_s,
        "api": _text(record.api),
        "model": _text(record.model),
        "route": _optional_text(record.route),
        "served_model": _optional_text(record.served_model),
        "tenant": _text(record.tenant),
        "task": _optional_text(record.task),
        "task_source": _optional_text(record.task_source),
        "locality": record.locality.value,
        "stream": int(record.stream),
        "status": record.status.value,
        "served_by": record.served_by.value,
        "reason": record.reason.value,
        "confidence": _optional_real(record.confidence),
        "predicted_ttft_s": _optional_real(record.predicted_ttft_s),
        "ttft_s": _optional_real(record.ttft_s),
        "total_s": _real(record.total_s),
        "queue_s": _real(record.timings.queue_s),
        "prefill_s": _real(record.timings.prefill_s),
        "decode_s": _real(record.timings.decode_s),
        "load_s": _real(record.timings.load_s),
        "cost_uusd": _whole(record.cost_uusd),
        "error": _optional_text(record.error, ERROR_CHARS),
        "redacted": None if record.redacted is None else _text(json.dumps(dict(record.redacted)), ERROR_CHARS),
        "prompt_text": _optional_text(record.prompt_text, TEXT_CHARS),
        "answer_text": _optional_text(record.answer_text, TEXT_CHARS),
    }


def attempt_row(attempt: Attempt, n: int) -> Row:
    """The row of a request's ``n``-th attempt, still without its ``seq``."""
    return {
        "n": n,
        "target": attempt.target.value,
        "backend": _text(attempt.backend),
        "model": _text(attempt.model),
        "outcome": attempt.outcome.value,
        "started_s": _real(attempt.started_s),
        "total_s": _real(attempt.total_s),
        "ttft_s": _optional_real(attempt.ttft_s),
        "prompt_tokens": _whole(attempt.usage.prompt_tokens),
        "completion_tokens": _whole(attempt.usage.completion_tokens),
        "cached_tokens": _whole(attempt.usage.cached_tokens),
        "cache_write_tokens": _whole(attempt.usage.cache_write_tokens),
        "reasoning_tokens": _whole(attempt.usage.reasoning_tokens),
        "tokens_estimated": int(attempt.usage.estimated),
        "cost_uusd": _whole(attempt.cost_uusd),
        "cost_estimated": int(attempt.cost_estimated),
        "provider_cost_uusd": _optional_whole(attempt.provider_cost_uusd),
        "computed_cost_uusd": _optional_whole(attempt.computed_cost_uusd),
        "confidence": _optional_real(attempt.confidence),
        "error": _optional_text(attempt.error, ERROR_CHARS),
        "saved_tokens": _whole(attempt.saved_tokens),
    }


def decision_row(decision: Decision, n: int) -> Row:
    """The row of a request's ``n``-th decision, still without its ``seq``."""
    return {
        "n": n,
        "target": decision.target.value,
        "reason": decision.reason.value,
        "stage": _text(decision.stage),
        "at_s": _real(decision.at_s),
        "predicted_ttft_s": _optional_real(decision.predicted_ttft_s),
        "confidence": _optional_real(decision.confidence),
        "threshold": _optional_real(decision.threshold),
        "cloud_ttft_s": _optional_real(decision.cloud_ttft_s),
        "speed": _optional_real(decision.speed),
    }


def audit_row(audit: Audit) -> Row:
    """The row of ``audits``, still without its ``seq``."""
    return {
        "at": _real(audit.at),
        "measure": _optional_text(audit.measure),
        "agreed": None if audit.agreed is None else int(audit.agreed),
        "score": _optional_real(audit.score),
        "cost_uusd": _whole(audit.cost_uusd),
        "error": _optional_text(audit.error, ERROR_CHARS),
    }


def to_record(row: sqlite3.Row, attempts: Sequence[sqlite3.Row], decisions: Sequence[sqlite3.Row]) -> Record:
    """The record a request's rows were made from. Raises: ValueError for a word this version does not know."""
    return Record(
        id=row["id"],
        received_at=row["received_at"],
        api=row["api"],
        model=row["model"],
        status=Status(row["status"]),
        served_by=Target(row["served_by"]),
        reason=Reason(row["reason"]),
        route=row["route"],
        served_model=row["served_model"],
        tenant=row["tenant"],
        task=row["task"],
        task_source=row["task_source"],
        locality=Locality(row["locality"]),
        stream=bool(row["stream"]),
        confidence=row["confidence"],
        predicted_ttft_s=row["predicted_ttft_s"],
        ttft_s=row["ttft_s"],
        total_s=row["total_s"],
        timings=Timings(
            queue_s=row["queue_s"], prefill_s=row["prefill_s"], decode_s=row["decode_s"], load_s=row["load_s"]
        ),
        attempts=tuple(_to_attempt(attempt) for attempt in attempts),
        decisions=tuple(_to_decision(decision) for decision in decisions),
        error=row["error"],
        redacted=_to_counts(row["redacted"]),
        prompt_text=row["prompt_text"],
        answer_text=row["answer_text"],
    )


def _to_counts(text: str | None) -> tuple[tuple[str, int], ...] | None:
    """Raises: ValueError for what this version did not write."""
    if text is None:
        return None
    counts = json.loads(text)
    if not isinstance(counts, dict):
        raise ValueError("redacted is not an object")  # noqa: TRY004 - ValueError is what the reader expects
    return tuple((str(kind), int(count)) for kind, count in counts.items())


def _to_attempt(row: sqlite3.Row) -> Attempt:
    usage = Usage(
        prompt_tokens=row["prompt_tokens"],
        completion_tokens=row["completion_tokens"],
        cached_tokens=row["cached_tokens"],
        cache_write_tokens=row["cache_write_tokens"],
        reasoning_tokens=row["reasoning_tokens"],
        estimated=bool(row["tokens_estimated"]),
    )
    return Attempt(
        target=Target(row["target"]),
        backend=row["backend"],
        model=row["model"],
        outcome=Outcome(row["outcome"]),
        started_s=row["started_s"],
        total_s=row["total_s"],
        ttft_s=row["ttft_s"],
        usage=usage,
        cost_uusd=row["cost_uusd"],
        cost_estimated=bool(row["cost_estimated"]),
        provider_cost_uusd=row["provider_cost_uusd"],
        computed_cost_uusd=row["computed_cost_uusd"],
        confidence=row["confidence"],
        error=row["error"],
        saved_tokens=row["saved_tokens"],
    )


def _to_decision(row: sqlite3.Row) -> Decision:
    return Decision(
        target=Target(row["target"]),
        reason=Reason(row["reason"]),
        stage=row["stage"],
        at_s=row["at_s"],
        predicted_ttft_s=row["predicted_ttft_s"],
        confidence=row["confidence"],
        threshold=row["threshold"],
        cloud_ttft_s=row["cloud_ttft_s"],
        speed=row["speed"],
    )


def _text(value: str, limit_chars: int = LABEL_CHARS) -> str:
    if value.isascii() and len(value) <= limit_chars and "\0" not in value:
        return value
    return value[:limit_chars].encode("utf-8", "replace").decode("utf-8").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _optional_text(value: str | None, limit_chars: int = LABEL_CHARS) -> str | None:
    return None if value is None else _text(value, limit_chars)


def _real(value: float) -> float:
    return float(value) if math.isfinite(value) else 0.0


def _optional_real(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _whole(value: int) -> int:
    return max(-_WHOLE_MAX, min(_WHOLE_MAX, int(value)))


def _optional_whole(value: int | None) -> int | None:
    return None if value is None else _whole(value)
