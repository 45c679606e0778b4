"""What a provider's refusal means: HTTP statuses and error objects to our taxonomy.

Pure. A message names the upstream, the status and a code of the table below; the provider's own text never passes,
because it may echo keys or prompts.
"""

from collections.abc import Collection, Mapping
from http import HTTPStatus

from edged.errors import (
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRejected,
    UpstreamUnavailable,
)

_MEANING: Mapping[type[UpstreamError], tuple[str, ...]] = {
    UpstreamDenied: (
        "invalid_api_key",
        "api_key_invalid",
        "authentication_error",
        "unauthorized",
        "permission_error",
        "permission_denied",
        "insufficient_quota",
        "billing_error",
        "billing_hard_limit_reached",
        "payment_required",
        "account_deactivated",
    ),
    UpstreamBusy: (
        "rate_limit_exceeded",
        "rate_limit_error",
        "too_many_requests",
        "resource_exhausted",
        "overloaded",
        "overloaded_error",
        "engine_overloaded",
        "rejected_busy",
    ),
    UpstreamRejected: (
        "context_length_exceeded",
        "invalid_request",
        "invalid_request_error",
        "invalid_prompt",
        "invalid_argument",
        "model_not_found",
        "not_found_error",
        "unsupported_parameter",
        "unsupported_value",
        "content_filter",
        "content_policy_violation",
        "request_too_large",
        "template_error",
    ),
    UpstreamUnavailable: (
        "server_error",
        "internal_error",
        "internal_server_error",
        "api_error",
        "service_unavailable",
        "timeout",
        "not_ready",
    ),
}
_KIND_OF_CODE = {code: kind for kind, codes in _MEANING.items() for code in codes}
_COARSE = {
    (UpstreamRejected, UpstreamDenied),
    (UpstreamRejected, UpstreamBusy),
    (UpstreamBusy, UpstreamDenied),
}
_VERB = {
    UpstreamDenied: "refused our credentials or account",
    UpstreamBusy: "is overloaded or limits our rate",
    UpstreamRejected: "refused the request",
    UpstreamUnavailable: "failed",
}
_EMPTY_ACCOUNT = "your credit balance is too low"  # Anthropic's 400 for what others call a 402
_OVERLOADED = 529  # not in HTTP's registry; Anthropic and others use it


def find_error(document: Mapping[str, object]) -> object:
    """The error in a JSON answer, wherever providers put it; None or another false value where there is none."""
    return document if document.get("object") == "error" else document.get("error")


def raise_found(
    upstream: str, document: Mapping[str, object], *, sent: Collection[str], is_error: bool = False
) -> None:
    """Raise the error that a JSON answer holds, if any; ``is_error``: its event says that it is one."""
    if error := find_error(document) or (is_error and document):
        raise from_error_object(upstream, error, sent=sent)


def protocol_error(upstream: str, what: str, *, code: str | None = None) -> UpstreamProtocolError:
    """The provider's answer is not what its API promises."""
    return UpstreamProtocolError(f'upstream "{upstream}" {what}', upstream=upstream, code=code)


def unasked_call(upstream: str) -> UpstreamProtocolError:
    return protocol_error(upstream, "answered with a tool call, which nobody asked for")


def truncated(upstream: str) -> UpstreamProtocolError:
    what = "ended its stream before the answer was complete"
    return protocol_error(upstream, what, code="upstream_truncated")


def from_status(
    upstream: str,
    status: int,
    *,
    error: object = None,
    sent: Collection[str] = (),
    retry_after_s: float | None = None,
) -> UpstreamError:
    """The error an HTTP status of 400 or more stands for.

    ``error`` is the ``error`` member of the body, if any; ``sent`` the field names of our request body, the only ones
    that ``param`` may name.
    """
    kind, code = _refined(_kind_of_status(status), error)
    where, param = f"HTTP {status}", _param(error, sent)
    failure = _build(kind, upstream, where, code=code, param=param, retry_after_s=retry_after_s)
    failure.may_cost = False  # providers charge for answers, and an error status is none
    failure.answered = status
    return failure


def from_error_object(upstream: str, error: object, *, sent: Collection[str] = ()) -> UpstreamError:
    """The error that an ``error`` member inside a successful answer stands for, judged by its code (F07)."""
    status = _status_in(error)
    kind = UpstreamUnavailable if status is None else _kind_of_status(status)
    code = _known_code(error)
    if status is None and code is not None:
        kind = _KIND_OF_CODE[code]
    kind, _ = _refined(kind, error)
    where = "an error inside its answer" if status is None else f"error {status} inside its answer"
    return _build(kind, upstream, where, code=code, param=_param(error, sent))


def _kind_of_status(status: int) -> type[UpstreamError]:
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.FORBIDDEN}:
        return UpstreamDenied
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, _OVERLOADED}:
        return UpstreamBusy
    if status == HTTPStatus.REQUEST_TIMEOUT or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return UpstreamUnavailable
    return UpstreamRejected


def _refined(kind: type[UpstreamError], error: object) -> tuple[type[UpstreamError], str | None]:
    """Let the code correct a status too coarse for it: an empty account behind a 429, a bad key behind a 400."""
    code = _known_code(error)
    if kind is UpstreamRejected and _message(error).startswith(_EMPTY_ACCOUNT):
        return UpstreamDenied, code
    named = _KIND_OF_CODE.get(code or "")
    return (named if named and (kind, named) in _COARSE else kind), code


def _known_code(error: object) -> str | None:
    """The first of the provider's codes that is in the table; anything else is the provider's text and stays out."""
    if not isinstance(error, Mapping):
        return None
    names = (str(error.get(field)).lower() for field in ("code", "type", "status"))
    return next((name for name in names if name in _KIND_OF_CODE), None)


def _message(error: object) -> str:
    """What the provider wrote, to be compared and never repeated."""
    return str(error.get("message")).lower() if isinstance(error, Mapping) else ""


def _status_in(error: object) -> int | None:
    if not isinstance(error, Mapping):
        return None
    for field in ("code", "status"):
        text = str(error.get(field))
        if text.isascii() and text.isdigit() and len(text) == len("429") and int(text) >= HTTPStatus.BAD_REQUEST:
            return int(text)
    return None


def _param(error: object, sent: Collection[str]) -> str | None:
    param = error.get("param") if isinstance(error, Mapping) else None
    return param if isinstance(param, str) and param in sent else None


def _build(
    kind: type[UpstreamError],
    upstream: str,
    where: str,
    *,
    code: str | None,
    param: str | None,
    retry_after_s: float | None = None,
) -> UpstreamError:
    detail = ", ".join(part for part in (where, code, param and f"parameter {param}") if part)
    message = f'upstream "{upstream}" {_VERB[kind]} ({detail})'
    return kind(message, upstream=upstream, param=param, retry_after_s=retry_after_s)
