"""Resumable downloads over HTTP with the standard library, which honours the usual proxy and certificate variables."""

import http.client
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any
from urllib.parse import urljoin, urlsplit

from edged.catalogue.part import Part, SourceFailed, check_head
from edged.catalogue.sources import web_url, without_query

RETRY_WAITS_S = (1.0, 2.0, 4.0)
_TIMEOUT_S = 30.0
_BLOCK_BYTES = 131_072
_PERMANENT_BELOW = 500
_TRANSIENT = frozenset({408, 425, 429})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Dropped(SourceFailed):
    """The transfer stopped early: what came is kept and the rest may be asked for again."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to allowed places only, and takes credentials to no other host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        target = urljoin(req.full_url, newurl)
        try:
            web_url(target)
        except ValueError as exc:
            raise SourceFailed(f"redirects to {without_query(target)}, which is not allowed: {exc}") from exc
        onward = super().redirect_request(req, fp, code, msg, headers, target)
        if onward is not None and urlsplit(target).netloc != urlsplit(req.full_url).netloc:
            onward.remove_header("Authorization")
        return onward


def append(
    part: Part,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    expected_bytes: int | None = None,
    retry_waits_s: tuple[float, ...] = RETRY_WAITS_S,
) -> None:
    """Append what ``url`` serves to the part, going on from what is there and again after a drop.

    ``expected_bytes`` is the size of the whole resource where it is known. Raises: SourceFailed.
    """
    fruitless = 0
    while True:
        before = part.size_bytes
        try:
            _attempt(part, url, headers=headers or {}, expected_bytes=expected_bytes)
        except Dropped:
            fruitless = 0 if part.size_bytes > before else fruitless + 1
            if fruitless >= len(retry_waits_s):
                raise
            time.sleep(retry_waits_s[fruitless])
        else:
            return


def _attempt(part: Part, url: str, *, headers: Mapping[str, str], expected_bytes: int | None) -> None:
    """One request. An answer that cannot be the file is refused before any byte that is already here is given up."""
    request = urllib.request.Request(url, headers={**headers, **_range_headers(part, url)})  # noqa: S310 - web_url
    with _mapped_errors(part), _opener().open(request, timeout=_TIMEOUT_S) as response:
        _check_kind(response)
        start = _start_bytes(response, part.offset_bytes)
        total_bytes = _total_bytes(response, start)
        _check_total(total_bytes, expected_bytes)
        first = response.read(_BLOCK_BYTES)
        if part.size_bytes == part.offset_bytes and start == 0:
            check_head(first)
        if start != part.offset_bytes:
            part.rewind()
        part.remember(url, _strong_validator(response))
        _copy(part, first, response)
        if total_bytes is not None and part.offset_bytes < total_bytes:
            raise Dropped(f"truncated: {part.offset_bytes} of {total_bytes} bytes came")


def _copy(part: Part, first: bytes, response: http.client.HTTPResponse) -> None:
    block = first
    while block:
        part.write(block)
        block = response.read(_BLOCK_BYTES)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_Redirects)


def _range_headers(part: Part, url: str) -> dict[str, str]:
    headers = {"User-Agent": "edged", "Accept-Encoding": "identity"}
    if part.offset_bytes:
        headers["Range"] = f"bytes={part.offset_bytes}-"
        if validator := part.validator(url):
            headers["If-Range"] = validator
    return headers


def _check_kind(response: http.client.HTTPResponse) -> None:
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml"):
        raise SourceFailed("sent an HTML page instead of the model (a login or proxy page?)")
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise SourceFailed(f"sent the file compressed ({encoding[:20]}), which was not asked for")


def _start_bytes(response: http.client.HTTPResponse, asked_bytes: int) -> int:
    """Where the answer begins: a 200 is the whole file even where a range was asked for."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not match or int(match[1]) != asked_bytes:
        raise SourceFailed("answered another range than the one asked for")
    return asked_bytes


def _total_bytes(response: http.client.HTTPResponse, start: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() else None


def _check_total(total_bytes: int | None, expected_bytes: int | None) -> None:
    if None not in (total_bytes, expected_bytes) and total_bytes != expected_bytes:
        raise SourceFailed(f"offers {total_bytes} bytes where the catalogue promises {expected_bytes}")


def _strong_validator(response: http.client.HTTPResponse) -> str | None:
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return str(etag)
    modified = response.headers.get("Last-Modified")
    return str(modified) if modified else None


@contextmanager
def _mapped_errors(part: Part) -> Iterator[None]:
    """Turn what urllib raises into our two: worth asking again, or not. Nothing shown holds a query or a header."""
    try:
        yield
    except urllib.error.HTTPError as exc:
        with exc:
            raise _status_error(exc, part) from exc
    except (OSError, http.client.HTTPException) as exc:
        raise _transport_error(exc, part) from exc
    except ValueError as exc:  # urllib parses hosts and redirect targets as it goes
        raise SourceFailed("answered with something malformed") from exc


def _status_error(exc: urllib.error.HTTPError, part: Part) -> SourceFailed:
    if exc.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and part.offset_bytes:
        part.rewind()
        return Dropped("has no such range: its file is shorter than what is here")
    if http.client.MULTIPLE_CHOICES <= exc.code < http.client.BAD_REQUEST:
        loop = _Redirects.inf_msg in str(exc.msg)
        return SourceFailed("redirects in a loop" if loop else f"redirects where it must not (HTTP {exc.code})")
    text = f"answered {exc.code} {http.client.responses.get(exc.code, '')}".rstrip()
    if exc.code in _TRANSIENT or exc.code >= _PERMANENT_BELOW:
        return Dropped(text)
    return SourceFailed(text)


def _transport_error(exc: OSError | http.client.HTTPException, part: Part) -> SourceFailed:
    """A connection lost on the way is tried again; one that never stood lets the next source have its turn."""
    reason: Any = exc.reason if isinstance(exc, urllib.error.URLError) else exc
    if isinstance(reason, ssl.SSLCertVerificationError):
        return SourceFailed(f"its certificate is not trusted: {reason.verify_message}")
    text = "no answer in time" if isinstance(reason, TimeoutError) else _plain(reason)
    never_stood = isinstance(exc, urllib.error.URLError) and part.size_bytes == 0
    return SourceFailed(f"cannot be reached: {text}") if never_stood else Dropped(f"the connection broke: {text}")


def _plain(reason: object) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason)[:200] or type(reason).__name__
