"""How far options must be read to know one from the others: pure."""

import itertools
from collections.abc import Sequence

from edged.engine.kv import common_prefix


def told_apart(options: Sequence[list[int]]) -> list[list[int]]:
    """Each option up to the first token that no other has at its place; all of one that another begins with."""
    ordered = sorted(range(len(options)), key=lambda place: options[place])
    shared = [0] * len(options)
    for one, other in itertools.pairwise(ordered):  # the nearest relatives stand beside each other
        count = common_prefix(options[one], options[other])
        shared[one], shared[other] = max(shared[one], count), max(shared[other], count)
    return [option[: count + 1] for option, count in zip(options, shared, strict=True)]
