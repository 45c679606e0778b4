"""``image_url`` parts: an https URL, which is passed on and never fetched here, or a data URL, which is checked."""

import binascii
import re
from typing import Any
from urllib.parse import urlsplit

from edged.core import Image
from edged.errors import InvalidRequest, Unsupported
from edged.server.wire import missing, shown_name, wrong_type, wrong_value

MAX_IMAGES = 16
MAX_IMAGE_BYTES = 5_242_880
MAX_URL_CHARACTERS = 4_096

_DETAILS = ("auto", "low", "high")
_DATA_URL = re.compile(r"data:([a-z]+/[a-z0-9.+-]+);base64,", re.IGNORECASE)
_BEGINS = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
}


def image(param: str, value: Any) -> Image:
    """The image of a part's ``image_url``; ``param`` names that field.

    Raises: InvalidRequest, Unsupported.
    """
    fields = {"url": value} if isinstance(value, str) else value
    if fields is None:
        raise missing(param)
    if not isinstance(fields, dict):
        raise wrong_type(param, "must be an object with a url", value)
    for name in fields.keys() - {"url", "detail"}:
        full = f"{param}.{shown_name(name)}"
        raise InvalidRequest(f"unknown parameter: {full}", param=full, code="unknown_parameter")
    detail = fields.get("detail")
    if detail is not None and detail not in _DETAILS:
        raise wrong_value(f"{param}.detail", "must be 'auto', 'low' or 'high'", detail)
    return _from_url(f"{param}.url", fields.get("url"), detail)


def _from_url(param: str, url: Any, detail: str | None) -> Image:
    if url is None:
        raise missing(param)
    if not isinstance(url, str):
        raise wrong_type(param, "must be a string", url)
    if url[:5].lower() == "data:":
        mime, data = _checked_data(param, url)
        return Image(mime=mime, data=data, detail=detail)
    if len(url) > MAX_URL_CHARACTERS:
        raise wrong_value(param, f"must have at most {MAX_URL_CHARACTERS} characters", None)
    if not _is_https(url):
        raise wrong_value(param, "must be an https URL with a host, or a base64 data URL", None)
    return Image(url=url, detail=detail)


def _is_https(url: str) -> bool:
    """A URL that a provider may fetch: no other scheme, no credentials, nothing that could break a line."""
    if not (url.isascii() and url.isprintable()) or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
    except ValueError:
        return False


def _checked_data(param: str, url: str) -> tuple[str, str]:
    """The type and the base64 text of a data URL whose bytes are what it says."""
    match = _DATA_URL.match(url)
    mime = match[1].lower().replace("image/jpg", "image/jpeg") if match else ""
    if match is None or mime not in _BEGINS:
        text = f"{param}: a data URL must be data:image/png, jpeg, webp or gif, in base64"
        raise Unsupported(text, param=param)
    data = url[match.end() :]
    if len(data) // 4 * 3 > MAX_IMAGE_BYTES + 2:
        raise wrong_value(param, f"must hold an image of at most {MAX_IMAGE_BYTES} bytes", None)
    try:
        raw = binascii.a2b_base64(data, strict_mode=True)
    except (binascii.Error, ValueError):
        raise wrong_value(param, "must hold valid base64", None) from None
    if len(raw) > MAX_IMAGE_BYTES:
        raise wrong_value(param, f"must hold an image of at most {MAX_IMAGE_BYTES} bytes", None)
    if not _BEGINS[mime].match(raw):
        raise wrong_value(param, f"must hold an image of the type it names, {mime}", None)
    return mime, data
