"""Pulling over HTTP: what is kept, what is asked again, and what never gets the final name."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edged.catalogue import State
from edged.errors import CatalogueError

HTML = b"<!DOCTYPE html><html><body>Please log in</body></html>"


def listing(store) -> list[str]:
    return sorted(path.name for path in store.directory.iterdir())


def test_a_pull_leaves_the_model_its_record_and_no_leftovers(server, store, an_entry, a_pull, model) -> None:
    """A pulled model has its final name, is known to be verified, and nothing of the pull remains."""
    entry = an_entry(server.serve("/m.gguf", body=model))
    found = a_pull(entry).run()
    assert (found.state, found.bytes, found.path.read_bytes()) == (State.INSTALLED, len(model), model)
    assert listing(store) == ["tiny.gguf", "tiny.gguf.json", "tiny.gguf.lock"]


def test_an_installed_model_is_not_fetched_again(server, an_entry, a_pull, model) -> None:
    """A second pull asks no server, even where every source is gone."""
    a_pull(an_entry(server.serve("/m.gguf", body=model))).run()
    assert a_pull(an_entry(server.url("/gone"))).run().state is State.INSTALLED
    assert len(server.seen) == 1


def test_a_dropped_connection_fetches_only_the_rest(server, an_entry, a_pull, model) -> None:
    """Two drops in one pull cost no byte twice."""
    entry = an_entry(server.serve("/m.gguf", body=model, cuts=[300_000, 200_000]))
    assert a_pull(entry).run().path.read_bytes() == model
    assert server.ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert sum(seen.sent_bytes for seen in server.seen) == len(model)


def test_a_later_pull_goes_on_where_an_earlier_one_ended(server, store, an_entry, a_pull, model) -> None:
    """What came before the failure is kept, and the rest is asked for on the condition that the file is the same."""
    entry = an_entry(server.serve("/m.gguf", body=model, always_cut=400_000))
    with pytest.raises(CatalogueError, match=f"truncated: 400000 of {len(model)} bytes came"):
        a_pull(entry).run()
    assert store.status(entry).state is State.PARTIAL
    assert store.status(entry).bytes == 400_000
    server.pages["/m.gguf"].always_cut = None
    assert a_pull(entry).run().path.read_bytes() == model
    assert server.ranges[-1] == "bytes=400000-"
    assert server.seen[-1].headers["if-range"] == '"v1"'


def test_a_file_that_changed_on_the_server_is_fetched_whole(server, an_entry, a_pull, model) -> None:
    """A new ETag means new bytes: old and new are never joined."""
    url = server.serve("/m.gguf", body=b"GGUF" + b"x" * (len(model) - 4), etag='"old"', always_cut=1000)
    with pytest.raises(CatalogueError):
        a_pull(an_entry(url)).run()
    server.serve("/m.gguf", body=model, etag='"new"')
    assert a_pull(an_entry(url)).run().path.read_bytes() == model
    assert server.seen[-1].sent_bytes == len(model)


def test_a_server_that_ignores_ranges_still_yields_the_right_file(server, an_entry, a_pull, model) -> None:
    """A 200 where a range was asked for replaces what is here instead of being appended to it."""
    entry = an_entry(server.serve("/m.gguf", body=model, honours_range=False, cuts=[300_000]))
    assert a_pull(entry).run().path.read_bytes() == model


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_an_html_page_is_called_one(server, store, an_entry, a_pull, content_type) -> None:
    """A login or proxy page is named as such, whatever type it claims, and leaves nothing behind."""
    entry = an_entry(server.serve("/m.gguf", body=HTML, content_type=content_type), bytes=len(HTML))
    with pytest.raises(CatalogueError, match="sent an HTML page instead of the model"):
        a_pull(entry).run()
    assert listing(store) == ["tiny.gguf.lock"]


def test_an_html_page_does_not_cost_what_is_already_here(server, store, an_entry, a_pull, model) -> None:
    """A captive portal in the middle of a download leaves the part as it was."""
    entry = an_entry(server.serve("/m.gguf", body=model, always_cut=400_000))
    with pytest.raises(CatalogueError):
        a_pull(entry).run()
    server.serve("/m.gguf", body=HTML, content_type="text/html", honours_range=False)
    with pytest.raises(CatalogueError, match="HTML page"):
        a_pull(entry).run()
    assert store.status(entry).bytes == 400_000


def test_a_short_file_without_a_length_is_truncated(server, store, an_entry, a_pull, model) -> None:
    """Where no length was declared, the catalogue's own says that the end is missing."""
    entry = an_entry(server.serve("/m.gguf", body=model[:5000], declares_length=False))
    with pytest.raises(CatalogueError, match=f"truncated: 5000 of {len(model)} bytes came"):
        a_pull(entry).run()
    assert not store.files(entry).final.exists()


