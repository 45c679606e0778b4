"""One record told in sentences: what was decided, each number beside its limit, who tried, what it cost and wasted."""

from collections.abc import Iterator
from datetime import UTC, datetime

from edged.core import NO_RETRY, OFFLINE, Attempt, Decision, Outcome, Reason, Record, Status, Target

_CROSSED = {
    Reason.TTFT_EXCEEDED: "no token came within the threshold of",
    Reason.ITL_EXCEEDED: "the silence between two tokens reached the threshold of",
    Reason.DEADLINE_PREDICTED: "the whole answer would come after the deadline of",
}
_TRUST_REASONS = (Reason.WITHIN_BUDGET, Reason.LOW_CONFIDENCE, Reason.PRIVATE)
_OUTCOMES = {
    Outcome.SERVED: "served",
    Outcome.DISCARDED: "thrown away",
    Outcome.FAILED: "failed",
    Outcome.CANCELLED: "cancelled",
    Outcome.AUDITED: "asked for comparison",
}


def story(record: Record) -> tuple[str, ...]:
    """The lines ``edged explain`` prints; text a client or a provider chose is in them as it came."""
    lines = [*_heading(record), "", "Decisions", *_indented(_decisions(record))]
    lines += ["", "Attempts", *_indented(_attempts(record)), "", "Result", *_indented(_result(record))]
    for title, text in (("Prompt", record.prompt_text), ("Answer", record.answer_text)):
        if text is not None:
            lines += ["", title, *_indented(text.splitlines())]
    return tuple(lines)


def _indented(lines: Iterator[str] | list[str]) -> list[str]:
    return [f"  {line}" for line in lines]


def _heading(record: Record) -> Iterator[str]:
    yield f"Request {record.id}"
    asked = f'asked for "{record.model}" over {record.api}'
    details = [f"route {record.route}" if record.route else "", _task(record)]
    details += [f"locality {record.locality}", "streamed" if record.stream else "not streamed"]
    details += [f"tenant {record.tenant}"] if record.tenant else []
    yield f"  {when(record.received_at)}, {asked} ({', '.join(filter(None, details))})"


def _task(record: Record) -> str:
    source = f", {record.task_source}" if record.task_source else ""
    return f"task {record.task}{source}" if record.task else ""


def when(unix_s: float) -> str:
    """A wall-clock label as UTC; the clock of a box may have been wrong."""
    try:
        return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"at an impossible time ({unix_s:g})"


def _decisions(record: Record) -> Iterator[str]:
    if not record.decisions:
        yield "none was recorded"
    for decision in record.decisions:
        yield f"{seconds(decision.at_s):>8}  {decision.stage}: {_verdict(decision)}"
        yield from (f"{'':>8}  {line}" for line in _numbers(decision))


_NOTES = {
    OFFLINE: "none of its upstreams can be reached",
    NO_RETRY: "no further call: the retry budget is spent",
}


def _verdict(decision: Decision) -> str:
    if decision.stage in _NOTES:
        return _NOTES[decision.stage]
    where = "answered by nobody" if decision.target is Target.NONE else f"go {decision.target}"
    return f"{where}, because {decision.reason}"


def _numbers(decision: Decision) -> Iterator[str]:
    """Each number of a decision; the one that the threshold belongs to is set against it."""
    ttft_s, confidence, threshold = decision.predicted_ttft_s, decision.confidence, decision.threshold
    crossed = _CROSSED.get(decision.reason)
    if crossed is not None and threshold is not None:
        yield f"{crossed} {seconds(threshold)}"
        threshold = None
    if ttft_s is not None:
        limit = threshold if confidence is None else None
        yield f"predicted time to first token {seconds(ttft_s)}{_against(ttft_s, limit, ' s')}"
    if decision.cloud_ttft_s is not None:
        yield f"the cloud's first token was expected after {seconds(decision.cloud_ttft_s)}"
    if decision.speed is not None and decision.speed < 1:
        yield f"heat had slowed the box down to {decision.speed:.0%} of its speed"
    if confidence is not None:
        yield f"confidence {confidence:.3f}{_against(confidence, threshold)}"
    if threshold is not None and ttft_s is None and confidence is None:
        about_trust = decision.reason in _TRUST_REASONS
        yield f"no confidence to set against {threshold:g}" if about_trust else f"the limit was {threshold:g}"


