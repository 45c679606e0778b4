"""edged split, tail and explain: what they print, how they end, and that nothing a client sent can steer a terminal."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edged.cli import explain, split, tail
from edged.core import Attempt, Decision, Outcome, Reason, Record, Status, Target, Usage
from edged.ledger.store import Store

NOON = 1_790_000_000.0
ROOT = Path(__file__).parent.parent.parent
COMMANDS = [["split"], ["tail"], ["explain", "req-1"]]


def a_record(request_id: str = "req-1", **fields: object) -> Record:
    attempt = Attempt(
        target=Target.LOCAL,
        backend="engine",
        model="small",
        outcome=Outcome.SERVED,
        started_s=0.0,
        total_s=1.0,
        ttft_s=0.2,
        usage=Usage(prompt_tokens=3, completion_tokens=7),
    )
    defaults = {
        "received_at": NOON,
        "api": "openai",
        "model": "auto",
        "served_model": "small",
        "route": "auto",
        "status": Status.OK,
        "served_by": Target.LOCAL,
        "reason": Reason.WITHIN_BUDGET,
        "ttft_s": 0.25,
        "total_s": 1.5,
        "attempts": (attempt,),
        "decisions": (
            Decision(target=Target.LOCAL, reason=Reason.WITHIN_BUDGET, stage="admission", predicted_ttft_s=0.3),
        ),
    }
    return Record(id=request_id, **(defaults | fields))


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file whose ledger is in the test's own state directory."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    path = tmp_path / "edged.toml"
    path.write_text('[[model]]\nname = "small"\nfile = "/models/small.gguf"\n')
    return path


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "ledger.db")
    yield store
    store.close()


def parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path)
    whole = argparse.ArgumentParser(prog="edged")
    subparsers = whole.add_subparsers(required=True)
    for module in (split, tail, explain):
        module.add_parser(subparsers, common)
    return whole


def edged(config: Path, *words: str) -> int:
    args = parser().parse_args([*words, "--config", str(config)])
    return args.func(args)


def test_split_prints_the_agreed_json(config: Path, ledger: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON object on stdout, with the window and the groups that were asked for."""
    ledger.write([a_record("a"), a_record("b", status=Status.CANCELLED)])
    assert edged(config, "split", "--since", "all", "--by", "model", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["requests"], document["local"], document["cancelled"]) == (2, 1, 1)
    assert list(document["groups"]) == ["small"]


