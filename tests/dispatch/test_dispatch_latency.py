"""What was measured decides: never to something slower, and what was predicted is compared with what came."""

import asyncio
import itertools
import time

import pytest
from builders import a_config, a_request, a_route
from dispatch_builders import SURE, UNSURE, WORDS, a_box, run

from edged.core import Outcome, OutputFormat, OutputKind, Reason, Target
from edged.dispatch import sensors
from edged.dispatch.forecasts import Forecasts
from edged.routing.heat import Reading
from edged.routing.pace import MIN_PROMPTS, MIN_SAMPLES

CLOUD, LOCAL = Target.CLOUD, Target.LOCAL
NAME = "cloud/scripted-model"
SLOW_PREFILL = {"prefill_tps": 100.0, "decode_tps": 50.0}


def measured(box, ttft_s):
    """The upstream has lately taken so long."""
    for _ in range(MIN_SAMPLES):
        box.dispatcher.forecasts.upstreams[NAME].ttft.note(ttft_s, now_s=time.monotonic())


@pytest.mark.parametrize(("cloud_s", "author"), [(0.5, CLOUD), (30.0, LOCAL)])
def test_a_slow_box_asks_only_a_faster_cloud(cloud_s, author):
    """Predicted three seconds against a threshold of two: it depends on what the upstream took lately."""

    async def main():
        async with a_box() as box:
            box.engine.worker = SLOW_PREFILL
            box.engine.script(text=WORDS, logprob=SURE, prompt_tokens=300 - 60)
            measured(box, cloud_s)
            seen = await box.ask()
            said = next(d for d in box.record.decisions if d.stage == "review_admission")
            assert seen.head.served_by is author
            assert said.reason is (Reason.TTFT_PREDICTED if author is CLOUD else Reason.WITHIN_BUDGET)
            assert said.predicted_ttft_s == pytest.approx(2.4, abs=0.3)
            assert said.cloud_ttft_s == pytest.approx(cloud_s, abs=0.3)
            await box.at_rest()

    run(main)


def test_a_late_answer_is_waited_for_as_long_as_the_cloud_would_take():
    """Past its threshold, but sooner than the upstream: it stays."""

    async def main():
        async with a_box(thresholds={"ttft_s": 0.05}) as box:
            measured(box, 20.0)
            box.engine.script(text=WORDS, logprob=SURE, first_token_delay_s=0.2)
            seen = await box.ask()
            assert (seen.head.served_by, seen.head.reason) == (LOCAL, Reason.WITHIN_BUDGET)
            assert not box.up.seen

    run(main)


def test_calls_are_measured_and_a_slow_upstream_is_found_out():
    """From receipt of the call to its first token; keep-alives are none."""

    async def main():
        async with a_box() as box:
            for _ in range(MIN_SAMPLES):
                box.engine.script(text=WORDS, logprob=UNSURE)
                box.up.reply(text="the cloud knows better", first_token_delay_s=0.15)
                await box.ask()
            ttft = box.dispatcher.forecasts.upstreams[NAME].ttft
            assert ttft.count(now_s=time.monotonic()) == MIN_SAMPLES
            assert ttft.expected(now_s=time.monotonic()) == pytest.approx(0.15, abs=0.12)

    run(main)


def test_a_prediction_is_set_against_what_came():
    """The error of those that stayed is in the record; the bias follows it."""

    async def main():
        async with a_box() as box:
            box.engine.worker = {"prefill_tps": 400.0, "decode_tps": 50.0}
            for _ in range(MIN_SAMPLES):
                box.engine.script(text=WORDS, logprob=SURE, prompt_tokens=120, first_token_delay_s=0.6)
                await box.ask()
            first, last = box.records[0], box.records[-1]
            assert first.predicted_ttft_s == pytest.approx(0.3, abs=0.05)
            assert first.prediction_error_s == pytest.approx(0.3, abs=0.1)
            assert last.prediction_error_s is not None
            bias = box.dispatcher.forecasts.local["small"].bias
            assert 1.5 < bias <= 3.0
            box.engine.script(text=WORDS, logprob=SURE, prompt_tokens=120)
            await box.ask()
            assert box.records[-1].predicted_ttft_s == pytest.approx(0.3 * bias, abs=0.05)

    run(main)


def test_who_left_has_no_prediction_error():
    """Nor has an answer that was finished late because the cloud failed."""

    async def main():
        async with a_box() as box:
            box.engine.worker = SLOW_PREFILL
            box.engine.script(prompt_tokens=240)
            await box.ask()
            assert box.record.served_by is CLOUD
            assert box.record.prediction_error_s is None

    run(main)


