"""A small optimization of the real starter model, as a test or as a child process."""

import sys
from dataclasses import replace
from pathlib import Path

from edged.catalogue import Store, find, load
from edged.optimize import QUICK, Optimization

NAME = "smollm2-135m-instruct"
ENTRY = find(NAME, load())
TINY = replace(QUICK, formats=("Q4_0",), rounds=1, prefill_tokens=16, decode_tokens=2, items=3)


class Stages:
    """Remembers what it hears; ``on_stage`` may raise."""

    def __init__(self, on_stage=lambda _stage: None):
        self.seen = []
        self._on_stage = on_stage

    def progress(self, stage, done, total):
        assert 0 <= done <= total
        self.seen.append(stage)
        self._on_stage(stage)


def a_store(directory, model_path):
    """A models directory with the starter model in it, as an installed model is: same bytes, own directory."""
    directory.mkdir()
    store = Store(directory)
    store.files(ENTRY).final.symlink_to(model_path)
    return store


def an_optimization(store, *, listener=None, effort=TINY, **box):
    return Optimization(ENTRY, store, effort=effort, listener=listener or Stages(), **box)


def names(store):
    return {path.name.removeprefix(f"{NAME}.") for path in store.directory.iterdir()}


def main():
    """Run in the models directory that is the first argument, saying each stage."""

    def say(stage):
        sys.stdout.write(f"{stage}\n")
        sys.stdout.flush()

    an_optimization(Store(Path(sys.argv[1])), listener=Stages(say)).run()


if __name__ == "__main__":
    main()
