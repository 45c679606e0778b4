"""How long the server waits for a client, and a client for a sign of life."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """``body_s``: for a whole request body. ``comment_s``: silence in a stream before a comment fills it.

    ``gone_s``: how late a lost connection may be noticed.
    """

    body_s: float = 30.0
    comment_s: float = 10.0
    gone_s: float = 0.05
