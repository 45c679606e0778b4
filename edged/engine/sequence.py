"""One choice of one request on its way through the engine."""

from dataclasses import dataclass

from edged.engine.form import Blueprint
from edged.engine.lookup import Lookup
from edged.engine.protocol import Params


@dataclass(slots=True, eq=False)
class Sequence:
    """Counters and tokens; everything else is derived. ``tokens`` is the prompt, then what was generated.

    The last ``len(tokens) - computed`` tokens are not in the KV cache yet. Times are monotonic seconds.
    ``blueprint`` is the form the answer has to keep, if any.
    Of ``drafted_tokens`` guessed ones ``accepted_tokens`` came.

    With an ``option`` nothing is generated: ``tokens`` is the prompt and all of the option but its last token, and what
    is wanted is how likely each of the option's tokens was. ``follows`` another sequence that computes the same prompt.
    ``wants_state``: the last layer's output at the prompt's last token is wanted as well.
    """

    id: str
    choice: int
    tenant: str
    tokens: list[int]
    prompt_tokens: int
    params: Params
    submitted_s: float
    background: bool = False
    overtaken_tokens: int = 0
    slot: int | None = None
    computed: int = 0
    cached_tokens: int = 0
    admitted_s: float | None = None
    first_token_s: float | None = None
    blueprint: Blueprint | None = None
    lookup: Lookup | None = None
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    option: tuple[int, ...] = ()
    follows: bool = False
    wants_state: bool = False

    def __repr__(self) -> str:
        return (
            f"Sequence({self.id}#{self.choice}, slot={self.slot}, computed={self.computed}/{len(self.tokens)}, "
            f"prompt={self.prompt_tokens})"
        )

    @property
    def generated_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def pending_tokens(self) -> int:
        """Tokens still to be put through the model before the next one can be chosen."""
        return len(self.tokens) - self.computed

    @property
    def queued_tokens(self) -> int:
        """Pending tokens that nobody else is to compute."""
        return min(self.pending_tokens, len(self.option)) if self.follows else self.pending_tokens

    @property
    def shareable(self) -> list[int]:
        """The tokens of which another's cells may be taken over, all but the last; an option's odds start behind it."""
        return self.tokens[: self.prompt_tokens] if self.option else self.tokens

    @property
    def has_only_cached(self) -> bool:
        """Whether nothing of it has been computed yet beyond what it found in the cache."""
        return self.computed == self.cached_tokens

    @property
    def total_tokens(self) -> int:
        """The most cells this sequence can come to hold."""
        return self.prompt_tokens + self.params.max_tokens

    @property
    def room_tokens(self) -> int:
        """Tokens the answer may still gain."""
        return self.params.max_tokens - self.generated_tokens

    @property
    def is_full(self) -> bool:
        return self.room_tokens <= 0
