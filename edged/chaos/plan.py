"""What clients ask and how upstreams fail: every choice comes from a seed. Pure.

Every request carries a mark of its own, and every word of an upstream's answer carries the request's mark, the call and
its own place: whose bytes a client received, and whether any are missing or doubled, can be read from them.
"""

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edged.testing.upstream import Reply

MARK = re.compile(r"ask-[a-p]{10}")
WORD = re.compile(r"(ask-[a-p]{10}|nobody)~(far|near)(\d+)~(\d+)")
LABELS = ("any", "any", "any", "local_only", "site_only", "redact")
FAULTS = (
    "none",
    "latency",
    "slow_first_token",
    "stall",
    "cut",
    "cut_reset",
    "truncated",
    "malformed_event",
    "wrong_type",
    "status_429",
    "status_5xx",
    "html",
    "error_in_200",
    "hang",
    "drop",
    "drop_reset",
    "one_byte_slices",
    "not_streamed",
    "no_usage",
)
STORM = "storm"
_HEALTHY_SHARE = 0.6
_LETTERS = {ord(digit): letter for digit, letter in zip("0123456789abcdef", "abcdefghijklmnop", strict=True)}
_MALFORMED = (b"data: {\n\n", b"data: \xff\xfe\n\n", b"event: error\ndata: nonsense\n\n", b"\x00\x00data:::\n\n")
_WRONG: tuple[Any, ...] = (
    {"choices": "none"},
    {"choices": [{"index": "0", "delta": []}]},
    {"choices": [{"index": 0, "delta": {"content": 7}, "finish_reason": None}]},
    [],
    17,
    None,
)
_TOOL = {
    "type": "function",
    "function": {
        "name": "report",
        "parameters": {"type": "object", "properties": {"mark": {"type": "string"}}, "required": ["mark"]},
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request and the manners of its client.

    ``leave_after_s`` and ``leave_after_bytes``: it hangs up then, by reset where ``reset``; ``read_pause_s``: between
    two small reads.
    """

    mark: str
    model: str
    key: int
    label: str
    form: str
    stream: bool
    max_tokens: int
    leave_after_s: float | None = None
    leave_after_bytes: int | None = None
    reset: bool = False
    read_pause_s: float = 0.0

    @property
    def e_mail(self) -> str:
        """Personal data of a redacted request, unlike that of any other."""
        return f"{self.mark.replace('-', '.')}@example.org"

    def body(self) -> dict[str, Any]:
        """The JSON of a chat completion."""
        about = f" Write to {self.e_mail}." if self.label == "redact" else ""
        text = f"This is {self.mark}.{about} Tell me about the sea."
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": self.max_tokens,
            "stream": self.stream,
        }
        if self.label != "any":
            body["edged"] = {"locality": self.label}
        if self.form == "tools":
            body["tools"] = [_TOOL]
        if self.form == "json":
            body["response_format"] = {"type": "json_object"}
        return body


def mark(number: int) -> str:
    """A request's own word. Letters alone: digits could be taken for a telephone number, and replaced."""
    return "ask-" + f"{number:010x}".translate(_LETTERS)


def asks(seed: int, client: int, *, models: tuple[str, ...], keys: int) -> Iterator[Ask]:
    """What one client asks, for ever; the same for the same seed."""
    dice = random.Random(f"{seed}/client/{client}")  # noqa: S311 - a plan, not a secret
    while True:
        manners = dice.choices(("patient", "leaves", "leaves_mid_way", "slow"), (60, 15, 15, 10))[0]
        yield Ask(
            mark=mark(dice.getrandbits(40)),
            model=dice.choice(models),
            key=dice.randrange(keys),
            label=dice.choice(LABELS),
            form=dice.choices(("text", "tools", "json"), (70, 20, 10))[0],
            stream=dice.random() < 0.6,  # noqa: PLR2004 - a share
            max_tokens=dice.choice((4, 12, 24, 40)),
            leave_after_s=dice.uniform(0, 1.5) if manners == "leaves" else None,
            leave_after_bytes=dice.randrange(1, 3000) if manners == "leaves_mid_way" else None,
            reset=dice.random() < 0.5,  # noqa: PLR2004 - a share
            read_pause_s=0.02 if manners == "slow" else 0.0,
        )


@dataclass(frozen=True, slots=True)
class Planned:
    """How one call is answered, and the name its fault is counted under."""

    fault: str
    reply: Reply


class Faults:
    """One upstream's moods: a fault per call, storms of refusals in between, cuts that walk over every byte."""

    def __init__(self, seed: int, name: str) -> None:
        self._name = name
        self._dice = random.Random(f"{seed}/upstream/{name}")  # noqa: S311 - a plan, not a secret
        self._serial = 0
        self._cut_at = 0
        self._storm_left = 0

    def plan(self, body: Mapping[str, Any]) -> Planned:
        """The answer to the next call."""
        self._serial += 1
        found = MARK.search(json.dumps(body.get("messages") or ""))
        words = self._words(found[0] if found else "nobody")
        return self._storm() or self._fault(body, words)

    def _words(self, mark: str) -> tuple[str, ...]:
        return tuple(f"{mark}~{self._name}{self._serial}~{place}" for place in range(self._dice.randrange(3, 9)))

    def _storm(self) -> Planned | None:
        dice = self._dice
        if self._storm_left == 0 and dice.random() < 0.03:  # noqa: PLR2004 - a share
            self._storm_left = dice.randrange(2, 6)
        if self._storm_left == 0:
            return None
        self._storm_left -= 1
        return Planned(STORM, _refusal(dice, dice.choice((429, 500, 502, 503))))

    def _fault(self, body: Mapping[str, Any], words: tuple[str, ...]) -> Planned:
        dice = self._dice
        fault = "none" if dice.random() < _HEALTHY_SHARE else dice.choice(FAULTS)
        if fault in ("status_429", "status_5xx"):
            return Planned(fault, _refusal(dice, 429 if fault == "status_429" else dice.choice((500, 502, 503, 504))))
        return Planned(fault, Reply(**{**_content(body, words), **self._trouble(fault, words)}))

    def _trouble(self, fault: str, words: tuple[str, ...]) -> dict[str, Any]:
        """The fields of a Reply that make the fault."""
        dice = self._dice
        self._cut_at = (self._cut_at + 7) % 1_200 if fault in ("cut", "cut_reset", "stall") else self._cut_at
        events = [_event(word) for word in words]
        broken = dice.choice(_MALFORMED) if fault == "malformed_event" else dice.choice(_WRONG)
        place = dice.randrange(len(words))
        trouble: dict[str, dict[str, Any]] = {
            "latency": {"delay_s": dice.uniform(0, 1.2), "chunk_delay_s": dice.uniform(0, 0.1)},
            "slow_first_token": {"first_token_delay_s": dice.uniform(0, 1.3), "keep_alives": dice.randrange(0, 5)},
            "stall": {"stall_at_byte": self._cut_at},
            "cut": {"cut_at_byte": self._cut_at},
            "cut_reset": {"cut_at_byte": self._cut_at, "cut": "reset"},
            "truncated": {"finish": None, "done": False, "usage": None},
            "malformed_event": {"events": [*events[:place], broken, *events[place:]]},
            "wrong_type": {"events": [*events[:place], broken, *events[place:]]},
            "html": {"body": b"<html><body>502 Bad Gateway</body></html>", "content_type": "text/html"},
            "error_in_200": {"error": {"message": "no", "code": "server_error"}, "error_after": place},
            "hang": {"hang": True},
            "drop": {"drop": "close"},
            "drop_reset": {"drop": "reset"},
            "one_byte_slices": {"slice_bytes": 1},
            "not_streamed": {"ignore_stream": True},
            "no_usage": {"usage": None},
        }
        return trouble.get(fault, {})


def _content(body: Mapping[str, Any], words: tuple[str, ...]) -> dict[str, Any]:
    """A call where tools are at hand, JSON where it is asked for, else words."""
    value = json.dumps({"mark": " ".join(words)})
    if body.get("tools"):
        return {"calls": (("report", value),)}
    if (body.get("response_format") or {}).get("type") == "json_object":
        return {"text": value}
    return {"chunks": tuple(f"{word} " for word in words)}


def _event(word: str) -> dict[str, Any]:
    delta = {"content": f"{word} "}
    return {
        "id": "x",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
    }


def _refusal(dice: random.Random, status: int) -> Reply:
    wait = dice.choice(({}, {}, {"Retry-After": "1"}, {"Retry-After": "0"}, {"Retry-After": "soon"}))
    return Reply(status=status, headers=wait)
