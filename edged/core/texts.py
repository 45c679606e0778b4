"""What a client asks that wants no text back: vectors of texts, or how well each answers a query."""

from dataclasses import dataclass

from edged.core.answer import Timings, Usage
from edged.core.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class TextsRequest(Request):
    """Texts, or token ids of the local model, to embed; with a ``query`` to rank against it.

    ``field`` is what the client calls the texts. ``input`` is all of them joined, as the ledger keeps a prompt.
    ``dimensions``: so many values of each vector are wanted.
    """

    texts: tuple[str | tuple[int, ...], ...]
    field: str
    query: str | None = None
    dimensions: int | None = None

    @property
    def purpose(self) -> str:
        """The ``purpose`` of a model that can answer this."""
        return "embed" if self.query is None else "rerank"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """One row of ``values`` floats per text, in the order asked: 32-bit floats in this machine's order."""

    data: bytes
    values: int
    usage: Usage
    timings: Timings
