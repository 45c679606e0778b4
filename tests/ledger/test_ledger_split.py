"""The split adds up, whatever the records: compared with a plain count in Python."""

import math
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_builders import NOON, a_record, an_attempt, store_of

from edged.core import Attempt, Decision, Outcome, Reason, Record, Status, Target
from edged.ledger import By, NoLedger, Percentiles, Split, Tokens, split

KEYS = {
    "requests",
    "local",
    "cloud",
    "rejected",
    "cancelled",
    "failed",
    "by_reason",
    "prediction_error_s",
    "tokens",
    "cost_usd",
    "cost_estimated_usd",
    "ttft_s",
}

attempts = st.builds(
    an_attempt,
    target=st.sampled_from([Target.LOCAL, Target.CLOUD]),
    outcome=st.sampled_from(Outcome),
    completion_tokens=st.integers(0, 500),
    cost_uusd=st.integers(0, 10_000),
    cost_estimated=st.booleans(),
)
some_records = st.lists(
    st.builds(
        a_record,
        status=st.sampled_from(Status),
        served_by=st.sampled_from(Target),
        reason=st.sampled_from(Reason),
        route=st.sampled_from(["auto", "fast", None]),
        served_model=st.sampled_from(["small", "big", None]),
        received_at=st.sampled_from([NOON - 90_000, NOON - 4_000, NOON - 60]),
        ttft_s=st.none() | st.floats(0, 10),
        attempts=st.lists(attempts, max_size=3).map(tuple),
    ),
    max_size=30,
)


def fate(record: Record) -> str:
    if record.status is not Status.OK:
        return str(record.status)
    return "failed" if record.served_by is Target.NONE else str(record.served_by)


def percentiles(records: list[Record], side: str) -> Percentiles:
    values = sorted(r.ttft_s for r in records if fate(r) == side and r.ttft_s is not None)
    if not values:
        return Percentiles()
    return Percentiles(p50=values[math.ceil(len(values) * 0.5) - 1], p95=values[math.ceil(len(values) * 0.95) - 1])


def tokens(all_attempts: list[Attempt]) -> Tokens:
    counted: Counter[str] = Counter()
    for attempt in all_attempts:
        if attempt.outcome is Outcome.AUDITED:
            continue  # asked for comparison, neither served nor thrown away
        kind = str(attempt.target) if attempt.outcome is Outcome.SERVED else "discarded"
        counted[kind] += attempt.usage.completion_tokens
    return Tokens(**counted)


def counted(records: list[Record]) -> Split:
    fates = Counter(map(fate, records))
    all_attempts = [attempt for record in records for attempt in record.attempts]
    return Split(
        requests=len(records),
        **fates,
        by_reason=dict(Counter(str(record.reason) for record in records)),
        tokens=tokens(all_attempts),
        cost_uusd=sum(a.cost_uusd for a in all_attempts),
        cost_estimated_uusd=sum(a.cost_uusd for a in all_attempts if a.cost_estimated),
        local_ttft=percentiles(records, "local"),
        cloud_ttft=percentiles(records, "cloud"),
    )


def key_of(record: Record, by: By) -> str:
    hour = {NOON - 90_000: "2026-09-20T13:00Z", NOON - 4_000: "2026-09-21T13:00Z", NOON - 60: "2026-09-21T14:00Z"}
    return {
        By.REASON: str(record.reason),
        By.MODEL: record.served_model or record.model,
        By.ROUTE: record.route or "",
        By.KEY: record.tenant,
        By.HOUR: hour[record.received_at],
    }[by]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=some_records, by=st.sampled_from(By), since_s=st.sampled_from([None, 3_600, 86_400]))
def test_the_split_equals_a_plain_count(drawn: list[Record], by: By, since_s: float | None) -> None:
    """Counts, reasons, tokens, cost and percentiles equal a count in Python, in all and per group; sums add up."""
    records = [a_record(f"r{n}", **fields_of(record)) for n, record in enumerate(drawn)]
    with tempfile.TemporaryDirectory() as folder:
        store_of(Path(folder) / "l.db", records)
        result = split(Path(folder) / "l.db", since_s=since_s, by=by, now=NOON)
    inside = [r for r in records if since_s is None or r.received_at >= NOON - since_s]
    groups: dict[str, list[Record]] = {}
    for record in inside:
        groups.setdefault(key_of(record, by), []).append(record)
    expected = counted(inside)
    assert {name: getattr(result, name) for name in FIELDS} == {name: getattr(expected, name) for name in FIELDS}
    assert result.groups == {key: counted(members) for key, members in groups.items()}
    for one in (result, *result.groups.values()):
        assert one.requests == one.local + one.cloud + one.rejected + one.cancelled + one.failed
        assert one.requests == sum(one.by_reason.values())