def test_a_wrong_digest_never_gets_the_final_name(server, store, an_entry, a_pull, model) -> None:
    """Bytes of the right number with the wrong digest are thrown away, with both digests in the error."""
    wrong = model[:-1] + b"!"
    entry = an_entry(server.serve("/m.gguf", body=wrong))
    with pytest.raises(CatalogueError, match=f"wrong digest: sha256 is [0-9a-f]{{64}} .* promises {entry.sha256}"):
        a_pull(entry).run()
    assert listing(store) == ["tiny.gguf.lock"]


def test_a_file_of_another_size_is_refused_before_it_is_fetched(server, an_entry, a_pull, model) -> None:
    """The declared length is compared with the catalogue's before the disk is filled."""
    entry = an_entry(server.serve("/m.gguf", body=model + b"more"))
    with pytest.raises(CatalogueError, match=f"offers {len(model) + 4} bytes where the catalogue promises"):
        a_pull(entry).run()


def test_an_endless_file_is_stopped_at_the_promised_size(server, store, an_entry, a_pull, model) -> None:
    """A server that declares no length cannot fill the disk."""
    entry = an_entry(server.serve("/m.gguf", body=model * 3, declares_length=False))
    with pytest.raises(CatalogueError, match="sends more than"):
        a_pull(entry).run()
    assert store.status(entry).bytes <= len(model)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"status": 404}, "answered 404 Not Found"),
        ({"status": 403}, "answered 403 Forbidden"),
        ({"status": 503}, "answered 503 Service Unavailable"),
        ({"status": 302, "location": "/m.gguf"}, "redirects in a loop"),
        (
            {"status": 302, "location": "http://elsewhere.example/m?sig=S3CRET"},
            "redirects to http://elsewhere.example/m,",
        ),
        ({"status": 302, "location": "file:///etc/passwd"}, "redirects where it must not"),
        ({"status": 302, "location": "https://[::1/m.gguf"}, "malformed"),
        (
            {"status": 302, "location": "https://host:port/m.gguf"},
            "redirects to https://host:port/m.gguf, which is not",
        ),
        ({"body": b"GGUF", "headers": {"Content-Encoding": "gzip"}}, "compressed"),
    ],
)
def test_what_a_server_did_wrong_is_said_in_words(server, an_entry, a_pull, page, message) -> None:
    """Every refusal names the fault in one line and never shows a signature."""
    with pytest.raises(CatalogueError, match=message) as caught:
        a_pull(an_entry(server.serve("/m.gguf", **page))).run()
    assert "S3CRET" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_redirect_is_followed(server, an_entry, a_pull, model) -> None:
    """A resource that moved is fetched from where it went."""
    server.serve("/real", body=model)
    entry = an_entry(server.serve("/m.gguf", status=302, location=server.url("/real", host="localhost")))
    assert a_pull(entry).run().path.read_bytes() == model


def test_sources_are_tried_in_order_and_every_reason_is_kept(server, an_entry, a_pull, notes, model) -> None:
    """The final error holds each source with its own reason; a later source that works ends the search."""
    page = server.serve("/page", body=HTML, content_type="text/html")
    dead = "http://127.0.0.1:9/m.gguf"
    with pytest.raises(CatalogueError) as caught:
        a_pull(an_entry(server.url("/gone"), page, dead, "file:///nowhere/m.gguf")).run()
    reasons = caught.value.message.split(": ", 1)[1].split("; ")
    assert [reason.rsplit(": ", 1)[0] for reason in reasons][:2] == [server.url("/gone"), page]
    assert "404" in reasons[0]
    assert "HTML" in reasons[1]
    assert "cannot be reached: Connection refused" in reasons[2]
    assert "cannot be read: No such file" in reasons[3]
    assert a_pull(an_entry(page, server.serve("/ok", body=model))).run().state is State.INSTALLED
    assert "trying the next source" in notes.notes[-1]


