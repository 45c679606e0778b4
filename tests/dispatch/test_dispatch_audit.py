"""Audits: kept answers asked of the cloud too, behind the client's back and never in its way."""

import asyncio
import time

import pytest
from builders import a_request
from dispatch_builders import SURE, UNSURE, WORDS, a_box, run

from edged.core import Outcome, OutputFormat, OutputKind, Target
from edged.dispatch.audit import AT_ONCE, WAITING, Auditor
from edged.testing.local import Script

ALL = {"share": 1.0}


def watched(box):
    """An auditor on the box's dispatcher, and what it hands over."""
    found = []
    auditor = Auditor(box.cloud, found.append)
    box.dispatcher._auditor = auditor
    return auditor, found


async def over(auditor):
    while auditor._tasks:
        await asyncio.wait(set(auditor._tasks))


def outcomes(audit):
    return [(a.target, a.outcome) for a in audit.attempts]


def test_a_kept_answer_is_compared_after_it_was_served():
    """The client has its answer and its record before the cloud is asked; the record itself does not change."""

    async def main():
        async with a_box(audit=ALL) as box:
            auditor, found = watched(box)
            box.engine.script(text=WORDS, logprob=SURE)
            box.up.reply(text=WORDS.upper())
            seen = await box.ask()
            assert (seen.text, box.client.calls) == (WORDS, 0)
            await over(auditor)
            (audit,) = found
            assert (audit.request_id, audit.measure, audit.agreed, audit.score) == (box.record.id, "words", True, 1.0)
            assert outcomes(audit) == [(Target.CLOUD, Outcome.AUDITED)]
            assert audit.cost_uusd > 0
            assert len(box.record.attempts) == 1
            await box.at_rest()

    run(main)


@pytest.mark.parametrize(
    ("form", "local", "cloud", "measure", "agreed"),
    [
        (OutputFormat(OutputKind.JSON_OBJECT), '{"a": 1, "b": 2}', '{"b":2,"a":1.0}', "json", True),
        (OutputFormat(OutputKind.REGEX, "yes|no"), "yes", "no", "exact", False),
    ],
)
def test_closed_forms_are_compared_by_value(form, local, cloud, measure, agreed):
    """JSON by value, a pattern by letter."""

    async def main():
        async with a_box(audit=ALL) as box:
            auditor, found = watched(box)
            box.engine.script(text=local, logprob=SURE)
            box.up.reply(text=cloud)
            await box.ask(output=form)
            await over(auditor)
            if not found:  # a form the cloud cannot promise is refused before any call
                assert (auditor.skipped, box.client.calls) == (1, 0)
                return
            assert (found[0].measure, found[0].agreed) == (measure, agreed)

    run(main)


NOT_AUDITED = {
    "local_only": ({}, {"limits": {"locality": "local_only"}}, {}),
    "deferred": ({}, {}, {"logprob": UNSURE}),
    "pinned": ({"locality": "local_only"}, {}, {}),
    "several choices": ({}, {"n": 2}, {}),
    "no money": ({"budget": {"usd_per_day": 0}}, {}, {}),
    "off": ({"audit": {}}, {}, {}),
}


@pytest.mark.parametrize("why", list(NOT_AUDITED))
def test_what_may_not_leave_or_was_not_kept_is_not_audited(why):
    """Labels and money stand before every call; only what the threshold let through is of interest."""

    async def main():
        route, fields, script = NOT_AUDITED[why]
        async with a_box(**{"audit": ALL, **route}) as box:
            auditor, found = watched(box)
            box.engine.script(**{"text": WORDS, "logprob": SURE, **script})
            await box.ask(**fields)
            calls = box.client.calls
            await over(auditor)
            assert not found
            assert box.client.calls == calls == len(box.cloud_attempts)
            await box.at_rest()

    run(main)


def test_an_audit_the_cloud_fails_is_recorded_with_its_call():
    """Calls made are attempts recorded, audits included."""

    async def main():
        async with a_box(audit=ALL) as box:
            auditor, found = watched(box)
            box.up.reply(status=500)
            await box.ask()
            await over(auditor)
            (audit,) = found
            assert (audit.agreed, audit.error, outcomes(audit)) == (
                None,
                audit.attempts[0].error,
                [(Target.CLOUD, Outcome.FAILED)],
            )
            assert box.client.calls == 1

    run(main)


def test_audits_are_few_at_once_few_wait_and_the_rest_is_skipped():
    """A slow cloud holds up no answer; closing ends everything at once, and what was called is recorded."""

    async def main():
        async with a_box(audit=ALL) as box:
            auditor, found = watched(box)
            box.engine.default = Script(text=WORDS, logprob=SURE)
            box.up.default = type(box.up.default)(hang=True)
            extra = 5
            for _ in range(AT_ONCE + WAITING + extra):
                assert (await box.ask()).text == WORDS
            assert auditor.skipped == extra
            assert box.dispatcher.in_flight == 0
            await box.up.request(AT_ONCE)
            assert box.client.calls == AT_ONCE
            started_s = time.monotonic()
            await auditor.close()
            assert time.monotonic() - started_s < 1.0
            assert [outcomes(audit) for audit in found] == [[(Target.CLOUD, Outcome.CANCELLED)]] * AT_ONCE
            assert all(audit.cost_uusd > 0 for audit in found)
            await box.at_rest()
            await box.ask()
            assert box.client.calls == AT_ONCE

    run(main)


def test_the_share_decides_by_request_id():
    """The same ids are audited again under the same seed."""

    async def main():
        async with a_box(audit={"share": 0.5, "seed": 3}) as box:
            auditor, found = watched(box)
            picked = []
            for _ in range(2):
                found.clear()
                for number in range(20):
                    await box.ask(a_request(id=f"fixed-{number}", stream=True))
                    box.engine.prepared.clear()
                    await over(auditor)
                picked.append([audit.request_id for audit in found])
            assert picked[0] == picked[1]
            assert 2 <= len(picked[0]) <= 18

    run(main)


def test_nothing_is_audited_on_the_way_down():
    """What finishes during a drain starts no further calls."""

    async def main():
        async with a_box(audit=ALL) as box:
            auditor, found = watched(box)
            async with box.dispatcher.answer(a_request(stream=True)) as answer:
                box.dispatcher.draining = True
                async for _ in answer.chunks():
                    pass
            await over(auditor)
            assert (found, box.client.calls) == ([], 0)

    run(main)
