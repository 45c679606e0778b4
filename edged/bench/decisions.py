"""One closed question about many short texts, asked in each server's own cheapest way."""

import asyncio
import json
import random
import time
from typing import Any

import aiohttp

from edged.bench.client import BenchError, Target

INTENTS = (
    "AddToPlaylist",
    "BookRestaurant",
    "GetWeather",
    "PlayMusic",
    "RateBook",
    "SearchCreativeWork",
    "SearchScreeningEvent",
)
INSTRUCTIONS = "Which intent does the sentence have?"
_SAID = (
    "add the song {} to my {} list of songs for the evening",
    "book a table for {} at a good place near {} for tonight",
    "will there be rain or wind in {} on the {} of next month",
    "play the newest album by {} from the year {} on the loudspeaker",
    "give the book called {} about {} four stars out of five",
    "find me the painting called {} by somebody from {} please",
    "when is the film {} shown at the cinema next to {} today",
)
_NAMES = (
    *("Oslo", "Harwick", "Dunmore", "Selkirk", "Brackley", "Fairhaven", "Lantern", "Meadow", "Foundry", "Granite"),
    *("Orchard", "Harbour", "Willow", "River", "Cathedral", "Station", "Amber", "Copper", "Juniper", "Saffron"),
)
_EXAMPLES_OF_EACH = 2


def sentence(intent: int, chosen: random.Random) -> str:
    """About 15 tokens."""
    return _SAID[intent].format(" ".join(chosen.choices(_NAMES, k=2)), chosen.choice(_NAMES))


def examples(seed: str) -> list[tuple[str, str]]:
    """Sentences and their intents, about 400 tokens in all."""
    chosen = random.Random(seed)  # noqa: S311 - no secret
    places = [place for place in range(len(INTENTS)) for _ in range(_EXAMPLES_OF_EACH)]
    chosen.shuffle(places)
    return [(sentence(place, chosen), INTENTS[place]) for place in places]


def typed(state: str, shown: list[tuple[str, str]]) -> tuple[str, dict[str, Any]]:
    """Path and body of the question as a typed decision."""
    question = {
        "type": "choice",
        "instructions": INSTRUCTIONS,
        "criteria": dict.fromkeys(INTENTS),
        "examples": [{"state": said, "answer": intent} for said, intent in shown],
    }
    return "/v1/systemone", {"state": state, "questions": {"intent": question}}


def constrained(state: str, shown: list[tuple[str, str]]) -> tuple[str, dict[str, Any]]:
    """Path and body of the same question as a chat whose answer is kept to the options."""
    told = "\n\n".join(f"Input: {said}\nAnswer: {intent}" for said, intent in shown)
    schema = {"type": "string", "enum": list(INTENTS)}
    body = {
        "messages": [{"role": "system", "content": f"{INSTRUCTIONS}\n\n{told}"}, {"role": "user", "content": state}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "intent", "schema": schema}},
        "temperature": 0,
        "max_tokens": 24,
    }
    return "/v1/chat/completions", body


async def decision_rate(session: aiohttp.ClientSession, target: Target, *, clients: int, each: int, seed: str) -> float:
    """Decisions per second of all clients together, once the examples have been read."""
    shown = examples("examples")
    ask = typed if target.name == "edged" else constrained

    async def client(index: int, turns: int) -> None:
        chosen = random.Random(f"{seed}/{index}")  # noqa: S311 - no secret
        for _ in range(turns):
            path, body = ask(sentence(chosen.randrange(len(INTENTS)), chosen), shown)
            _check(target, await _post(session, target, path, body))

    await asyncio.gather(*(client(clients + index, 1) for index in range(clients)))
    started_s = time.perf_counter()
    await asyncio.gather(*(client(index, each) for index in range(clients)))
    return clients * each / (time.perf_counter() - started_s)


async def _post(session: aiohttp.ClientSession, target: Target, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post(target.url + path, json=body | {"model": target.model}, headers=target.headers) as response:
        document: dict[str, Any] = await response.json(content_type=None)
        if response.status != 200:  # noqa: PLR2004 - HTTP
            raise BenchError(f"{target.name}: {path}: HTTP {response.status}: {document}")
        return document


def _check(target: Target, document: dict[str, Any]) -> None:
    """What is no decision is not counted as one."""
    try:
        if "answers" in document:
            answer = document["answers"]["intent"]["choice"]
        else:
            answer = json.loads(document["choices"][0]["message"]["content"])
    except (LookupError, ValueError) as exc:
        raise BenchError(f"{target.name}: no decision: {document}") from exc
    if answer not in INTENTS:
        raise BenchError(f"{target.name}: {answer!r} is none of the options")
