"""Counts of what was hidden from the cloud survive the file and are told."""

import pytest
from ledger_builders import FAST, a_record

from edged.ledger import Ledger, find, story


@pytest.mark.parametrize(
    ("redacted", "told"),
    [
        (None, None),
        ((), "hidden from the cloud: nothing was found to hide"),
        ((("card", 1), ("email", 2)), "hidden from the cloud: 1 card, 2 email"),
    ],
)
def test_counts_come_back_as_they_went_in(tmp_path, redacted, told):
    """None: no upstream saw a redacted request. Empty: one did, and nothing had been found."""
    ledger = Ledger.open(tmp_path / "ledger.db", keep_days=1, store_text=False, tuning=FAST)
    record = a_record(redacted=redacted)
    ledger.append(record)
    assert ledger.flush(10)
    ledger.close(5)
    kept = find(tmp_path / "ledger.db", record.id)
    assert kept.redacted == redacted
    lines = [line.strip() for line in story(kept) if "hidden" in line]
    assert lines == ([told] if told else [])
