"""Parameters a provider refuses: found in its answer, left out from then on where that is honest, and reported. Pure.

What may be left out is one table. How tokens are chosen is a wish on an escalation, because it was said of the local
model, and an order where the client named the model: then it is never left out.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from http import HTTPStatus

from edged.upstream import faults
from edged.upstream.codec import Call

_RENAMED = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
_CHANGES_NO_ANSWER = ("stream_options", "usage")
_WISHES = ("seed", "presence_penalty", "frequency_penalty", "top_p", "temperature")
# Where several are named ("`temperature` and `top_p` cannot both be specified"), the first of these goes.
_ORDER = (*_CHANGES_NO_ANSWER, *_RENAMED, "parallel_tool_calls", *_WISHES)

_CODES = {"unsupported_parameter", "unsupported_value", "unknown_parameter"}
_SAYS_SO = re.compile(
    r"unsupported|not supported|not support|unknown|unrecogni[sz]ed|unexpected|extra[_ ](?:inputs|fields|forbidden)"
    r"|not permitted|not allowed|deprecated|cannot both|can't both",
    re.IGNORECASE,
)
_MOST_TEXT = 4_000


def may_drop(name: str, value: object, *, pinned: bool) -> bool:
    """Whether an answer without this parameter is still the answer that was asked for."""
    if name in _CHANGES_NO_ANSWER:
        return True
    if name == "parallel_tool_calls":
        return value is True  # every provider's default; False forbids something
    return name in _WISHES and not pinned


def refused_parameter(status: int, document: Mapping[str, object], sent: Mapping[str, object]) -> str | None:
    """The parameter of the table that a refusal's JSON body names as unknown or unsupported, None where it does not.

    The provider's words are matched here and go nowhere else.
    """
    if status not in {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
        return None
    known = [name for name in _ORDER if name in sent]
    error = faults.find_error(document)
    fields = error if isinstance(error, Mapping) else {}
    text = _text(document, error)
    if fields.get("code") not in _CODES and not _SAYS_SO.search(text):
        return None
    param = str(fields.get("param")).partition(".")[0]
    if param in known:
        return param
    return next((name for name in known if _names(text, name)), None)


def _text(document: Mapping[str, object], error: object) -> str:
    """What the body says in words: an error's message, FastAPI's ``detail``, or whatever else stands for it."""
    said = error.get("message") if isinstance(error, Mapping) else error
    return str(said or document.get("detail") or document.get("message") or "")[:_MOST_TEXT]


def _names(text: str, name: str) -> bool:
    """The name in quotes or at the start, as providers point at a field; a mere word is none."""
    return bool(re.search(rf"(?:^|['\"`]){name}(?:['\"`:.\[]|$)", text))


class Refusals:
    """What each target refuses, for the life of the process. ``learned`` is for whoever reports it."""

    def __init__(self) -> None:
        self.learned: dict[tuple[str, str], set[str]] = {}

    def __repr__(self) -> str:
        return f"Refusals({self.learned})"

    def learn(self, target: tuple[str, str], name: str) -> bool:
        """Remember; False where it was known."""
        names = self.learned.setdefault(target, set())
        is_new = name not in names
        names.add(name)
        return is_new

    def fit(self, call: Call, target: tuple[str, str], *, pinned: bool) -> Call:
        """The call without what the target refuses, as far as that is honest; what cannot be left out stays."""
        refused = self.learned.get(target, set())
        body, dropped = dict(call.body), list(call.dropped)
        for name in sorted(refused & body.keys()):
            renamed = _RENAMED.get(name)
            if renamed is not None and renamed not in refused:
                body[renamed] = body.pop(name)
            elif may_drop(name, body[name], pinned=pinned):
                del body[name]
                dropped.append(name)
        if body == call.body:
            return call
        return replace(call, body=body, dropped=tuple(dropped))
