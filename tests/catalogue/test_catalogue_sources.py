"""The four source forms."""

from pathlib import Path

import pytest

from edged.catalogue.sources import HubFile, LocalFile, WebFile, WheelMember, parse, parse_origin


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://owner/repo/file.gguf", HubFile("owner", "repo", "file.gguf")),
        ("hf://owner/Re.po-1@v1.0/sub/file.gguf", HubFile("owner", "Re.po-1", "sub/file.gguf", "v1.0")),
        ("https://host.example:8443/a/b.gguf?x=1", WebFile("https://host.example:8443/a/b.gguf?x=1")),
        ("http://127.0.0.1:9/a", WebFile("http://127.0.0.1:9/a")),
        ("http://[::1]:9/a", WebFile("http://[::1]:9/a")),
        ("pypi://some-pkg==1.0.post1+cpu/pkg/m.gguf", WheelMember("some-pkg", "1.0.post1+cpu", "pkg/m.gguf")),
        ("file:///srv/models/a%20b.gguf", LocalFile(Path("/srv/models/a b.gguf"))),
        ("file://localhost/srv/a.gguf", LocalFile(Path("/srv/a.gguf"))),
    ],
)
def test_every_form_is_read_as_what_it_says(text, source) -> None:
    """Each form becomes its own type with its parts taken apart."""
    assert parse(text) == source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (7, "a source is text"),
        ("just-a-name", "must be hf://"),
        ("ftp://host/file", "unknown scheme 'ftp'"),
        ("hf://owner/file.gguf", "hf://OWNER/REPO"),
        ("hf://owner/repo/../../x", "not a plain relative path"),
        ("hf://owner/repo//etc/passwd", "not a plain relative path"),
        ("hf://owner/repo@../x/file", "hf://OWNER/REPO"),
        ("https://user:secret@host/file", "must not hold credentials"),
        ("https:///file", "needs a host"),
        ("https://host:port/file", "[Pp]ort"),
        ("https://host:0/file", "possible port"),
        ("https://[::1/file", "IPv6"),
        ("http://host.example/file", "must be https"),
        ("pypi://pkg/member", "pypi://PACKAGE==VERSION/MEMBER"),
        ("pypi://-r==1/member", "pypi://PACKAGE==VERSION/MEMBER"),
        ("pypi://pkg==1.0/../member", "not a plain relative path"),
        ("pypi://pkg==1.0/a\\b", "not a plain relative path"),
        ("file://relative/path", "file:///ABSOLUTE/PATH"),
        ("file:///a/../etc/passwd", "file:///ABSOLUTE/PATH"),
        ("file:///a/%2e%2e/etc", "file:///ABSOLUTE/PATH"),
        ("file:///a%00b", "file:///ABSOLUTE/PATH"),
        ("https://host/a b", "without spaces"),
        ("https://host/a\r\nHost: x", "control characters"),
    ],
)
def test_what_is_not_a_source_is_refused_with_its_form(text, message) -> None:
    """A source that could leave its archive, smuggle an option or hold a secret never becomes one."""
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_secret_in_a_refused_url_is_not_repeated() -> None:
    """The error for credentials in a URL does not hold them."""
    with pytest.raises(ValueError, match="credentials") as caught:
        parse("https://user:S3CRET@host/file")
    assert "S3CRET" not in str(caught.value)


def test_a_shown_url_has_no_query() -> None:
    """A signed link is shown without its signature."""
    assert str(parse("https://host.example/file?sig=S3CRET")) == "https://host.example/file"


def test_a_list_is_one_origin_of_several_pieces() -> None:
    """One entry of sources is a source or a non-empty list of them."""
    assert len(parse_origin("hf://o/r/f").pieces) == 1
    assert str(parse_origin(["hf://o/r/a", "hf://o/r/b", "hf://o/r/c"])) == "hf://o/r@main/a and 2 more"
    with pytest.raises(ValueError, match="must not be empty"):
        parse_origin([])
