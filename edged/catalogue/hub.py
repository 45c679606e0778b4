"""``hf://``: the hub's own library finds the file and says what it is, ``ranged`` brings the bytes.

``hf_hub_download`` would bring them too, but since huggingface_hub 1.x each call starts again from the first byte after
a kill: its temporary file belongs to one process and is deleted with it.
"""

import os
import re
from urllib.parse import urlsplit

from edged.catalogue import ranged
from edged.catalogue.part import Expected, Part, SourceFailed
from edged.catalogue.sources import HubFile, web_url

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TIMEOUT_S = 20.0
_NOT_A_HUB = "{host} does not answer like a hub: check HF_ENDPOINT and the proxy"


def append(part: Part, source: HubFile, *, expected: Expected, retry_waits_s: tuple[float, ...]) -> None:
    """Append a hub file, honouring ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE``. Raises: SourceFailed."""
    url, headers = _locate(source, expected)
    ranged.append(part, url, headers=headers, expected_bytes=expected.bytes, retry_waits_s=retry_waits_s)


def _locate(source: HubFile, expected: Expected) -> tuple[str, dict[str, str]]:
    """Ask the hub about the file; a wrong one is refused before any of it is fetched."""
    os.environ.setdefault(
        "HF_HUB_DISABLE_TELEMETRY", "1"
    )  # read at import: a box at the edge reports to nobody unasked
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.utils import build_hf_headers
    except ImportError as exc:
        raise SourceFailed("needs the hub extra: pip install 'edged[hub]'") from exc
    endpoint = os.environ.get("HF_ENDPOINT") or None
    # The HTTP library below the hub's has changed twice; its root error is always a base of HfHubHTTPError.
    failures = (OSError, ValueError, *HfHubHTTPError.__bases__)
    try:
        url = _checked(hf_hub_url(source.repo_id, source.file, revision=source.revision, endpoint=endpoint))
        headers = build_hf_headers(library_name="edged")
        found = get_hf_file_metadata(url, timeout=_TIMEOUT_S, library_name="edged")
    except failures as exc:
        raise SourceFailed(_reason(exc)) from exc
    if found.commit_hash is None:
        raise SourceFailed(_NOT_A_HUB.format(host=_host()))
    if None not in (found.size, expected.bytes) and found.size != expected.bytes:
        raise SourceFailed(f"offers {found.size} bytes where the catalogue promises {expected.bytes}")
    digest = found.etag or ""  # of a large file the hub's ETag is its digest
    if expected.sha256 and _SHA256.fullmatch(digest) and digest != expected.sha256:
        raise SourceFailed(f"holds another file: sha256 {digest} where the catalogue promises {expected.sha256}")
    return url, _request_headers(headers)


def _checked(url: str) -> str:
    """The token goes along: only https, or this very box."""
    try:
        return web_url(url)
    except ValueError as exc:
        raise SourceFailed(f"HF_ENDPOINT ({_host()}): {exc}") from exc


def _request_headers(headers: dict[str, str]) -> dict[str, str]:
    """The library's headers under the names urllib looks for; ``ranged`` drops the token on a foreign redirect."""
    return {name.title(): value for name, value in headers.items()}


def _reason(exc: Exception) -> str:
    """The hub's answer in one line, without the address and the request id its messages carry."""
    known = {
        "GatedRepoError": "is gated: accept its terms on the hub and set HF_TOKEN",
        "RepositoryNotFoundError": "no such repository, or a private one: set HF_TOKEN",
        "RevisionNotFoundError": "has no such revision",
        "EntryNotFoundError": "has no such file",
        "RemoteEntryNotFoundError": "has no such file",
        "OfflineModeIsEnabled": "the hub is switched off by HF_HUB_OFFLINE",
    }
    name = type(exc).__name__
    if name in known:
        return known[name]
    response = getattr(exc, "response", None)
    if response is not None:
        return f"the hub answered {response.status_code}"
    return f"the hub ({_host()}) cannot be reached: {name}"


def _host() -> str:
    return urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname or "?"
