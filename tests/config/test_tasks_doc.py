"""The task file that docs/tasks.md shows is a real one."""

import re
from pathlib import Path

from edged import config

DOC = Path(__file__).parents[2] / "docs" / "tasks.md"
CONFIG = '[[model]]\nname = "m"\nfile = "m.gguf"\n[[route]]\nname = "auto"\nlocal = "m"\n'


def test_the_documented_task_file_loads(tmp_path: Path) -> None:
    """Word for word, and it shows the defaults."""
    (example,) = re.findall(r"```toml\n(.*?)```", DOC.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "intent.toml").write_text(example)
    (task,) = config.load_tasks(tmp_path, config.parse(CONFIG))
    assert task.learn.enabled
    assert (task.learn.audit_share, task.learn.max_labels, task.target.confidence) == (0.05, 5_000, 0.9)
