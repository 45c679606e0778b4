"""The dispatcher over a real worker with the real model: what a scripted engine cannot show."""

import asyncio

from dispatch_builders import a_box, run

from edged.config import ModelConfig
from edged.core import Reason, Sampling, Target
from edged.engine.host import Engine
from edged.testing import Reply


def test_a_real_answer_escalates_stays_and_resumes(model_path):
    """Kept, deferred, resumed; and a try cut off and begun again at once meets none of its old tokens."""

    async def main():
        config = ModelConfig(name="small", file=model_path, context_tokens=256, slots=2)
        engine = Engine(config, threads=1, locate=lambda: model_path)
        engine.start()
        try:
            await engine.settled()
            await _outcomes(engine)
            await _resumed_at_once(engine)
        finally:
            await engine.close()

    run(main)


async def _outcomes(engine):
    ask = {"text": "Name three colours.", "max_tokens": 12, "sampling": Sampling(temperature=0.0)}
    patient = {"confidence": 0.01, "ttft_s": 60, "itl_s": 60}
    async with a_box(engine=engine, thresholds=patient) as box:
        kept = await box.ask(**ask)
        assert (kept.head.served_by, kept.head.reason) == (Target.LOCAL, Reason.WITHIN_BUDGET)
        assert 0 < kept.head.confidence < 1
        doubted = await box.ask(**ask, limits={"min_confidence": 1.0})
        assert (doubted.head.served_by, doubted.head.reason) == (Target.CLOUD, Reason.LOW_CONFIDENCE)
        box.up.default = Reply(status=500)
        resumed = await box.ask(**ask, limits={"min_confidence": 1.0})
        assert (resumed.head.served_by, resumed.head.reason) == (Target.LOCAL, Reason.CLOUD_UNAVAILABLE)
        assert resumed.text == kept.text
        assert box.records[2].attempts[0].usage.completion_tokens == 12
        await box.at_rest()
        _learned(box)


def _learned(box):
    """The decode of what could not pass ended early; what stayed is set against its prediction."""
    kept, doubted, _ = box.records
    draft = doubted.attempts[0]
    assert doubted.decisions[-1].stage == "checkpoint"
    assert 0 < draft.wasted_tokens < 12
    assert draft.saved_tokens == 12 - draft.wasted_tokens
    assert (kept.attempts[0].wasted_tokens, kept.attempts[0].saved_tokens) == (0, 0)
    assert (kept.task, kept.task_source) == ("chat", "detected")


async def _resumed_at_once(engine):
    """No money: the first try is cancelled and the second begins in the same turn of the loop, six at a time."""
    doubt = {"confidence": 1.0, "ttft_s": 60, "itl_s": 60, "queue": 50}
    async with a_box(engine=engine, thresholds=doubt, budget={"usd_per_day": 0}) as box:
        seen = await asyncio.gather(*(box.ask(text=f"Count from {i} to 50.", max_tokens=10) for i in range(6)))
        assert {one.head.reason for one in seen} == {Reason.BUDGET_EXHAUSTED}
        records = {record.id: record for record in box.records}
        for one in seen:
            tokens = [token for chunk in one.chunks for token in chunk.tokens]
            assert one.text == b"".join(token.piece for token in tokens).decode("utf-8", "replace")
            usage = records[one.request_id].attempts[0].usage
            assert usage.completion_tokens - len(tokens) in (0, 1)  # the end token has no text
        await box.at_rest()