def test_the_next_source_goes_on_with_what_the_last_one_gave(server, an_entry, a_pull, model) -> None:
    """A pinned digest makes bytes interchangeable: a second mirror sends only the rest."""
    first = server.serve("/first", body=model, always_cut=400_000)
    second = server.serve("/second", body=model)
    assert a_pull(an_entry(first, second)).run().path.read_bytes() == model
    assert server.ranges[-1] == "bytes=400000-"


def test_what_lies_here_and_is_wrong_costs_one_fresh_start(server, store, an_entry, a_pull, model) -> None:
    """A part spoiled by a power cut cannot make every later pull fail."""
    entry = an_entry(server.serve("/m.gguf", body=model))
    store.directory.mkdir()
    store.files(entry).part.write_bytes(b"GGUF" + bytes(1000))
    assert a_pull(entry).run().path.read_bytes() == model
    assert server.ranges == ["bytes=1004-", None]


def test_a_part_longer_than_the_model_is_dropped(server, store, an_entry, a_pull, model) -> None:
    """A leftover of some other size does not confuse the resumption."""
    entry = an_entry(server.serve("/m.gguf", body=model))
    store.directory.mkdir()
    store.files(entry).part.write_bytes(model + b"more")
    assert a_pull(entry).run().path.read_bytes() == model


def test_a_complete_part_is_checked_without_asking_anybody(server, store, an_entry, a_pull, model) -> None:
    """A pull killed between the last byte and the rename needs no network to finish."""
    entry = an_entry(server.url("/gone"))
    store.directory.mkdir()
    store.files(entry).part.write_bytes(model)
    assert a_pull(entry).run().state is State.INSTALLED
    assert not server.seen


def test_a_damaged_file_is_replaced_only_by_a_checked_one(server, store, an_entry, a_pull, model) -> None:
    """While no good copy has come, the file that is there stays there."""
    entry = an_entry(server.url("/gone"))
    store.directory.mkdir()
    store.files(entry).final.write_bytes(b"damaged")
    with pytest.raises(CatalogueError, match="404"):
        a_pull(entry).run()
    assert store.files(entry).final.read_bytes() == b"damaged"
    assert a_pull(an_entry(server.serve("/m.gguf", body=model))).run().path.read_bytes() == model


def test_a_part_that_is_a_symlink_is_not_written_through(server, store, an_entry, a_pull, model, tmp_path) -> None:
    """State files are opened in their own directory only."""
    entry = an_entry(server.serve("/m.gguf", body=model))
    target = tmp_path / "precious"
    target.write_text("kept")
    store.directory.mkdir()
    store.files(entry).part.symlink_to(target)
    with pytest.raises(CatalogueError, match="cannot write to the models directory"):
        a_pull(entry).run()
    assert target.read_text() == "kept"


def test_a_disk_too_small_is_found_out_first(server, store, an_entry, a_pull, model) -> None:
    """Both numbers are in the error, and no server was asked."""
    entry = an_entry(server.serve("/m.gguf", body=model))
    with pytest.raises(CatalogueError, match=r"not enough free disk in .*: needs 34\.6 MB, 12\.0 MB are free"):
        a_pull(entry, free_bytes=lambda _: 12_000_000).run()
    assert not server.seen


def test_a_disk_that_fills_up_keeps_what_came(server, store, an_entry, a_pull, model, monkeypatch) -> None:
    """ENOSPC is said in words, tries no further source, and the next pull goes on."""
    real, room = os.write, [3]

    def write(descriptor: int, data: bytes) -> int:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    entry = an_entry(server.serve("/m.gguf", body=model), server.url("/never"))
    with monkeypatch.context() as patch:
        patch.setattr("edged.catalogue.part.os.write", write)
        with pytest.raises(CatalogueError, match="the disk is full"):
            a_pull(entry).run()
    assert len(server.seen) == 1
    kept_bytes = store.status(entry).bytes
    assert kept_bytes > 0
    a_pull(entry).run()
    assert server.ranges[-1] == f"bytes={kept_bytes}-"


