"""hf:// through the real huggingface_hub library against a stand-in hub on loopback."""

import sys

import pytest

from edged.catalogue import State
from edged.errors import CatalogueError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESOLVE = "/owner/repo/resolve/main/m.gguf"
SOURCE = "hf://owner/repo/m.gguf"


@pytest.fixture
def hub(server, monkeypatch, model, an_entry):
    """A hub that keeps large files on another host, as the real one does."""
    monkeypatch.setenv("HF_ENDPOINT", server.url("").rstrip("/"))
    monkeypatch.setenv("HF_TOKEN", "hf_CANARY")
    linked = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(model)), "X-Linked-Etag": f'"{an_entry().sha256}"'}
    server.serve("/cdn/blob", body=model)
    server.serve(RESOLVE, status=302, location=server.url("/cdn/blob", host="localhost"), headers=linked, etag=None)
    return server


def test_a_hub_file_is_found_followed_and_checked(hub, an_entry, a_pull, model) -> None:
    """The library asks the hub, the bytes come from where the hub points."""
    assert a_pull(an_entry(SOURCE)).run().path.read_bytes() == model
    assert [(seen.method, seen.path) for seen in hub.seen] == [
        ("HEAD", RESOLVE),
        ("GET", RESOLVE),
        ("GET", "/cdn/blob"),
    ]


def test_a_hub_download_goes_on_after_a_failure(hub, an_entry, a_pull, model) -> None:
    """A second pull asks the hub's storage for the rest only."""
    hub.pages["/cdn/blob"].always_cut = 300_000
    with pytest.raises(CatalogueError, match="truncated"):
        a_pull(an_entry(SOURCE)).run()
    hub.pages["/cdn/blob"].always_cut = None
    assert a_pull(an_entry(SOURCE)).run().state is State.INSTALLED
    assert hub.ranges[-1] == "bytes=300000-"
    assert hub.seen[-1].sent_bytes == len(model) - 300_000


def test_the_token_goes_to_the_hub_and_nowhere_else(hub, an_entry, a_pull) -> None:
    """The storage host that the hub redirects to never sees the credential."""
    a_pull(an_entry(SOURCE)).run()
    tokens = {(seen.path, seen.method): seen.headers.get("authorization") for seen in hub.seen}
    assert tokens[RESOLVE, "GET"] == "Bearer hf_CANARY"
    assert tokens["/cdn/blob", "GET"] is None


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"status": 404, "headers": {"X-Error-Code": "EntryNotFound"}}, "has no such file"),
        ({"status": 404, "headers": {"X-Error-Code": "RevisionNotFound"}}, "has no such revision"),
        ({"status": 404, "headers": {"X-Error-Code": "RepoNotFound"}}, "no such repository, or a private one"),
        ({"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, "is gated: accept its terms"),
        ({"status": 200, "body": b"<html>", "content_type": "text/html"}, "does not answer like a hub"),
        ({"headers": {"X-Repo-Commit": COMMIT, "X-Linked-Size": "12"}}, "offers 12 bytes where the catalogue promises"),
        ({"headers": {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{"0" * 64}"'}}, "holds another file: sha256 0000"),
    ],
)
def test_what_the_hub_refuses_is_said_in_words(hub, an_entry, a_pull, model, page, message) -> None:
    """Every refusal is one line that names the fault, without the token, before anything is downloaded."""
    hub.serve(RESOLVE, **({"body": model} | page))
    with pytest.raises(CatalogueError, match=message) as caught:
        a_pull(an_entry(SOURCE)).run()
    assert "CANARY" not in caught.value.message
    assert "\n" not in caught.value.message
    assert hub.ranges == []


def test_a_hub_that_is_not_there_lets_the_next_source_try(hub, an_entry, a_pull, monkeypatch, notes) -> None:
    """A box without the hub still gets the model from a mirror."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert a_pull(an_entry(SOURCE, hub.url("/cdn/blob"))).run().state is State.INSTALLED
    assert "the hub (127.0.0.1) cannot be reached" in notes.notes[0]


def test_without_the_extra_the_pip_line_is_given(hub, an_entry, a_pull, monkeypatch) -> None:
    """A base install names what is missing."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CatalogueError, match=r"needs the hub extra: pip install 'edged\[hub\]'"):
        a_pull(an_entry(SOURCE)).run()


def test_credentials_never_go_over_plain_http_to_another_host(hub, an_entry, a_pull, monkeypatch) -> None:
    """An endpoint that is neither https nor this box is refused before it is asked."""
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example")
    with pytest.raises(CatalogueError, match=r"HF_ENDPOINT \(hub\.example\): must be https"):
        a_pull(an_entry(SOURCE)).run()
