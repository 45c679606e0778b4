"""The eight guarantees, checked from the ledger, the upstreams' own log, what clients heard and the process table.

Each check yields one readable line per violation. Pure: it reads the evidence and nothing else.
"""

import re
from collections.abc import Callable, Iterator, Sequence

from edged.chaos.box import KEY_BUDGET_USD, RETRY_FLOOR_PER_MINUTE, RETRY_SHARE
from edged.chaos.client import Heard
from edged.chaos.evidence import Evidence, cloud_attempts, is_audit
from edged.chaos.plan import MARK, WORD
from edged.core import Outcome, Record, Status, Target

LIVE_P99_S = 0.25
LIVE_LEAST_PROBES = 100
CUT_OFF_FACTOR = 1.5
CUT_OFF_SLACK_S = 0.3
BUSY_SHARE = 0.5
_UNRECORDED = (0, 400, 401, 403, 404, 413)
_OK = 200

_CYD = 2
"""The client whose key allows no more than the site."""

Check = Callable[[Evidence], Iterator[str]]


def violations(evidence: Evidence) -> dict[str, list[str]]:
    """What was found, by guarantee; every guarantee is there, most of them empty."""
    return {name: list(check(evidence)) for name, check in GUARANTEES.items()}


def one_record(evidence: Evidence) -> Iterator[str]:
    """1. Each accepted request ends in exactly one record."""
    ids = {record.id for record in evidence.records}
    for heard in evidence.heard:
        rows = evidence.by_mark.get(heard.ask.mark, [])
        if len(rows) > 1:
            yield f"{heard.ask.mark}: {len(rows)} records"
        if heard.status not in _UNRECORDED and heard.request_id not in ids:
            yield f"{heard.ask.mark}: answered {heard.status} as {heard.request_id}, no record"
        if heard.problem is not None and heard.problem.startswith("no end"):
            yield f"{heard.ask.mark}: {heard.problem}"
    unseen = sum(not heard.request_id and heard.ask.label == "redact" for heard in evidence.heard)
    for mark in evidence.by_mark.keys() - {ask.mark for ask in evidence.asks}:
        if mark or len(evidence.by_mark[mark]) > unseen:
            yield f"a record of nobody's request: {mark or 'without a mark'}"


def one_source(evidence: Evidence) -> Iterator[str]:
    """2. The bytes of one answer come from one source."""
    for heard in evidence.heard:
        if heard.status == _OK:
            yield from _source(heard, evidence)


def _source(heard: Heard, evidence: Evidence) -> Iterator[str]:
    mark, said = heard.ask.mark, heard.said
    words = WORD.findall(said)
    sources = {word[:3] for word in words}
    if len(sources) > 1 or any(source[0] != mark for source in sources):
        yield f"{mark}: words of {sorted(sources)}"
    if [int(word[3]) for word in words] != list(range(len(words))):
        yield f"{mark}: words out of order, missing or doubled: {said!r}"
    served_by = heard.headers.get("x-edged-served-by")
    if words and served_by != Target.CLOUD:
        yield f"{mark}: the cloud's words in an answer said to be {served_by}"
    beginning = f'{{"mark": "{mark}~'
    if not words and served_by == Target.CLOUD and not beginning.startswith(said[: len(beginning)]):
        yield f"{mark}: an answer said to be the cloud's without its words: {said[:80]!r}"
    for record in evidence.by_mark.get(mark, []):
        if record.id == heard.request_id and record.served_by != served_by:
            yield f"{mark}: told {served_by}, recorded {record.served_by}"
        if sum(attempt.outcome is Outcome.SERVED for attempt in record.attempts) != (record.status is Status.OK):
            yield f"{mark}: {record.status} with {[str(a.outcome) for a in record.attempts]}"


def all_at_rest(evidence: Evidence) -> Iterator[str]:
    """3. Work ends with its request; slots, queues, sockets and processes return to zero."""
    gauges = evidence.gauges
    for name, value in gauges.items():
        if value and name.startswith(("edged_in_flight_requests", "edged_model_running", "edged_model_waiting")):
            yield f"{name} is {value:g} at rest"
    if evidence.connections:
        yield f"{evidence.connections} client connections at rest"
    if evidence.cpu_at_rest > BUSY_SHARE:
        yield f"the workers use {evidence.cpu_at_rest:.0%} of a core at rest"
    for call in evidence.calls:
        if not call.ended:
            yield f"{call.mark}: a call to {call.upstream} is still open"
    if evidence.leftovers:
        yield f"processes that outlived the daemon: {evidence.leftovers}"
    if evidence.exit_code != 0:
        yield f"the daemon ended with {evidence.exit_code}"


def calls_recorded(evidence: Evidence) -> Iterator[str]:
    """4. Upstream calls made are attempts recorded, and stay within the retry budget."""
    recorded = sum(len(cloud_attempts(record)) for record in evidence.records)
    made = evidence.gauges.get("edged_upstream_calls", 0)
    if made != recorded:
        yield f"{made:g} calls made, {recorded} attempts recorded"
    for mark, calls in evidence.calls_by_mark.items():
        rows = evidence.by_mark.get(mark) or evidence.unnamed
        if len(calls) > sum(len(cloud_attempts(record)) for record in rows):
            yield f"{mark}: {len(calls)} calls seen by upstreams, fewer attempts recorded"
    firsts, further = _asked(evidence.records)
    allowed = RETRY_SHARE * firsts + RETRY_FLOOR_PER_MINUTE * (int(evidence.minutes) + 1)
    if further > allowed:
        yield f"{further} retries of {firsts} requests, {allowed:g} allowed"


