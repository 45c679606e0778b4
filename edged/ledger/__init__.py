"""The ledger: one honest row per request in SQLite, written by one thread, and the questions asked of it."""

from edged.ledger.audits import Agreed, Audits, audits
from edged.ledger.money import kept_money
from edged.ledger.queries import NoLedger, after, find, last_seq, tail
from edged.ledger.shares import Share, shares
from edged.ledger.story import story
from edged.ledger.summary import By, Percentiles, Split, Tokens, split
from edged.ledger.writer import Ledger, LedgerStats, Tuning

__all__ = [
    "Agreed",
    "Audits",
    "By",
    "Ledger",
    "LedgerStats",
    "NoLedger",
    "Percentiles",
    "Share",
    "Split",
    "Tokens",
    "Tuning",
    "after",
    "audits",
    "find",
    "kept_money",
    "last_seq",
    "shares",
    "split",
    "story",
    "tail",
]
