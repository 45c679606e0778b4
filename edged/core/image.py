"""Pictures in a conversation."""

from dataclasses import dataclass, field

IMAGE_MARK = "\ufffc"
"""Where a message's text holds a picture: Unicode's object replacement character."""


@dataclass(frozen=True, slots=True)
class Image:
    """One picture: an https ``url``, which edged never fetches, or base64 ``data`` of the type ``mime``.

    ``detail`` is OpenAI's wish for how closely to look: auto, low or high.
    """

    url: str | None = None
    mime: str | None = None
    data: str | None = field(default=None, repr=False)
    detail: str | None = None
