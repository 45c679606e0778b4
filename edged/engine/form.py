"""What the decode thread knows of an answer's form; how it is kept is for ``constraint`` and ``compiler``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edged.chat.toolcalls import ToolCallParser


class ConstraintFailed(Exception):
    """A constraint cannot say what may follow; its request has to end."""


class Constraint(Protocol):
    """What the decode thread asks of a constraint on one sequence."""

    @property
    def complete(self) -> bool:
        """Whether nothing may follow but the end."""
        ...

    def prepare(self) -> None:
        """Begin to compute the next mask, on another thread."""
        ...

    def mask(self) -> NDArray[np.bool_] | None:
        """Which tokens may follow (shape: vocabulary); None: any. Raises: ConstraintFailed."""
        ...

    def accept(self, token: int) -> None:
        """Take the token that was chosen. Raises: ConstraintFailed."""
        ...


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A form, compiled. ``markup`` are the control tokens that have to show as text for the calls to be found."""

    constraint: Callable[[], Constraint]
    parser: Callable[[], ToolCallParser | None]
    markup: dict[int, bytes]
