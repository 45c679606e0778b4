"""What happens to one request, as it happens, and the record it becomes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from edged.chat.json_prefix import JsonPrefix
from edged.core import (
    OFFLINE,
    Attempt,
    Chat,
    Chunk,
    Decision,
    FinishReason,
    Locality,
    Outcome,
    Reason,
    Record,
    Request,
    Status,
    Target,
    Timings,
    Token,
    ToolCallDelta,
    Usage,
)
from edged.privacy.rewrite import Redacted
from edged.routing.affinity import Authorship
from edged.routing.budget import Hold
from edged.routing.latency import EXPECTED_ANSWER_TOKENS


@dataclass(slots=True)
class SeenCall:
    """A function call of an answer, as far as it has come."""

    name: str
    arguments: str = ""

    def __str__(self) -> str:
        return f"{self.name}({self.arguments})"


def _note_calls(calls: list[SeenCall], deltas: tuple[ToolCallDelta, ...]) -> None:
    for delta in deltas:
        while len(calls) <= delta.index:
            calls.append(SeenCall(""))
        call = calls[delta.index]
        call.name = delta.name or call.name
        call.arguments += delta.arguments


@dataclass(slots=True, eq=False)
class AttemptTrace:
    """One backend's try while it runs. ``started_s`` is monotonic; ``Money.settle`` prices it when it is over.

    Of a local one: ``limit_tokens`` bounds each choice, ``asked_tokens`` is what the request said, ``raw_wait_s`` the
    prediction made at ``reviewed_s``, and ``json`` watches the choices of an answer that must become JSON.
    ``judged`` and ``standard`` are as ``routing.probation.Observation`` has them.
    """

    target: Target
    backend: str
    model: str
    started_s: float
    choices: int = 1
    first_token_s: float | None = None
    last_chunk_s: float | None = None
    ended_s: float | None = None
    prompt_tokens: int = 0
    usage: Usage | None = None
    timings: Timings = field(default_factory=Timings)
    tokens: tuple[list[Token], ...] = ()
    texts: tuple[list[str], ...] = ()
    calls: tuple[list[SeenCall], ...] = ()
    finishes: list[FinishReason | None] = field(default_factory=list)
    cost_uusd: int | None = None
    cost_estimated: bool = False
    may_cost: bool = True
    provider_cost_uusd: int | None = None
    computed_cost_uusd: int | None = None
    hold: Hold | None = None
    settled: bool = False
    confidence: float | None = None
    outcome: Outcome | None = None
    error: str | None = None
    dropped_parameters: tuple[str, ...] = ()
    limit_tokens: int | None = None
    asked_tokens: int | None = None
    reviewed_s: float = 0.0
    raw_wait_s: float | None = None
    json: tuple[JsonPrefix, ...] = ()
    redacted: Redacted | None = None
    judged: float | None = None
    standard: float | None = None

    def __post_init__(self) -> None:
        self.tokens = tuple([] for _ in range(self.choices))
        self.texts = tuple([] for _ in range(self.choices))
        self.calls = tuple([] for _ in range(self.choices))
        self.finishes = [None] * self.choices

    def sent(self, request: Request) -> Request:
        """The request as the backend was given it."""
        return self.redacted.request if self.redacted else request

    def see(self, chunk: Chunk) -> None:
        """Account for one chunk."""
        if self.first_token_s is None and (chunk.text or chunk.tokens or chunk.tool_calls or chunk.finish):
            self.first_token_s = time.monotonic()
        self.last_chunk_s = time.monotonic()
        if chunk.choice < len(self.json):
            self.json[chunk.choice].feed(chunk.text)
        if chunk.choice < self.choices:
            self.tokens[chunk.choice].extend(chunk.tokens)
            self.texts[chunk.choice].append(chunk.text)
            _note_calls(self.calls[chunk.choice], chunk.tool_calls)
            self.finishes[chunk.choice] = chunk.finish or self.finishes[chunk.choice]
        self.usage = chunk.usage or self.usage
        self.timings = chunk.timings or self.timings
        self.dropped_parameters = chunk.dropped_parameters or self.dropped_parameters
        self.provider_cost_uusd = self.provider_cost_uusd if chunk.cost_uusd is None else chunk.cost_uusd

    def end(self, outcome: Outcome, error: str | None = None) -> None:
        """Close the attempt; the first ending counts, except that a discarded draft may still be served."""
        if self.outcome in (None, Outcome.DISCARDED):
            self.outcome, self.error, self.ended_s = outcome, error, time.monotonic()

    @property
    def public_name(self) -> str:
        """The model as a client could ask for it."""
        return self.model if self.target is Target.LOCAL else f"{self.backend}/{self.model}"

    @property
    def finished(self) -> bool:
        """Every choice has come to its end."""
        return all(finish is not None for finish in self.finishes)

    @property
    def text(self) -> str:
        """The first choice so far: its text, then the functions it calls."""
        return "\n".join(filter(None, ["".join(self.texts[0]), *map(str, self.calls[0])]))

    @property
    def all_text(self) -> str:
        """All that the backend said, as it said it: what it is paid for."""
        calls = "".join(str(call) for calls in self.calls for call in calls)
        text = "".join("".join(texts) for texts in self.texts) + calls
        return self.redacted.vault.hide(text) if self.redacted else text

    @property
    def has_content(self) -> bool:
        """Whether anything was said or called in any choice."""
        return any(any(texts) for texts in self.texts) or any(self.calls)

    @property
    def seen_tokens(self) -> int:
        return sum(len(tokens) for tokens in self.tokens)

    @property
    def decode_s(self) -> float:
        """From the first chunk to the latest."""
        return (self.last_chunk_s or 0.0) - self.first_token_s if self.first_token_s is not None else 0.0

    @property
    def saved_tokens(self) -> int:
        """Of a draft stopped on its way: what its choices had left, up to the length asked for or the usual one."""
        if self.limit_tokens is None or self.outcome is not Outcome.DISCARDED or not self.seen_tokens:
            return 0
        most = min(self.limit_tokens, self.asked_tokens or EXPECTED_ANSWER_TOKENS)
        pairs = zip(self.tokens, self.finishes, strict=True)
        return sum(max(0, most - len(tokens)) for tokens, finish in pairs if finish is None)

    def freeze(self, received_s: float) -> Attempt:
        ended_s = self.ended_s or time.monotonic()
        first_s = self.first_token_s
        counted = Usage(prompt_tokens=self.prompt_tokens, completion_tokens=self.seen_tokens)
        return Attempt(
            target=self.target,
            backend=self.backend,
            model=self.model,
            outcome=self.outcome or Outcome.FAILED,
            started_s=self.started_s - received_s,
            total_s=ended_s - self.started_s,
            ttft_s=None if first_s is None else first_s - self.started_s,
            usage=self.usage or counted,
            cost_uusd=self.cost_uusd or 0,
            cost_estimated=self.cost_estimated,
            provider_cost_uusd=self.provider_cost_uusd,
            computed_cost_uusd=self.computed_cost_uusd,
            confidence=self.confidence,
            error=self.error,
            dropped_parameters=self.dropped_parameters,
            saved_tokens=self.saved_tokens,
        )


class Trace:
    """Everything known of one request. ``reason`` is that of the latest decision.

    ``engine_ids`` are the names under which engines may hold work for it; ``load_s`` is how long it waited for a load.
    ``locality`` is the label that held in the end; ``redacted`` what a stranger may see instead of the request.
    ``accepts`` says whether an upstream's whole answer is one that was asked for; another upstream may then be asked.
    """

    def __init__(self, request: Request, *, received_at: float) -> None:
        self.request = request
        self.received_at = received_at
        self.route: str | None = None
        self.decisions: list[Decision] = []
        self.attempts: list[AttemptTrace] = []
        self.author: AttemptTrace | None = None
        self.first_sent_s: float | None = None
        self.reason = Reason.NO_ROUTE
        self.engine_ids = [request.id]
        self.load_s = 0.0
        self.task, self.task_source = request.limits.task, "asked" if request.limits.task else None
        self.conversation: bytes | None = None
        self.before: Authorship | None = None
        self.locality = request.limits.locality
        self.redacted: Redacted | None = None
        self.accepts: Callable[[AttemptTrace], bool] = lambda _: True

    def __repr__(self) -> str:
        return f"Trace({self.request.id}, {self.reason}, attempts={len(self.attempts)})"

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.request.received_s

    @property
    def judged_s(self) -> float:
        """What thresholds count: the time since receipt, without the wait for a cold load."""
        return self.elapsed_s - self.load_s

    @property
    def confidence(self) -> float | None:
        """The score of the local answer, whoever answers in the end."""
        return next((a.confidence for a in self.attempts if a.confidence is not None), None)

    @property
    def offline(self) -> bool:
        """None of its upstreams could be reached."""
        return any(decision.stage == OFFLINE for decision in self.decisions)

    def note_offline(self, target: Target) -> None:
        """None of its upstreams can be reached: said once, beside the reason that holds."""
        if not self.offline:
            self.decide(Decision(target=target, reason=self.reason, stage=OFFLINE))

    def decide(self, decision: Decision) -> Decision:
        self.decisions.append(replace(decision, at_s=self.elapsed_s))
        self.reason = decision.reason
        return decision

    def attempt(self, target: Target, *, backend: str, model: str) -> AttemptTrace:
        attempt = AttemptTrace(target, backend, model, time.monotonic(), choices=self.request.n)
        self.attempts.append(attempt)
        return attempt

    def sent(self) -> None:
        """The first part of the answer is on its way to the client."""
        if self.first_sent_s is None:
            self.first_sent_s = time.monotonic()

    def _ttft_s(self) -> float | None:
        """Receipt to the first token: as the client saw it in a stream, as its author had it in a whole answer."""
        seen_s = self.first_sent_s
        if seen_s is not None and not self.request.stream and self.author is not None:
            seen_s = self.author.first_token_s or seen_s
        return None if seen_s is None else seen_s - self.request.received_s

    @property
    def _may_keep_text(self) -> bool:
        """What is hidden from the cloud is not laid down in a file either."""
        return self.locality is not Locality.REDACT

    def _counts(self) -> tuple[tuple[str, int], ...] | None:
        """How many values of each kind were replaced; None where no upstream was given a redacted request."""
        if self.redacted is None or all(attempt.redacted is None for attempt in self.attempts):
            return None
        return tuple(sorted(self.redacted.counts.items()))

    def record(self, status: Status, *, error: str | None = None) -> Record:
        """The one record; may be asked for before the end, it changes nothing."""
        request, author = self.request, self.author
        predicted = [d.predicted_ttft_s for d in self.decisions if d.predicted_ttft_s is not None]
        return Record(
            id=request.id,
            received_at=self.received_at,
            api=request.api,
            model=request.model,
            status=status,
            served_by=author.target if author else Target.NONE,
            reason=self.reason,
            route=self.route,
            served_model=author.public_name if author else None,
            tenant=request.tenant,
            task=self.task,
            task_source=self.task_source,
            locality=self.locality,
            stream=request.stream,
            confidence=self.confidence,
            predicted_ttft_s=predicted[-1] if predicted else None,
            ttft_s=self._ttft_s(),
            total_s=self.elapsed_s,
            timings=replace(author.timings if author else Timings(), load_s=self.load_s),
            attempts=tuple(attempt.freeze(request.received_s) for attempt in self.attempts),
            decisions=tuple(self.decisions),
            error=error,
            redacted=self._counts(),
            prompt_text=_prompt_text(request) if self._may_keep_text else None,
            answer_text=author.text if author and self._may_keep_text else None,
        )


def _prompt_text(request: Request) -> str:
    """The prompt as the ledger keeps it where ``store_text`` says so."""
    if isinstance(request.input, Chat):
        return "\n".join(f"{m.role}: {m.text or ''}" for m in request.input.messages)
    prompt: str | Sequence[int] = request.input.prompt
    return prompt if isinstance(prompt, str) else " ".join(map(str, prompt))
