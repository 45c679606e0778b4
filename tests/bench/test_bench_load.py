"""Rounds interleave the targets and give all of them the same work."""

import asyncio
import json
from contextlib import AsyncExitStack

import pytest

from edged.bench.client import Ask, BenchError, Target, open_session
from edged.bench.load import Plan, Round, measure
from edged.bench.prompts import extraction, prompt, words_for
from edged.bench.report import as_json, show
from edged.bench.scenarios import stream_rate


def measured(serving, plan: Plan, **scripts) -> list[Round]:
    """The rounds of a plan on scripted targets, by name."""

    async def main() -> list[Round]:
        seen: list[Round] = []
        async with AsyncExitStack() as stack:
            started = [(name, await stack.enter_async_context(serving(script))) for name, script in scripts.items()]
            rounds = await measure(plan, [Target(name, script.url) for name, script in started], seen.append)
        assert seen == rounds
        return rounds

    return asyncio.run(main())


def test_targets_take_turns_and_get_the_same_prompts(scripted, serving) -> None:
    """A B A B for each concurrency; after the warm-up both saw the same texts, none of them twice."""
    usage = {"prompt_tokens": 20, "completion_tokens": 2}
    a, b = scripted(usage=usage), scripted(usage=usage)
    plan = Plan(concurrencies=(1, 3), rounds=2, prompt_tokens=20, requests=2)
    rounds = measured(serving, plan, a=a, b=b)
    assert [(r.concurrency, r.number, r.target) for r in rounds] == [
        (concurrency, number, name) for concurrency in (1, 3) for number in (0, 1) for name in "ab"
    ]
    texts = [[body["messages"][0]["content"] for body in script.bodies[1:]] for script in (a, b)]
    assert sorted(texts[0]) == sorted(texts[1])
    assert len(set(texts[0])) == len(texts[0]) == 2 * (1 + 3) * 2
    assert {round_.figures.completion_tokens for round_ in rounds} == {4, 12}


def test_a_round_is_really_concurrent(scripted, serving) -> None:
    """All clients of a round are answered at the same time."""
    script = scripted(pieces=((0.1, "a"), (0.1, "b")))
    measured(serving, Plan(concurrencies=(4,), rounds=1), only=script)
    assert script.most_running == 4


def test_a_failing_target_is_found_before_anything_is_measured(scripted, serving) -> None:
    """The warm-up names the target and what it said."""
    with pytest.raises(BenchError, match=r"broken: .*HTTP 404: no such model"):
        measured(serving, Plan(), fine=scripted(), broken=scripted(status=404))


def test_prompts_have_the_wanted_length_and_share_no_prefix() -> None:
    """A word more or less per token that the template costs."""
    one, other = prompt(50, seed="1"), prompt(50, seed="2")
    assert one == prompt(50, seed="1")
    assert one.split()[0:3] != other.split()[0:3]
    assert len(one.split()) == 50
    assert words_for(128, tried_words=128, got_tokens=160) == 96
    assert words_for(16, tried_words=16, got_tokens=60) == 8
    assert words_for(16, tried_words=16, got_tokens=None) == 16


def test_the_report_compares_with_the_first_target(scripted, serving, capsys) -> None:
    """The table and the JSON hold every target at every concurrency, and the ratios."""
    plan = Plan(concurrencies=(1, 2), rounds=2)
    slow = scripted(pieces=((0.05, "a"), (0.1, "b"), (0.1, "c")))
    fast = scripted(pieces=((0.0, "a"), (0.02, "b"), (0.02, "c")))
    rounds = measured(serving, plan, slow=slow, fast=fast)
    answer = json.loads(json.dumps(as_json(plan, rounds)))
    cells = {(cell["concurrency"], cell["target"]): cell for cell in answer["results"]}
    assert set(cells) == {(1, "slow"), (1, "fast"), (2, "slow"), (2, "fast")}
    assert cells[1, "slow"]["ratio"]["itl_p50_s"]["median"] == 1
    assert cells[1, "fast"]["ratio"]["itl_p50_s"]["median"] < 1
    assert cells[1, "fast"]["tokens_counted_by_chunks"] is True
    show(plan, rounds)
    printed = capsys.readouterr().out
    assert "1 at once" in printed
    assert "2 at once" in printed
    assert printed.count("fast") == 2


def test_a_prompt_to_copy_from_is_the_same_for_its_seed_and_new_for_another() -> None:
    """Both servers of a pair get the same text, and no round finds an earlier one's prefix."""
    assert extraction(seed="a") == extraction(seed="a")
    starts = {extraction(seed=str(i)).split(",")[1] for i in range(20)}
    assert len(starts) > 15


def test_the_rate_of_a_stream_counts_tokens_whatever_pieces_they_come_in(scripted, serving) -> None:
    """After the first piece; an answer of one token has none."""

    async def main() -> tuple[float, str]:
        pieces = ((0.0, "a"), (0.1, "bcdef"))
        async with (
            serving(scripted(usage={"completion_tokens": 6}, pieces=pieces)) as six,
            serving(scripted(usage={"completion_tokens": 1})) as one,
            open_session(10) as session,
        ):
            rate = await stream_rate(session, Target("six", six.url, "m"), Ask("x", 9))
            with pytest.raises(BenchError, match="no rate") as caught:
                await stream_rate(session, Target("one", one.url, "m"), Ask("x", 9))
            return rate, str(caught.value)

    rate, problem = asyncio.run(main())
    assert 5 / 2 < rate <= 5 / 0.1
    assert problem.startswith("one:")