FIELDS = [name for name in Split.__dataclass_fields__ if name != "groups"]


def fields_of(record: Record) -> dict:
    return {name: getattr(record, name) for name in Record.__dataclass_fields__ if name != "id"}


def test_the_json_has_exactly_the_agreed_keys(tmp_path: Path) -> None:
    """Scripts rely on the keys of split --json; groups appear only when asked for."""
    store_of(tmp_path / "l.db", [a_record(ttft_s=0.25)])
    document = split(tmp_path / "l.db").as_json()
    assert set(document) == KEYS
    assert document["tokens"] == {"local": 5, "cloud": 0, "discarded": 0}
    assert document["ttft_s"] == {"local": {"p50": 0.25, "p95": 0.25}, "cloud": {"p50": None, "p95": None}}
    grouped = split(tmp_path / "l.db", by=By.ROUTE).as_json()
    assert set(grouped) == KEYS | {"groups"}
    assert set(grouped["groups"]["auto"]) == KEYS


def test_cost_is_in_dollars_and_counts_failed_attempts(tmp_path: Path) -> None:
    """Money spent on answers nobody got is still money."""
    tried = (
        an_attempt(target=Target.CLOUD, outcome=Outcome.FAILED, cost_uusd=1_500_000, cost_estimated=True),
        an_attempt(target=Target.CLOUD, cost_uusd=500_000),
    )
    store_of(tmp_path / "l.db", [a_record(served_by=Target.CLOUD, attempts=tried)])
    result = split(tmp_path / "l.db")
    assert result.as_json()["cost_usd"] == 2.0
    assert result.cost_estimated_uusd == 1_500_000


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_counted(tmp_path: Path, reason: Reason) -> None:
    """Each word of the closed list appears under by_reason."""
    store_of(tmp_path / "l.db", [a_record(reason=reason)])
    assert split(tmp_path / "l.db").by_reason == {str(reason): 1}


def test_an_empty_window_is_all_zeros(tmp_path: Path) -> None:
    """Nothing in the window is an answer, not an error."""
    store_of(tmp_path / "l.db", [a_record()])
    assert split(tmp_path / "l.db", since_s=60, now=NOON + 3600, by=By.HOUR) == Split(groups={})


def test_no_ledger_is_its_own_error(tmp_path: Path) -> None:
    """A missing file, and one that a start has only just created, both mean: nothing recorded yet."""
    with pytest.raises(NoLedger):
        split(tmp_path / "none.db")
    (tmp_path / "fresh.db").touch()
    with pytest.raises(NoLedger):
        split(tmp_path / "fresh.db")


def test_predictions_are_set_against_what_came(tmp_path):
    """Early or late counts alike; who left before any local token, or was answered after all, says nothing."""
    local = an_attempt(target=Target.LOCAL, started_s=0.1, ttft_s=0.4)
    decided = Decision(target=Target.LOCAL, reason=Reason.WITHIN_BUDGET, stage="review_admission", predicted_ttft_s=0.7)
    records = [
        a_record("a", attempts=(local,), predicted_ttft_s=0.7, decisions=(decided,)),
        a_record("b", attempts=(local,), predicted_ttft_s=0.4, decisions=(replace(decided, predicted_ttft_s=0.4),)),
        a_record("c", attempts=(local,), predicted_ttft_s=9.0, reason=Reason.CLOUD_UNAVAILABLE),
        a_record("d", attempts=(replace(local, ttft_s=None),), predicted_ttft_s=9.0),
    ]
    store_of(tmp_path / "l.db", records)
    found = split(tmp_path / "l.db").prediction_error
    assert (found.p50, found.p95) == (pytest.approx(0.1), pytest.approx(0.2))
    assert records[0].prediction_error_s == pytest.approx(-0.2)
