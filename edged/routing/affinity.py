"""Who answered a conversation's turns before, so that its next turn finds a warm prompt cache.

A conversation is known by a digest of what stands before its last assistant turn: exactly the messages of the request
that turn answered. The answer itself is left out, because clients trim it. No text is kept. Two conversations of one
tenant that begin with the same messages share an entry: the newer author counts, which costs no more than a cold cache.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from edged.core import Chat, Message, Reason, Request, Role, Target

KEPT_CONVERSATIONS = 4096
EXPIRY_S = 3600.0
_IMAGE_CHARS = 4096
"""A picture is known by its size and both ends: hashing megabytes would hold up everybody else."""

_LASTING = (
    Reason.PINNED_CLOUD,
    Reason.CONTEXT_OVERFLOW,
    Reason.CAPABILITY,
    Reason.LOW_CONFIDENCE,
    Reason.INVALID_OUTPUT,
    Reason.TRUNCATED,
    Reason.KEPT_AUTHOR,
)
"""The cloud answered for what the conversation is; any other reason was the moment's, and local is tried again."""


@dataclass(frozen=True, slots=True)
class Authorship:
    """Who answered, under which task. ``name`` is a local model's, or ``UPSTREAM/model``.

    ``stays``: the cloud is asked again without trying the local model first.
    """

    target: Target
    name: str
    task: str
    stays: bool


def stays(target: Target, reason: Reason) -> bool:
    """Whether an author in the cloud keeps the conversation; a local one is tried first in any case."""
    return target is Target.CLOUD and reason in _LASTING


def before_last_answer(request: Request) -> bytes | None:
    """The digest under which the earlier turn was noted; None where nobody has answered yet."""
    return digests(request)[0]


def whole(request: Request) -> bytes | None:
    """The digest under which this turn is noted; None where no conversation can follow."""
    return digests(request)[1]


def digests(request: Request) -> tuple[bytes | None, bytes | None]:
    """Both in one pass: 128 bits of tenant, model asked for and messages. Each part carries its length."""
    if not isinstance(request.input, Chat):
        return None, None
    messages, before = request.input.messages, None
    last = next((i for i in reversed(range(len(messages))) if messages[i].role is Role.ASSISTANT), 0)
    found = hashlib.blake2b(digest_size=16)
    _add(found, request.tenant)
    _add(found, request.model)
    for place, message in enumerate(messages):
        if place == last and last:
            before = found.digest()
        _add_message(found, message)
    return before, found.digest()


def _add_message(found: "hashlib.blake2b", message: Message) -> None:
    _add(found, message.role.value)
    _add(found, message.text or "")
    for call in message.tool_calls:
        _add(found, call.name)
        _add(found, call.arguments)
    for image in message.images:
        source = image.url or image.data or ""
        _add(found, f"{len(source)} {source[:_IMAGE_CHARS]}{source[-_IMAGE_CHARS:]}")


def _add(found: "hashlib.blake2b", part: str) -> None:
    data = part.encode("utf-8", "surrogatepass")
    found.update(len(data).to_bytes(8, "big"))
    found.update(data)


@dataclass(slots=True)
class Conversations:
    """The authors of the conversations of the last hour: the least recently used one goes first. Time is passed in."""

    limit: int = KEPT_CONVERSATIONS
    _entries: OrderedDict[bytes, tuple[float, Authorship]] = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self._entries)

    def note(self, conversation: bytes, author: Authorship, *, now_s: float) -> None:
        """A turn was answered."""
        self._entries[conversation] = (now_s, author)
        self._entries.move_to_end(conversation)
        while len(self._entries) > self.limit:
            self._entries.popitem(last=False)

    def author(self, conversation: bytes, *, now_s: float) -> Authorship | None:
        """Who answered the turn before; None where that is unknown or too long ago."""
        found = self._entries.get(conversation)
        if found is None:
            return None
        at_s, author = found
        if now_s - at_s > EXPIRY_S:
            del self._entries[conversation]
            return None
        self._entries.move_to_end(conversation)
        return author
