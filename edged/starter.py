"""``python -m edged.starter``: from a fresh install to a running daemon, with a line to try.

Writes the commented starter config where none exists, fetches the starter model, and serves. With
``--stand-in-cloud`` it runs on a config of its own that escalates to a scripted upstream on this machine.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from pathlib import Path

from edged import config
from edged.cli import main as edged

MODEL = "smollm2-135m-instruct"
_LISTEN = 'listen = "127.0.0.1:8080"'
_LEDGER = 'path = "ledger.db"'
_NO_CLOUD = '#cloud = ["cloud/big-model"]'
_STAND_IN = """
[[upstream]]
name = "stand-in"               # scripted answers from this machine, no real provider
base_url = "{base_url}"

[[upstream.model]]
name = "stand-in-model"
context_tokens = 8192
input_usd_per_mtok = 0.10
output_usd_per_mtok = 0.40
"""


def main() -> int:
    """Set up what is missing, say what to try, and serve."""
    arguments = _parser().parse_args()
    with ExitStack() as stack:
        if arguments.stand_in_cloud:
            base_url = stack.enter_context(_stand_in())
            path = config.state_directory() / "stand-in.toml"
            _write(path, stand_in_config(base_url, arguments.listen))
        else:
            path = arguments.config or config.default_path()
            if not path.exists():
                _write(path, starter_config(arguments.listen))
            elif arguments.listen is not None:
                print(f"{path} exists and is left as it is: its own listen address counts", flush=True)
        if edged(["models", "pull", MODEL]) or edged(["check", "--config", str(path)]):
            return 1
        _say_what_to_try(path, stand_in=arguments.stand_in_cloud)
        return edged(["serve", "--config", str(path)])


def starter_config(listen: str | None) -> str:
    """The commented example that ships with the package; cloud providers are in it, commented out."""
    text = _shipped_example()
    return text if listen is None else text.replace(_LISTEN, f'listen = "{listen}"', 1)


def stand_in_config(base_url: str, listen: str | None) -> str:
    """The starter config with a stand-in upstream that the default route may escalate to, and a ledger of its own."""
    text = starter_config(listen).replace(_NO_CLOUD, 'cloud = ["stand-in/stand-in-model"]', 1)
    text = text.replace(_LEDGER, 'path = "stand-in.db"', 1)
    return text + _STAND_IN.format(base_url=base_url)


def _shipped_example() -> str:
    packaged = resources.files("edged") / "_systemd" / "edged.toml"
    if packaged.is_file():
        return packaged.read_text(encoding="utf-8")
    return (Path(__file__).parent.parent / "systemd" / "edged.toml").read_text(encoding="utf-8")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"wrote {path}", flush=True)


@contextmanager
def _stand_in() -> Iterator[str]:
    """The base URL of a scripted upstream on a free port; it ends with the block, or with this process."""
    command = [sys.executable, "-m", "edged.standin", "--port", "0"]
    # A Ctrl-C is the daemon's to handle: what it still drains may be an answer from here.
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:  # noqa: S603 - ourselves
        try:
            assert process.stdout is not None
            ready = process.stdout.readline()
            if not ready:
                raise SystemExit("the stand-in cloud did not start")
            yield next(word for word in ready.split() if word.startswith("http"))
        finally:
            process.terminate()


def _say_what_to_try(path: Path, *, stand_in: bool) -> None:
    loaded = config.load(path)
    url = f"http://{loaded.server.listen}/v1/chat/completions"
    question = '[{"role": "user", "content": "What is the capital of France?"}]'
    body = f'{{"model": "auto", "max_tokens": 64, "messages": {question}}}'
    print(f"\nconfig  {path}\nledger  {loaded.ledger_path}\n\ntry\n  curl -i {url} -d '{body}'", flush=True)
    if stand_in:
        distrustful = body[:-1] + ', "edged": {"min_confidence": 1.0}}'
        print(f"\nand one that the stand-in cloud has to answer\n  curl -i {url} -d '{distrustful}'", flush=True)
    flag = "" if path == config.default_path() else f" --config {path}"
    print(f"\nthen, in another terminal\n  .venv/bin/edged split{flag}\n", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scripts/start", description="Set up edged and run it.")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where a newly written config listens")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--config", type=Path, help="the config file to use, written where it does not exist")
    which.add_argument(
        "--stand-in-cloud",
        action="store_true",
        help="escalate to a scripted upstream on this machine, on a config and a ledger of its own",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
