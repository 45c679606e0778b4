"""``POST /v1/systemone`` as TypeSafe and llama-server have it: typed questions about a state."""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from edged.core import Outcome, Record
from edged.core.questions import QuestionKind
from edged.dispatch.answer import Decisions
from edged.dispatch.decisions import Decided
from edged.dispatch.dispatcher import Dispatcher
from edged.server import wire
from edged.server.body import read_parsed
from edged.server.disconnect import DisconnectWatcher
from edged.server.openai import edged_headers, edged_object
from edged.server.patience import Patience
from edged.server.systemone_requests import systemone_request

Json = dict[str, Any]
_PARSE_ON_LOOP_BYTES = 65_536
_DIGITS = 6


class SystemOneApi:
    """The handler; state lives in the dispatcher."""

    def __init__(self, dispatcher: Dispatcher, watcher: DisconnectWatcher, *, patience: Patience) -> None:
        self._dispatcher = dispatcher
        self._watcher = watcher
        self._patience = patience

    def routes(self) -> list[web.RouteDef]:
        return [web.post("/v1/systemone", self.decide)]

    async def decide(self, http: web.Request) -> web.StreamResponse:
        request = await read_parsed(
            http, systemone_request, timeout_s=self._patience.body_s, inline_bytes=_PARSE_ON_LOOP_BYTES
        )
        with self._watcher.watch(http):
            async with self._dispatcher.decide(request) as found:
                written = wire.encode_json(systemone_body(found))
        headers = edged_headers(found.head, found.record)
        return web.Response(body=written, content_type="application/json", headers=headers)


def systemone_body(found: Decisions) -> Json:
    """The whole answer; ``usage`` counts the prompts of whoever answered a question."""
    answers = {decided.question.name: _answer(decided) for decided in found.decided}
    edged = edged_object(found.record) | {"answers": {d.question.name: _edged(d) for d in found.decided}}
    usage = {"input_tokens": _input_tokens(found.record), "output_tokens": 0}
    return {"model": found.head.model, "answers": answers, "usage": usage, "edged": edged}


def _input_tokens(record: Record) -> int:
    return sum(attempt.usage.prompt_tokens for attempt in record.attempts if attempt.outcome is Outcome.SERVED)


def _answer(decided: Decided) -> Json:
    question, probabilities = decided.question, [round(value, _DIGITS) for value in decided.probabilities]
    match question.kind:
        case QuestionKind.NOUL:
            return {"type": "noul", "noul": probabilities[0]}
        case QuestionKind.CHOICE:
            return {
                "type": "choice",
                "choice": question.options[decided.place],
                "probabilities": dict(zip(question.options, probabilities, strict=True)),
                "confidence": round(choice_confidence(decided.probabilities), _DIGITS),
            }
        case QuestionKind.SCORE:
            expected = sum(level * value for level, value in enumerate(decided.probabilities))
            return {
                "type": "score",
                "score": round(expected, _DIGITS),
                "legend": {str(level): text for level, text in enumerate(question.options)},
                "probabilities": {str(level): value for level, value in enumerate(probabilities)},
                "confidence": round(score_confidence(decided.probabilities), _DIGITS),
            }


def choice_confidence(probabilities: Sequence[float]) -> float:
    """0 where all options are equally likely, 1 where one is certain, as TypeSafe has it."""
    uniform = 1 / len(probabilities)
    return max(0.0, (max(probabilities) - uniform) / (1 - uniform))


def score_confidence(probabilities: Sequence[float]) -> float:
    """1 less the mean distance from the likeliest level, in units of that of a uniform distribution from its centre."""
    count = len(probabilities)
    mode = probabilities.index(max(probabilities))
    distance = sum(value * abs(level - mode) for level, value in enumerate(probabilities))
    uniform = sum(abs(level - (count - 1) / 2) for level in range(count)) / count
    return max(0.0, 1 - distance / uniform)


def _edged(decided: Decided) -> Json:
    """Who answered one question, why, and how sure the box was: what thresholds compare with."""
    return {
        "served_by": decided.served_by.value,
        "reason": decided.reason.value,
        "method": decided.method,
        "confidence": None if decided.confidence is None else round(decided.confidence, _DIGITS),
        "threshold": decided.threshold,
        "trusted": decided.trusted,
        "task": decided.task,
        "certificate": decided.certificate,
    }