def test_a_second_pull_of_the_same_model_waits_for_the_first(server, store, an_entry, a_pull, model) -> None:
    """Two pulls at once download once; the second says what it waits for and finds the model installed."""
    gate = threading.Event()
    entry = an_entry(server.serve("/m.gguf", body=model, cuts=[200_000], gate=gate))
    results = []

    class OpenTheGate:
        def progress(self, *_: object) -> None:
            pass

        def note(self, text: str) -> None:
            results.append(text)
            gate.set()

    first = threading.Thread(target=lambda: results.append(a_pull(entry).run().state))
    first.start()
    assert server.reached_gate.wait(10)
    assert a_pull(entry, listener=OpenTheGate()).run().state is State.INSTALLED
    first.join(10)
    assert results == ["another pull of tiny is running: waiting for it", State.INSTALLED]
    assert sum(seen.sent_bytes for seen in server.seen) == len(model)


def test_pieces_are_concatenated_and_resumed_at_their_own_offset(server, an_entry, a_pull, model) -> None:
    """A list of sources is one file cut up; a drop in the second piece asks for the rest of the second."""
    first = server.serve("/a", body=model[:400_000])
    second = server.serve("/b", body=model[400_000:], etag='"v2"', always_cut=100_000)
    entry = an_entry([first, second])
    with pytest.raises(CatalogueError, match="truncated"):
        a_pull(entry).run()
    server.pages["/b"].always_cut = None
    assert a_pull(entry).run().path.read_bytes() == model
    assert server.seen[-1].path == "/b"
    assert server.ranges[-1] == "bytes=100000-"


def test_a_part_of_one_list_is_not_continued_from_another(server, an_entry, a_pull, model) -> None:
    """The boundaries of pieces belong to their list: another one starts over, and the result is right."""
    first = server.serve("/a", body=model[:400_000])
    with pytest.raises(CatalogueError):
        a_pull(an_entry([first, server.url("/gone")])).run()
    other = [server.serve("/c", body=model[:1000]), server.serve("/d", body=model[1000:])]
    assert a_pull(an_entry(other)).run().path.read_bytes() == model
    assert server.ranges[-2:] == [None, None]


def test_a_local_file_is_copied_checked_and_resumed(store, an_entry, a_pull, model, tmp_path) -> None:
    """file:// goes through the same part, digest and rename."""
    original = tmp_path / "original.gguf"
    original.write_bytes(model)
    entry = an_entry(f"file://{original}")
    store.directory.mkdir()
    store.files(entry).part.write_bytes(model[:1000])
    assert a_pull(entry).run().path.read_bytes() == model
    assert original.read_bytes() == model


CHILD = """
import json, os, sys
from pathlib import Path
from edged.catalogue import Entry, Pull, Store
class Lines:
    def progress(self, stage, done, total):
        print(done, flush=True)
    def note(self, text):
        pass
Pull(Entry.model_validate(json.loads(sys.argv[1])), Store(Path(sys.argv[2])), Lines()).run()
"""


def test_a_killed_pull_goes_on_where_the_kernel_stopped_it(server, store, an_entry, a_pull, model) -> None:
    """kill -9 loses neither the bytes that came nor the lock."""
    gate = threading.Event()
    entry = an_entry(server.serve("/m.gguf", body=model, cuts=[500_000], gate=gate))
    document = entry.model_dump_json(exclude={"sources"})[:-1] + f', "sources": ["{server.url("/m.gguf")}"]}}'
    command = [sys.executable, "-c", CHILD, document, str(store.directory)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        child.stdout.readline()  # bytes are in the part
        child.send_signal(signal.SIGKILL)
        assert child.wait(10) == -signal.SIGKILL
    gate.set()
    kept_bytes = store.status(entry).bytes
    assert 0 < kept_bytes <= 500_000
    assert not store.files(entry).final.exists()
    assert a_pull(entry).run().path.read_bytes() == model
    assert server.ranges == [None, f"bytes={kept_bytes}-"]
