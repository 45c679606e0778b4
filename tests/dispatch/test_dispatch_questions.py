"""Questions asked of the cloud behind an answer: within labels and money, heard once whatever happens."""

import asyncio

import pytest
from builders import a_request
from dispatch_builders import a_box, run

from edged.core import Locality, Outcome, OutputFormat, OutputKind, Target
from edged.dispatch.audit import AT_ONCE, WAITING, Auditor
from edged.routing import policy

ENUM = OutputFormat(OutputKind.JSON_SCHEMA, '{"enum": ["a", "b"]}', name="answer")


class Asked:
    """An auditor with what it hands over, and what was heard."""

    def __init__(self, box, **route):
        self.found, self.heard = [], []
        self.auditor = Auditor(box.cloud, self.found.append)
        box.dispatcher._auditor = self.auditor
        self.route = box.dispatcher._config.routes[0].model_copy(update=route)

    def ask(self, number=0, **fields):
        request = a_request(id=f"r{number}.intent", output=ENUM, **fields)
        allowed = policy.terms(self.route, request)
        request = a_request(id=request.id, output=ENUM, clearance=allowed.clearance, **fields)
        self.auditor.ask(
            request, answers=f"r{number}", route=self.route, allowed=allowed, said='"a"', heard=self.heard.append
        )

    async def over(self):
        while self.auditor._tasks:
            await asyncio.wait(set(self.auditor._tasks))
        await asyncio.sleep(0)


@pytest.mark.parametrize(("cloud", "agreed"), [('"a"', True), ('"b"', False)])
def test_the_clouds_word_is_heard_and_compared(cloud, agreed):
    """The audit stands under the id of the request that was answered."""

    async def main():
        async with a_box() as box:
            asked = Asked(box)
            box.up.reply(text=cloud)
            asked.ask()
            await asked.over()
            assert asked.heard == [cloud]
            (audit,) = asked.found
            assert (audit.request_id, audit.measure, audit.agreed) == ("r0", "json", agreed)
            assert [(a.target, a.outcome) for a in audit.attempts] == [(Target.CLOUD, Outcome.AUDITED)]

    run(main)


@pytest.mark.parametrize("label", [Locality.LOCAL_ONLY, Locality.SITE_ONLY])
def test_what_may_not_leave_is_heard_as_nothing(label):
    """No call is made, and whoever waits is told at once."""

    async def main():
        async with a_box() as box:
            asked = Asked(box, locality=label)
            asked.ask()
            assert asked.heard == [None]
            assert (box.client.calls, asked.found, asked.auditor.skipped) == (0, [], 1)

    run(main)


def test_a_spent_budget_is_heard_as_nothing():
    """Learning is paid for from the same purse."""

    async def main():
        async with a_box(budget={"usd_per_day": 0}) as box:
            asked = Asked(box)
            asked.ask()
            await asked.over()
            assert asked.heard == [None]
            assert (box.client.calls, asked.found) == (0, [])

    run(main)


def test_a_failing_cloud_is_heard_as_nothing_and_recorded():
    """A label is never guessed."""

    async def main():
        async with a_box() as box:
            asked = Asked(box)
            box.up.reply(status=500)
            asked.ask()
            await asked.over()
            assert asked.heard == [None]
            assert asked.found[0].agreed is None

    run(main)


def test_every_question_is_heard_once_when_the_daemon_goes():
    """What runs, what waits, what no longer fits and what comes too late: all of them hear."""

    async def main():
        async with a_box() as box:
            asked = Asked(box)
            box.up.reply(text='"a"', delay_s=60)
            for number in range(AT_ONCE + WAITING + 3):
                asked.ask(number)
            await asyncio.sleep(0)
            await asked.auditor.close()
            asked.ask(99)
            await asyncio.sleep(0)
            assert asked.heard == [None] * (AT_ONCE + WAITING + 4)
            assert asked.auditor.open == 0

    run(main)