# -- checkpoints --------------------------------------------------------------------------------------------------


def test_an_answer_that_cannot_pass_is_stopped_and_what_that_saved_is_counted():
    """Strict with sixteen tokens at most: the decode ends long before them."""

    async def main():
        async with a_box(release="strict") as box:
            box.engine.script(text=WORDS + " " + WORDS, logprob=UNSURE)
            seen = await box.ask(max_tokens=16)
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.LOW_CONFIDENCE)
            local, _ = box.record.attempts
            steps = len(box.engine.steps)
            assert 0 < steps < 8
            assert local.outcome is Outcome.DISCARDED
            assert (local.wasted_tokens, local.saved_tokens) == (steps, 16 - steps)
            checkpoint = box.record.decisions[-1]
            assert checkpoint.stage == "checkpoint"
            assert checkpoint.confidence < checkpoint.threshold
            await box.at_rest()

    run(main)


def test_json_that_can_no_longer_be_is_stopped_at_once():
    """A preamble where JSON was asked for."""

    async def main():
        async with a_box(release="strict", thresholds={"confidence": 0.0}) as box:
            box.engine.script(text="Sure, here is the JSON that you asked for", logprob=SURE)
            box.up.reply(text='{"a": 1}')
            seen = await box.ask(output=OutputFormat(OutputKind.JSON_OBJECT), max_tokens=100)
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.INVALID_OUTPUT)
            assert seen.text == '{"a": 1}'
            assert len(box.engine.steps) == 1
            assert box.record.attempts[0].saved_tokens == 99

    run(main)


def test_an_answer_that_is_served_wastes_and_saves_nothing():
    """Even one that was a draft before: the cloud failed, and it was finished."""

    async def main():
        async with a_box() as box:
            box.engine.script(text=WORDS, logprob=UNSURE)
            box.up.reply(status=503)
            seen = await box.ask()
            assert seen.head.reason is Reason.CLOUD_UNAVAILABLE
            assert [(a.wasted_tokens, a.saved_tokens) for a in box.record.attempts if a.target is LOCAL] == [(0, 0)]
            assert seen.text == WORDS

    run(main)


def test_a_deadline_that_will_be_missed_is_left_for_while_the_answer_is_held():
    """A token every 50 ms, a hundred asked for, two seconds given."""

    async def main():
        async with a_box(release="strict", thresholds={"confidence": 0.0}) as box:
            box.engine.worker = {"prefill_tps": 10_000.0, "decode_tps": 1_000.0}  # it believes to be fast
            box.engine.script(text=f"{WORDS} " * 12, logprob=SURE, token_delay_s=0.05)
            request = a_request(stream=True, max_tokens=96, limits={"deadline_s": 2.0})
            seen = await box.ask(request)
            assert (seen.head.served_by, seen.head.reason) == (CLOUD, Reason.DEADLINE_PREDICTED)
            assert box.record.total_s < 2.0
            assert box.record.attempts[0].saved_tokens > 50

    run(main)


# -- heat ---------------------------------------------------------------------------------------------------------


def test_heat_that_lasts_stretches_predictions_and_is_said_with_each_decision(monkeypatch):
    """From the sensors into a decision; a curve measured cool is divided by what is left of the clock."""
    monkeypatch.setattr("edged.dispatch.forecasts.SENSE_EVERY_S", 0)
    ticks = itertools.count(0.0, 10.0)

    async def main():
        async with a_box() as box:
            forecasts = Forecasts(
                a_config(routes=[a_route(cloud=[])]), clock=lambda: next(ticks), read=lambda: Reading(90.0, 85.0, 0.5)
            )
            tending = asyncio.create_task(forecasts.tend())
            while not forecasts.throttle.heat.throttled:  # noqa: ASYNC110 - the state has no event
                await asyncio.sleep(0)
            tending.cancel()
            box.dispatcher.forecasts.throttle = forecasts.throttle
            pace = box.dispatcher.forecasts.local["small"]
            for _ in range(MIN_PROMPTS):
                pace.note_prompt(start_tokens=0, tokens=100, prefill_s=0.5, now_s=time.monotonic())
            box.engine.script(text=WORDS, logprob=SURE, prompt_tokens=100)
            await box.ask()
            said = next(d for d in box.record.decisions if d.stage == "review_admission")
            assert said.speed == 0.5
            assert said.predicted_ttft_s == pytest.approx(1.0, abs=0.1)

    run(main)


def test_the_sensors_of_any_box_can_be_asked():
    """Where there are none, nothing is said of heat."""
    found = sensors.read()
    assert found.temperature_c is None or -50 < found.temperature_c < 150
    assert found.clock is None or found.clock > 0
