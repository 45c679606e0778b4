"""Where a model file can come from: the four source forms, parsed and checked before anything is fetched."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

_SEGMENT = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB = re.compile(
    rf"(?P<owner>{_SEGMENT})/(?P<repo>{_SEGMENT}?)(@(?P<revision>[A-Za-z0-9][A-Za-z0-9._-]*))?/(?P<file>.+)"
)
_PYPI = re.compile(rf"(?P<package>{_SEGMENT})==(?P<version>[A-Za-z0-9][A-Za-z0-9.+!_-]*)/(?P<member>.+)")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True)
class HubFile:
    """``hf://OWNER/REPO[@REVISION]/FILE``"""

    owner: str
    repo: str
    file: str
    revision: str = "main"

    @property
    def repo_id(self) -> str:
        return f"{self.owner}/{self.repo}"

    def __str__(self) -> str:
        return f"hf://{self.repo_id}@{self.revision}/{self.file}"


@dataclass(frozen=True, slots=True)
class WebFile:
    """``https://HOST/PATH``; plain http only to this box. Shown without its query, which may be a signature."""

    url: str

    def __str__(self) -> str:
        return without_query(self.url)


@dataclass(frozen=True, slots=True)
class WheelMember:
    """``pypi://PACKAGE==VERSION/MEMBER``: a file inside a wheel of the configured package index."""

    package: str
    version: str
    member: str

    def __str__(self) -> str:
        return f"pypi://{self.package}=={self.version}/{self.member}"


@dataclass(frozen=True, slots=True)
class LocalFile:
    """``file:///ABSOLUTE/PATH``"""

    path: Path

    def __str__(self) -> str:
        return f"file://{self.path}"


Source = HubFile | WebFile | WheelMember | LocalFile


@dataclass(frozen=True, slots=True)
class Origin:
    """One complete way to get a file: its pieces, concatenated in order. Most have a single piece."""

    pieces: tuple[Source, ...]

    def __str__(self) -> str:
        more = len(self.pieces) - 1
        return str(self.pieces[0]) + (f" and {more} more" if more else "")


def parse_origin(value: object) -> Origin:
    """Read one entry of ``sources``: a source, or a list of sources to concatenate. Raises: ValueError."""
    texts = value if isinstance(value, list | tuple) else [value]
    if not texts:
        raise ValueError("a list of pieces must not be empty")
    return Origin(tuple(parse(text) for text in texts))


def parse(text: object) -> Source:
    """Read one source. Raises: ValueError that says what the form should be."""
    if not isinstance(text, str):
        raise ValueError(f"a source is text, not {type(text).__name__}")  # noqa: TRY004 - pydantic collects ValueErrors
    scheme, separator, rest = text.partition("://")
    if not separator or any(character <= " " or character == "\x7f" for character in text):
        raise ValueError("must be hf://, https://, pypi:// or file:// without spaces or control characters")
    match scheme:
        case "hf":
            return _hub(rest)
        case "https" | "http":
            return WebFile(web_url(text))
        case "pypi":
            return _wheel(rest)
        case "file":
            return _local(rest)
    raise ValueError(f"unknown scheme {scheme[:20]!r}: must be hf, https, pypi or file")


def web_url(url: str) -> str:
    """Accept a URL that may be fetched; also asked for every redirect. Raises: ValueError."""
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("a URL must not hold credentials")
    if not parts.hostname or parts.port == 0:  # the port is parsed, and refused, as it is read
        raise ValueError("a URL needs a host and a possible port")
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return url
    raise ValueError("must be https (plain http is only for this box)")


def without_query(url: str) -> str:
    """A URL fit for a message: signed links carry their secret in the query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _hub(rest: str) -> HubFile:
    match = _HUB.fullmatch(rest)
    if not match:
        raise ValueError("must be hf://OWNER/REPO[@REVISION]/FILE")
    return HubFile(match["owner"], match["repo"], _inner_path(match["file"]), match["revision"] or "main")


def _wheel(rest: str) -> WheelMember:
    match = _PYPI.fullmatch(rest)
    if not match:
        raise ValueError("must be pypi://PACKAGE==VERSION/MEMBER")
    return WheelMember(match["package"], match["version"], _inner_path(match["member"]))


def _local(rest: str) -> LocalFile:
    path = Path(unquote(rest.removeprefix("localhost")))
    if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise ValueError("must be file:///ABSOLUTE/PATH")
    return LocalFile(path)


def _inner_path(text: str) -> str:
    """A path inside a repository or an archive: relative, downward, plain."""
    if text.startswith("/") or "\\" in text or text != str(PurePosixPath(text)) or ".." in text.split("/"):
        raise ValueError(f"{text[:80]!r} is not a plain relative path")
    return text
