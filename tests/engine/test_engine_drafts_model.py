"""Drafts with the real model: the plain answer, and the truth about what was guessed.

llama.cpp computes a step of one row and a step of several with different kernels, whose numbers differ by up to 0.15
nats on this model: answers may part where two tokens were that close, and nowhere else.
"""

import asyncio
import json
from dataclasses import replace

import pytest
from real_engine import a_request, answer, running, text_of

from edged.core import Chat, Message, OutputFormat, OutputKind, Role

CLOSE = 0.4
LIST = "\n".join(
    f"{number}. {name}, {street}, {town}, phone 555-01{number}7"
    for number, (name, street, town) in enumerate(
        [
            ("Margaret Osterhagen", "1472 Willowbrook Street", "Tillamook"),
            ("Ferdinand Quillfeather", "88 Old Harbour Street", "Port Ellen"),
            ("Yolanda Abernathy", "2319 Saint Clement Street", "Marquette"),
        ],
        start=1,
    )
)
COPY = Chat((Message(Role.USER, f"Copy this list exactly, line by line, without any change:\n\n{LIST}\n"),))


def rows(chunks):
    return [token for chunk in chunks for token in chunk.tokens]


@pytest.fixture(scope="module")
def pair(model_path):
    """The answers to one prompt that asks for a copy, without drafts and with them."""

    async def main():
        answers = []
        for drafts in (False, True):
            async with running(model_path, drafts=drafts) as engine:
                answers.append(await answer(engine, a_request(COPY, max_tokens=90, top_logprobs=2)))
        return answers

    return asyncio.run(main())


def test_a_copy_with_drafts_says_what_it_says_without(pair):
    """Token by token; where the two part, the kernels' noise was enough to make them."""
    plain, drafted = (rows(chunks) for chunks in pair)
    assert len(plain) > 40
    for a, b in zip(plain, drafted, strict=False):
        if a.id != b.id:
            assert a.margin < CLOSE
            return
        assert a.logprob == pytest.approx(b.logprob, abs=CLOSE)
        assert a.entropy == pytest.approx(b.entropy, abs=CLOSE)
    assert len(plain) == len(drafted)
    assert text_of(pair[0]) == text_of(pair[1])


def test_the_guesses_of_a_copy_come_and_are_counted(pair):
    """Nothing is claimed where nothing was drafted."""
    plain, drafted = (chunks[-1].usage for chunks in pair)
    assert (plain.accepted_prediction_tokens, plain.rejected_prediction_tokens) == (0, 0)
    assert drafted.accepted_prediction_tokens > 10
    assert drafted.accepted_prediction_tokens < drafted.completion_tokens
    assert drafted.completion_tokens - len(rows(pair[1])) in (0, 1), "the end token is the one without text"


def test_a_form_is_kept_with_drafts(model_path):
    """Guesses go through the grammar as any token does: a copied document is valid, its repeated keys are guessed."""
    names = [f"item-{number}" for number in range(3)]
    item = {
        "type": "object",
        "properties": {"name": {"enum": names}, "status": {"enum": ["done"]}, "owner": {"enum": ["Lindqvist"]}},
        "required": ["name", "status", "owner"],
        "additionalProperties": False,
    }
    document = {"type": "array", "items": item, "minItems": 3, "maxItems": 3}
    output = OutputFormat(OutputKind.JSON_SCHEMA, json.dumps(document), "items", strict=True)

    async def main():
        async with running(model_path, drafts=True) as engine:
            request = replace(a_request("List the items as JSON.", max_tokens=200), output=output)
            return await answer(engine, request)

    chunks = asyncio.run(main())
    items = json.loads(text_of(chunks))
    assert [set(one) for one in items] == [{"name", "status", "owner"}] * 3
    assert chunks[-1].usage.accepted_prediction_tokens > 0


def test_the_choices_of_a_request_share_a_step_with_their_drafts(model_path):
    """Several sequences, each with rows of its own, in one batch; a stop string and a limit amid them."""

    async def main():
        async with running(model_path, drafts=True) as engine:
            many = a_request(COPY, max_tokens=40, n=3, temperature=0.8, seed=5)
            stopped = a_request(COPY, max_tokens=90, stop=("Willow",))
            first, second = await asyncio.gather(answer(engine, many), answer(engine, stopped))
            assert all(len([t for c in first if c.choice == i for t in c.tokens]) <= 40 for i in range(3))
            assert {chunk.choice for chunk in first if chunk.finish} == {0, 1, 2}
            assert "Willow" not in text_of(second)

    asyncio.run(main())
