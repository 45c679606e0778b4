"""What the bodies of ``POST /v1/embeddings`` and ``POST /v1/rerank`` may hold, and the request they come to.

Any other field is an unknown parameter; none is ignored but ``user``, which changes no answer.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field
from pydantic_core import PydanticCustomError

from edged.core import Completion, Limits
from edged.core.texts import TextsRequest
from edged.errors import Unsupported
from edged.server.openai_bodies import EdgedOptions
from edged.server.openai_requests import limits, one_prompt
from edged.server.wire import Strict, validate, wrong_type, wrong_value

MAX_INPUTS = 2_048
MAX_DOCUMENTS = 1_000
MAX_DIMENSIONS = 65_536


class EmbeddingsBody(Strict):
    """``input`` is judged by ``_inputs``, which can say more than a union of types."""

    model: str = Field(min_length=1, max_length=200)
    input: Any
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(default=None, ge=1, le=MAX_DIMENSIONS)
    edged: EdgedOptions | None = None
    user: str | None = None


def _document(value: Any) -> Any:
    """A lone string stands for a document that is nothing but its text."""
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, dict):
        return value
    raise PydanticCustomError("invalid_type", "must be a string or an object with a text")


class Document(Strict):
    text: str = Field(min_length=1)


class RerankBody(Strict):
    model: str = Field(min_length=1, max_length=200)
    query: str = Field(min_length=1)
    documents: Annotated[
        list[Annotated[Document, BeforeValidator(_document)]], FailFast(), Field(min_length=1, max_length=MAX_DOCUMENTS)
    ]
    top_n: int | None = Field(default=None, ge=1)
    return_documents: bool | None = None
    edged: EdgedOptions | None = None
    user: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedTexts:
    """What a body asks of edged, and how its answer is to be written; ``most`` results of a ranking."""

    request: TextsRequest
    base64: bool = False
    most: int | None = None
    with_documents: bool = False


def embeddings_request(document: dict[str, Any], *, header: str | None = None, **known: Any) -> ParsedTexts:
    """Turn an embeddings body and an ``x-edged`` header into a request; ``known``: its id, receipt and tenant.

    Raises: InvalidRequest, Unsupported.
    """
    body = validate(EmbeddingsBody, document)
    texts = _inputs(body.input)
    request = TextsRequest(
        model=body.model,
        api="embeddings",
        input=Completion(_joined(texts)),
        texts=texts,
        field="input",
        dimensions=body.dimensions,
        limits=_limits(body.edged, header),
        **known,
    )
    return ParsedTexts(request=request, base64=body.encoding_format == "base64")


def rerank_request(document: dict[str, Any], *, header: str | None = None, **known: Any) -> ParsedTexts:
    """Turn a rerank body and an ``x-edged`` header into a request; ``known``: its id, receipt and tenant.

    Raises: InvalidRequest, Unsupported.
    """
    body = validate(RerankBody, document)
    texts = tuple(document.text for document in body.documents)
    request = TextsRequest(
        model=body.model,
        api="rerank",
        input=Completion(_joined((body.query, *texts))),
        texts=texts,
        field="documents",
        query=body.query,
        limits=_limits(body.edged, header),
        **known,
    )
    return ParsedTexts(request=request, most=body.top_n, with_documents=bool(body.return_documents))


def _inputs(given: Any) -> tuple[str | tuple[int, ...], ...]:
    """A string, token ids, or an array of either."""
    if not isinstance(given, str | list):
        raise wrong_type("input", "must be a string, an array of strings, or token ids", given)
    if isinstance(given, str) or not given or not isinstance(given[0], str | list):
        return (one_prompt("input", given),)
    if len(given) > MAX_INPUTS:
        raise wrong_value("input", f"must have at most {MAX_INPUTS} entries", len(given))
    kind = type(given[0])
    for i, entry in enumerate(given):
        if type(entry) is not kind:
            raise wrong_type(
                f"input[{i}]", f"must be {'a string' if kind is str else 'token ids'} as input[0] is", entry
            )
    return tuple(one_prompt(f"input[{i}]", entry) for i, entry in enumerate(given))


def _joined(texts: tuple[str | tuple[int, ...], ...]) -> str:
    return "\n".join(t if isinstance(t, str) else " ".join(map(str, t)) for t in texts)


def _limits(body: EdgedOptions | None, header: str | None) -> Limits:
    """Vectors have no confidence, and nobody else to be asked in time."""
    asked = limits(body, header)
    for name, value in (("deadline_ms", asked.deadline_s), ("min_confidence", asked.min_confidence)):
        if value is not None:
            param = f"edged.{name}"
            raise Unsupported(f"{param} is not supported for embeddings and ranking: leave it out", param=param)
    return asked