def _asked(records: tuple[Record, ...]) -> tuple[int, int]:
    """How many requests and audits asked the cloud, and how many further calls they made."""
    firsts = further = 0
    for record in records:
        attempts = cloud_attempts(record)
        audits = sum(is_audit(attempt, record) for attempt in attempts)
        for count in (audits, len(attempts) - audits):
            firsts += count > 0
            further += max(0, count - 1)
    return firsts, further


def money_counted(evidence: Evidence) -> Iterator[str]:
    """5. Recorded cost is never below the upstream's count; spend stays within the limit plus one reservation."""
    for mark, calls in evidence.calls_by_mark.items():
        counted = sum(call.counted_uusd for call in calls)
        rows = evidence.by_mark.get(mark) or evidence.unnamed
        recorded = sum(record.cost_uusd for record in rows)
        if recorded < counted:
            yield f"{mark}: {recorded} micro-dollars recorded, the upstreams count {counted}"
    largest = max((record.cost_uusd for record in evidence.records), default=0)
    for budget in evidence.budgets:
        if budget["reserved_usd"]:
            yield f"the budget of {budget['scope']} {budget['name']} holds {budget['reserved_usd']} dollars at rest"
        if budget["limit_usd"] is not None and budget["spent_usd"] > budget["limit_usd"] + largest / 1e6:
            yield f"{budget['scope']} {budget['name']} spent {budget['spent_usd']} of {budget['limit_usd']} dollars"
    of_key = sum(record.cost_uusd for record in evidence.records if record.tenant == "bob")
    if of_key > KEY_BUDGET_USD * 1e6 + largest:
        yield f"the records of one key come to {of_key} micro-dollars, its budget is {KEY_BUDGET_USD} dollars"


def nothing_leaks(evidence: Evidence) -> Iterator[str]:
    """6. No key or other client's text in any output; no label is crossed."""
    for secret in evidence.secrets:
        if secret in evidence.log:
            yield "a key is in the log"
        yield from (f"{h.ask.mark}: a key in the answer" for h in evidence.heard if secret.encode() in h.raw)
    if MARK.search(evidence.log):
        yield "a prompt's text is in the log"
    for heard in evidence.heard:
        others = set(MARK.findall(heard.raw.decode("utf-8", "replace"))) - {heard.ask.mark}
        if others:
            yield f"{heard.ask.mark}: another client's text: {sorted(others)}"
    yield from _labels(evidence)


def _labels(evidence: Evidence) -> Iterator[str]:
    by_mark = {ask.mark: ask for ask in evidence.asks}
    for call in evidence.calls:
        ask = by_mark.get(call.mark)
        if ask is None:
            yield f"{call.upstream} was asked something nobody asked: {call.text[:80]!r}"
            continue
        label = "site_only" if ask.key == _CYD and ask.label in ("any", "redact") else ask.label
        if label == "local_only" or (label == "site_only" and call.upstream == "far"):
            yield f"{call.mark}: {label} reached {call.upstream}"
        if ask.label == "redact" and call.upstream == "far" and ask.e_mail in call.text:
            yield f"{call.mark}: personal data reached {call.upstream}"


def stays_live(evidence: Evidence) -> Iterator[str]:
    """7. /health/live answers within 250 ms (p99), whatever goes on; see ``not_judged``."""
    if not evidence.live_s and not evidence.live_set_aside_s:
        yield "/health/live was never measured"
    elif len(evidence.live_s) >= LIVE_LEAST_PROBES and (p99_s := nearest_rank(evidence.live_s, 99)) > LIVE_P99_S:
        yield f"/health/live: p99 {p99_s * 1000:.0f} ms over {len(evidence.live_s)} probes"


def local_when_cut_off(evidence: Evidence) -> Iterator[str]:
    """8. With the network gone local answers are as fast as before; by the fastest, which a busy box disturbs least."""
    if not evidence.local_before_s or not evidence.local_cut_off_s:
        yield "local answers without a network were never measured"
        return
    before_s, after_s = min(evidence.local_before_s), min(evidence.local_cut_off_s)
    if _is_slower(evidence) and not evidence.local_disturbed:
        yield f"a local answer took {after_s:.2f} s without a network, {before_s:.2f} s with one"


def _is_slower(evidence: Evidence) -> bool:
    before_s, after_s = min(evidence.local_before_s), min(evidence.local_cut_off_s)
    return after_s > before_s * CUT_OFF_FACTOR + CUT_OFF_SLACK_S


def nothing_breaks(evidence: Evidence) -> Iterator[str]:
    """No exception that nobody expected."""
    for found in re.finditer(r"Traceback \(most recent call last\)[\s\S]{0,2000}?\n(?=\S)(.*)", evidence.log):
        yield f"in the log: {found[1][:200]}"
    for record in evidence.records:
        if record.error == "internal_error":
            yield f"{record.id}: internal_error"


def not_judged(evidence: Evidence) -> Iterator[str]:
    """What this run cannot say, and why."""
    if len(evidence.live_s) < LIVE_LEAST_PROBES:
        yield (
            f"7 live: other programs used more than half a core, {len(evidence.live_s)} probes were left "
            f"({LIVE_LEAST_PROBES} are needed)"
        )
    if evidence.local_disturbed and evidence.local_before_s and evidence.local_cut_off_s and _is_slower(evidence):
        yield "8 cut off: local answers were slower without a network, while other programs used the box"


def nearest_rank(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[(len(ordered) * percent + 99) // 100 - 1]


GUARANTEES: dict[str, Check] = {
    "1 one record": one_record,
    "2 one source": one_source,
    "3 nothing left": all_at_rest,
    "4 calls recorded": calls_recorded,
    "5 money": money_counted,
    "6 privacy": nothing_leaks,
    "7 live": stays_live,
    "8 cut off": local_when_cut_off,
    "no crash": nothing_breaks,
}
