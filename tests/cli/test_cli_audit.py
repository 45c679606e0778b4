"""edged audit: the agreement with its interval, for people and for programs."""

import json
from pathlib import Path

import pytest

from edged.cli import main
from edged.core import Attempt, Audit, Outcome, Reason, Record, Status, Target
from edged.ledger.store import Store


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config whose ledger is in the test's own state directory."""
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    path = tmp_path / "edged.toml"
    path.write_text('[[model]]\nname = "small"\nfile = "/models/small.gguf"\n')
    return path


def kept(number: int) -> Record:
    usual = {"received_at": 1_790_000_000.0, "api": "openai", "model": "auto", "route": "auto", "status": Status.OK}
    return Record(id=f"req-{number}", served_by=Target.LOCAL, reason=Reason.WITHIN_BUDGET, **usual)


def compared(number: int, *, agreed: bool) -> Audit:
    usual = {"target": Target.CLOUD, "backend": "cloud", "model": "m", "outcome": Outcome.AUDITED, "cost_uusd": 1_000}
    attempt = Attempt(**usual, started_s=0.0, total_s=1.0)
    result = {"measure": "words", "agreed": agreed, "score": float(agreed)}
    return Audit(request_id=f"req-{number}", at=1_790_000_001.0, attempts=(attempt,), **result)


def fill(tmp_path: Path, *, agreed: int, disagreed: int) -> None:
    total = agreed + disagreed
    store = Store(tmp_path / "ledger.db")
    store.write([kept(number) for number in range(total)])
    store.write([compared(number, agreed=number < agreed) for number in range(total)])
    store.close()


def test_the_agreement_comes_with_its_exact_interval(tmp_path, config, capsys):
    """Five of ten: 18.7 to 81.3 %; how answers were compared, and what it cost, is said."""
    fill(tmp_path, agreed=5, disagreed=5)
    assert main(["audit", "--since", "all", "--config", str(config)]) == 0
    out = capsys.readouterr().out
    assert "10 kept answers compared, 50.0 % agreed (95 % interval 18.7 to 81.3 %, Clopper-Pearson)" in out
    assert "a rough measure" in out
    assert "$0.01" in out


def test_a_program_reads_the_same_numbers_and_the_split_has_them_too(tmp_path, config, capsys):
    """One JSON object each."""
    fill(tmp_path, agreed=3, disagreed=1)
    assert main(["audit", "--since", "all", "--json", "--config", str(config)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["audited"], found["agreement"]["agreed"], found["agreement"]["share"]) == (4, 3, 0.75)
    assert main(["split", "--since", "all", "--json", "--config", str(config)]) == 0
    assert json.loads(capsys.readouterr().out)["audits"] == found
    assert main(["split", "--since", "all", "--config", str(config)]) == 0
    assert "4 kept answers compared" in capsys.readouterr().out


def test_without_audits_the_command_says_what_to_set(tmp_path, config, capsys):
    """No numbers out of nothing."""
    fill(tmp_path, agreed=0, disagreed=0)
    assert main(["audit", "--config", str(config)]) == 0
    assert "[route.audit]" in capsys.readouterr().out
