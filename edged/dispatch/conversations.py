"""The kind of each query, and the author its conversation has so far."""

import time
from dataclasses import replace

from edged.config import RouteConfig
from edged.core import Status, Target
from edged.core.texts import TextsRequest
from edged.dispatch.trace import Trace
from edged.dispatch.upstreams import Upstreams
from edged.routing import affinity, kinds
from edged.routing.affinity import Authorship, Conversations
from edged.routing.policy import Terms


class Authors:
    """Remembers who answered which conversation; in memory alone, and without its text."""

    def __init__(self) -> None:
        self._known = Conversations()

    def __repr__(self) -> str:
        return f"Authors({len(self._known)})"

    def served_as(self, trace: Trace, route: RouteConfig, *, task: str | None = None) -> RouteConfig:
        """Find out the task and the conversation of a request; the route as it serves them.

        ``task``: the task file whose request it is. A task that is a guess gives way to the one the conversation began
        with: another model would begin cold.
        """
        if isinstance(trace.request, TextsRequest):
            return route
        kind = kinds.Kind(task, kinds.TaskSource.ASKED) if task else kinds.kind(trace.request)
        if route.keep_author:
            earlier, trace.conversation = affinity.digests(trace.request)
            trace.before = self._known.author(earlier, now_s=time.monotonic()) if earlier else None
        task = trace.before.task if trace.before and kind.is_guess else kind.task
        trace.task, trace.task_source = task, kind.source.value
        return route.serving(task)

    def keep(self, trace: Trace, allowed: Terms, upstreams: Upstreams) -> Terms:
        """The terms, with the author of the turn before at the head of the upstreams where it may be asked."""
        before = trace.before
        if before is None or before.target is not Target.CLOUD or before.name not in allowed.upstreams:
            return allowed
        if upstreams.refusal(before.name) is not None:
            return allowed
        others = tuple(name for name in allowed.upstreams if name != before.name)
        return replace(allowed, upstreams=(before.name, *others), keeps_author=before.stays)

    def note(self, trace: Trace, status: Status) -> None:
        """A request is over: its author is the conversation's, where it was answered."""
        author = trace.author
        if trace.conversation is None or author is None or status is not Status.OK:
            return
        stays = affinity.stays(author.target, trace.reason)
        written = Authorship(author.target, author.public_name, trace.task or "", stays)
        self._known.note(trace.conversation, written, now_s=time.monotonic())
