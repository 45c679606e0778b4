"""Doubles that ship with edged, for its own tests and for those of code that uses it."""

from edged.testing.upstream import Reply, ScriptedUpstream, Seen

__all__ = ["Reply", "ScriptedUpstream", "Seen"]