def _against(value: float, limit: float | None, unit: str = "") -> str:
    if limit is None:
        return ""
    if limit == 0:
        return " (not judged: the threshold is 0)"
    relation = "below" if value < limit else "above" if value > limit else "equal to"
    return f", {relation} the threshold {limit:g}{unit}"


def _attempts(record: Record) -> Iterator[str]:
    if not record.attempts:
        yield "nobody was asked"
    for attempt in record.attempts:
        yield f"{seconds(attempt.started_s):>8}  {_name(attempt)} ({attempt.target}): {_OUTCOMES[attempt.outcome]}"
        yield from (f"{'':>8}  {line}" for line in _attempt_details(attempt))


def _name(attempt: Attempt) -> str:
    return attempt.model if attempt.backend == attempt.model else f"{attempt.backend}/{attempt.model}"


def _attempt_details(attempt: Attempt) -> Iterator[str]:
    none = "nothing to generate" if attempt.outcome is Outcome.SERVED else "no token came"  # embeddings, ranking
    first = none if attempt.ttft_s is None else f"first token after {seconds(attempt.ttft_s)}"
    yield f"{first}, {seconds(attempt.total_s)} in all"
    usage = attempt.usage
    cached = f" ({usage.cached_tokens} of them cached)" if usage.cached_tokens else ""
    guess = ", estimated" if usage.estimated else ""
    yield f"{usage.prompt_tokens} prompt tokens{cached}, {usage.completion_tokens} completion tokens{guess}"
    if attempt.cost_uusd:
        yield f"cost {dollars(attempt.cost_uusd)}{' (estimated)' if attempt.cost_estimated else ''}{_figures(attempt)}"
    if attempt.confidence is not None:
        yield f"confidence {attempt.confidence:.3f}"
    if attempt.error is not None:
        yield f"error: {attempt.error}"


def _figures(attempt: Attempt) -> str:
    """The two opinions on a cost, where there are two."""
    said, computed = attempt.provider_cost_uusd, attempt.computed_cost_uusd
    if said is None or computed is None:
        return ""
    return f": the provider says {dollars(said)}, the price table {dollars(computed)}"


def _result(record: Record) -> Iterator[str]:
    yield f"{_ending(record)}: {record.reason}"
    if record.error is not None:
        yield f"error: {record.error}"
    none = "nothing to generate" if record.status is Status.OK else "no token was sent"
    first = none if record.ttft_s is None else f"first token sent after {seconds(record.ttft_s)}"
    yield f"{first}, {seconds(record.total_s)} in all"
    if record.prediction_error_s is not None:
        late = record.prediction_error_s
        yield f"the local first token came {seconds(abs(late))} {'later' if late > 0 else 'sooner'} than predicted"
    timings = record.timings
    if any((timings.queue_s, timings.prefill_s, timings.decode_s)):
        parts = f"queue {seconds(timings.queue_s)}, prefill {seconds(timings.prefill_s)}"
        yield f"engine time: {parts}, decode {seconds(timings.decode_s)}"
    if timings.load_s:
        yield f"waited {seconds(timings.load_s)} for the model to load, which no threshold counts"
    if record.redacted is not None:
        yield f"hidden from the cloud: {_hidden(record.redacted)}"
    yield f"cost {dollars(record.cost_uusd)}"
    if wasted := sum(a.usage.completion_tokens for a in record.attempts if a.outcome is not Outcome.SERVED):
        yield f"{wasted} completion tokens were thrown away"
    if saved := sum(attempt.saved_tokens for attempt in record.attempts):
        yield f"about {saved} more were saved by stopping early"


def _hidden(counts: tuple[tuple[str, int], ...]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in counts) or "nothing was found to hide"


def _ending(record: Record) -> str:
    if record.status is not Status.OK:
        return str(record.status)
    by = f"answered by {record.served_by}"
    by = f"{by}, model {record.served_model}" if record.served_model else by
    others = [a for a in record.attempts if a.outcome is Outcome.SERVED and a.target is not record.served_by]
    return f"{by}, some of the questions by {', '.join(map(_name, others))}" if others else by


def seconds(value: float | None) -> str:
    """A duration for people: ``340 ms``, ``2.41 s``; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value * 1000:.0f} ms" if abs(value) < 1 else f"{value:.2f} s"


def dollars(uusd: int) -> str:
    """Micro-dollars as dollars, without losing the small ones."""
    return f"${uusd / 1e6:.6f}".rstrip("0").rstrip(".") if uusd else "$0"