def test_split_looks_back_a_day_by_default(config: Path, ledger: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --since only the last 24 hours count."""
    ledger.write([a_record("long-ago", received_at=NOON - 1e7)])
    assert edged(config, "split", "--json") == 0
    assert json.loads(capsys.readouterr().out)["requests"] == 0


def test_split_prints_plain_tables_in_a_pipe(config: Path, ledger: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal there is no colour and no cut column."""
    ledger.write([a_record("a", model="m" * 90, served_model=None)])
    assert edged(config, "split", "--since", "all", "--by", "model") == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "m" * 90 in out
    lines = [line.split() for line in out.splitlines()]
    assert ["local", "1", "100.0", "%", "7", "250", "ms", "250", "ms"] in lines
    assert ["within_budget", "1", "100.0", "%"] in lines
    assert "cost $0" in out


def test_tail_prints_the_last_records_in_order(config: Path, ledger: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest comes last; -n limits."""
    ledger.write([a_record(f"req-{n}") for n in range(5)])
    assert edged(config, "tail", "-n", "2") == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines] == ["req-3", "req-4"]
    assert lines[0].split()[4:] == ["small", "local", "within_budget", "-", "250", "ms", "1.50", "s", "7", "$0"]


def test_tail_prints_json_lines(config: Path, ledger: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """One object per line, with attempts, decisions and the cost in dollars."""
    ledger.write([a_record("a"), a_record("b")])
    assert edged(config, "tail", "--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["id"], second["id"]) == ("a", "b")
    assert first["attempts"][0]["usage"]["completion_tokens"] == 7
    assert (first["cost_usd"], first["reason"]) == (0.0, "within_budget")


def test_explain_takes_a_prefix(config: Path, ledger: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """The beginning of an id is enough if it is the only one."""
    ledger.write([a_record("abcdef"), a_record("abxyz")])
    assert edged(config, "explain", "abc") == 0
    assert "Request abcdef" in capsys.readouterr().out
    assert edged(config, "explain", "abc", "--json") == 0
    assert json.loads(capsys.readouterr().out)["id"] == "abcdef"
    assert edged(config, "explain", "ab") == 1
    assert "several request ids: abxyz, abcdef" in capsys.readouterr().err


@pytest.mark.parametrize("words", COMMANDS)
def test_no_ledger_yet_is_a_friendly_line(config: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """Before the first request every command says so on one line and ends with 1."""
    assert edged(config, *words) == 1
    captured = capsys.readouterr()
    assert captured.err == "edged: there is no ledger yet: it begins with the first request\n"
    assert captured.out == ""


@pytest.mark.parametrize("words", COMMANDS)
def test_a_broken_ledger_is_one_line(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """A file that is no database ends in an error message, not in a traceback."""
    (tmp_path / "ledger.db").write_bytes(b"nonsense" * 1000)
    assert edged(config, *words) == 1
    assert capsys.readouterr().err == "edged: the ledger cannot be read: file is not a database\n"


@pytest.mark.parametrize("words", COMMANDS)
def test_a_missing_config_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    """The message names the file and the reason."""
    assert edged(tmp_path / "none.toml", *words) == 1
    error = capsys.readouterr().err
    assert error == f"edged: {tmp_path}/none.toml: cannot be read: No such file or directory\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["split", "--since", "yesterday"], '"yesterday" is not a time such as 90s, 15m, 24h, 7d or all'),
        (["split", "--since", "-5h"], "expected one argument"),
        (["split", "--by", "colour"], "(choose from 'reason', 'model', 'route', 'key', 'hour')"),
        (["tail", "-n", "many"], '"many" is not a number of requests from 0 to 999999999'),
        (["tail", "-n", "9" * 5000], "is not a number of requests"),
        (["explain"], "REQUEST_ID"),
    ],
)
def test_a_wrong_argument_is_named(
    config: Path, capsys: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    """argparse's own exit, with a message that says what would be right."""
    with pytest.raises(SystemExit):
        edged(config, *words)
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected_s"),
    [("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800), ("1.5h", 5_400), ("all", None)],
)
def test_since_reads_every_unit(text: str, expected_s: float | None) -> None:
    """Seconds to weeks, fractions too, and all."""
    assert parser().parse_args(["split", "--since", text]).since == expected_s


@pytest.mark.parametrize("words", [["split", "--since", "all", "--by", "model"], ["tail"], ["explain", "req-1"]])
def test_nothing_a_client_sent_steers_the_terminal(
    config: Path, ledger: Store, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    """Escape sequences, line breaks and rich markup in a model name or an error are shown, not obeyed."""
    nasty = "\x1b[2J\r\nfake[red]line"
    ledger.write([a_record(model=nasty, served_model=nasty, error=nasty)])
    assert edged(config, *words) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\r" not in out
    assert "[2J\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}fake[red]line" in out


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_cli_ledger import edged
sys.exit(edged(sys.argv[2], *sys.argv[3:]))
"""


@contextmanager
def running(config: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command in a process of its own; its stderr must stay empty."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(config), *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()
            assert process.stderr.read() == ""


def test_tail_follows_until_interrupted(config: Path, ledger: Store) -> None:
    """-f prints what comes in later, goes on with a new ledger, and ends quietly on Ctrl-C."""
    ledger.write([a_record("first")])
    with running(config, "tail", "-f", "--json") as process:
        assert json.loads(process.stdout.readline())["id"] == "first"
        ledger.write([a_record("second")])
        assert json.loads(process.stdout.readline())["id"] == "second"
        ledger.start_over("corrupt", "a test")
        ledger.write([a_record("third")])
        assert json.loads(process.stdout.readline())["id"] == "third"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_a_closed_pipe_ends_tail_quietly(config: Path, ledger: Store) -> None:
    """``edged tail | head`` leaves no traceback."""
    ledger.write([a_record(f"r{n}") for n in range(3000)])
    with running(config, "tail", "-n", "3000", "--json") as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == 0


def test_a_terminal_without_unicode_gets_replacements(config: Path, ledger: Store) -> None:
    """A name outside the terminal's character set is no reason to fail."""
    ledger.write([a_record(served_model="modèle 模型")])
    with running(config, "tail") as process:
        assert "mod" in process.stdout.read()
        assert process.wait(20) == 0
