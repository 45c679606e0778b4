"""The guarantees, whatever happens: one record, one author, no leak, no call that a label forbids."""

import asyncio

import pytest
from builders import a_request
from dispatch_builders import UNSURE, a_box, cancel_after, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.core import EngineState, Locality, Outcome, Status, Target
from edged.errors import EdgedError, WorkerLost
from edged.testing import Reply
from edged.testing.local import Script, ScriptedEngine

LOCAL_TEXT = "local1 local2 local3 local4 local5 local6"

scripts = st.builds(
    Script,
    text=st.sampled_from([LOCAL_TEXT, "local1", ""]),
    logprob=st.sampled_from([-0.01, -8.0, (-0.01, -8.0), (-8.0, -0.01)]),
    refusal=st.none() | st.just(WorkerLost("it died")),
    first_token_delay_s=st.sampled_from([0.0, 0.0, 0.0, 0.03]),
    fail_after=st.none() | st.integers(0, 6),
    hang_after=st.none() | st.integers(0, 3),
    vanish_after=st.none() | st.integers(0, 6),
    fresh_only=st.booleans(),
)
replies = st.builds(
    Reply,
    text=st.sampled_from(["cloud1 cloud2 cloud3 cloud4", "cloud1", ""]),
    status=st.sampled_from([200, 200, 200, 429, 500, 401]),
    error=st.none() | st.just({"code": "server_error"}),
    error_after=st.integers(0, 5),
    cut_at_byte=st.none() | st.integers(0, 1500),
    usage=st.sampled_from(["counted", None]),
    hang=st.sampled_from([False, False, False, True]),
)
requests = st.fixed_dictionaries(
    {
        "limits": st.fixed_dictionaries({"locality": st.sampled_from(["any", "any", "local_only", "cloud_only"])}),
        "stream": st.booleans(),
        "n": st.sampled_from([1, 1, 2]),
        "max_tokens": st.sampled_from([None, 3, 250]),
    }
)
storms = st.lists(st.tuples(requests, scripts, replies, replies, st.booleans()), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    storm=storms,
    route_locality=st.sampled_from(["any", "any", "local_only"]),
    release=st.sampled_from(["strict", "guarded", "eager"]),
    usd_per_day=st.sampled_from([None, 0, 0.02, 1.0]),
)
def test_no_storm_breaks_a_guarantee(storm, route_locality, release, usd_per_day):
    """Engine failures, silence, doubt, full queues and failing upstreams in any order: a local_only request never
    reaches an upstream, an answer has one author, calls made are attempts recorded, each request leaves one record."""

    async def main():
        engine = ScriptedEngine(slots=1)
        patience = {"first_token_timeout_s": 0.08, "idle_timeout_s": 0.08}
        route = {"locality": route_locality, "release": release, "budget": {"usd_per_day": usd_per_day}}
        limits = {"ttft_s": 0.02, "itl_s": 0.02, "queue": 1}
        async with a_box(ups=2, up_config=patience, engine=engine, thresholds=limits, **route) as box:
            asked = []
            for place, (fields, script, first, second, down) in enumerate(storm):
                engine.state = EngineState.DOWN if down else EngineState.READY
                engine.script(script)
                for up, reply in zip(box.ups, (first, second), strict=True):
                    up.default = reply
                asked.append(a_request(text=f"question{place}", **fields))
                await _ask_with_patience(box, asked[-1], route_locality)
            await box.at_rest()
            assert [r.id for r in box.records] == [request.id for request in asked]
            assert sum(len(up.seen) for up in box.ups) <= box.client.calls == len(box.cloud_attempts)
            _check_labels(box, asked, route_locality)

    run(main)


async def _ask_with_patience(box, request, route_locality):
    """A local_only answer may hang for ever with the engine; its client then leaves."""
    try:
        async with asyncio.timeout(0.3):
            seen = await box.ask(request)
    except TimeoutError:
        assert box.records[-1].status is Status.CANCELLED
        return
    record = box.records[-1]
    for choice in range(request.n):
        words = {word.rstrip("0123456789") for word in seen.text_of(choice).split()}
        assert words <= {record.served_by.value}
    assert (record.status is Status.OK) == (seen.error is None)
    assert (record.served is not None) == (record.status is Status.OK)


def _check_labels(box, asked, route_locality):
    private = {
        request.input.messages[0].text
        for request in asked
        if Locality.LOCAL_ONLY in (request.limits.locality, Locality(route_locality))
    }
    reached = {seen.body["messages"][0]["content"] for up in box.ups for seen in up.seen}
    assert not private & reached


# -- the client hangs up ---------------------------------------------------------------------------------------------

SCENES = {
    "kept": ({}, None),
    "deferred": ({"logprob": UNSURE}, Reply(text="cloud1 cloud2 cloud3")),
    "deferred, cloud fails": ({"logprob": UNSURE, "text": LOCAL_TEXT}, Reply(status=500)),
    "worker lost": ({"fail_after": 2}, Reply(text="cloud1 cloud2")),
    "silence": ({"hang_after": 1}, Reply(text="cloud1 cloud2")),
}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("scene", list(SCENES))
def test_a_client_may_hang_up_at_any_moment(scene, stream):
    """Cancelled at turn 1, 2, 3, ... of the event loop until it is too late: one record each, nothing in flight, the
    upstream's connection closed, no reservation left."""

    async def main():
        script, reply = SCENES[scene]
        async with a_box(thresholds={"itl_s": 0.001}) as box:
            box.engine.default, box.up.default = Script(**script), reply or Reply()
            turns, missed = 0, 0
            while missed < 3 and turns < 400:
                turns += 1
                met = await cancel_after(turns, box.ask(stream=stream))
                missed = 0 if met else missed + 1
                assert len(box.records) == turns
                await box.at_rest()
                _check_ending(box.records[-1], cancelled=met)
            assert turns > 5
            assert box.client.calls == len(box.cloud_attempts)

    run(main)


def _check_ending(record, *, cancelled):
    assert record.status is (Status.CANCELLED if cancelled else Status.OK)
    assert record.error == ("client_gone" if cancelled else None)
    outcomes = {attempt.outcome for attempt in record.attempts}
    assert (Outcome.SERVED in outcomes) is not cancelled
    for attempt in record.attempts:
        assert attempt.target is Target.LOCAL or attempt.cost_uusd > 0 or attempt.outcome is Outcome.FAILED


def test_a_client_that_leaves_mid_stream_closes_the_upstreams_connection():
    """Leaving the block ends the call at once; what was generated so far is costed as an estimate."""

    async def main():
        async with a_box() as box:
            box.engine.script(logprob=UNSURE)
            box.up.reply(text="cloud1 cloud2 cloud3", chunk_delay_s=0.02)
            async with box.dispatcher.answer(a_request(stream=True)) as answer:
                async for chunk in answer.chunks():
                    if "cloud1" in chunk.text:
                        break
            assert await box.up.seen[0].hung_up()
            assert box.record.status is Status.CANCELLED
            cloud = box.record.attempts[1]
            assert (cloud.outcome, cloud.cost_estimated, cloud.usage.estimated) == (Outcome.CANCELLED, True, True)
            assert cloud.cost_uusd > 0
            await box.at_rest()

    run(main)


async def _read_all_and_leave(box, error):
    async with box.dispatcher.answer(a_request(stream=True)) as answer:
        async for _ in answer.chunks():
            pass
        raise error


@pytest.mark.parametrize("error", [asyncio.CancelledError, ConnectionResetError, GeneratorExit])
def test_a_client_that_hangs_up_once_it_has_everything_was_served(error):
    """Clients close at the last event they need, before the server has closed its side."""

    async def main():
        async with a_box() as box:
            with pytest.raises(error):
                await _read_all_and_leave(box, error)
            assert (box.record.status, box.record.error) == (Status.OK, None)
            await box.at_rest()

    run(main)


@pytest.mark.parametrize("scene", ["kept", "deferred", "deferred, cloud fails"])
def test_an_answer_that_is_never_read_is_cancelled(scene):
    """The block is left before the first chunk: generators that never started leak nothing."""

    async def main():
        script, reply = SCENES[scene]
        async with a_box() as box:
            box.engine.default, box.up.default = Script(**script), reply or Reply()
            async with box.dispatcher.answer(a_request(stream=True)):
                pass
            assert box.record.status is Status.CANCELLED
            await box.at_rest()

    run(main)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ConnectionResetError("gone"), Status.CANCELLED, "client_gone"),
        (TimeoutError("does not read"), Status.CANCELLED, "client_too_slow"),
        (RuntimeError("a bug"), Status.FAILED, "internal_error"),
    ],
)
def test_whatever_is_raised_inside_the_block_leaves_one_record(error, status, code):
    """A write that fails is a client that left; anything else is our own fault, and is recorded before it goes on."""

    async def main():
        async with a_box() as box:
            with pytest.raises(type(error)):
                async with box.dispatcher.answer(a_request(stream=True)):
                    raise error
            assert (box.record.status, box.record.error) == (status, code)
            await box.at_rest()

    run(main)


def test_an_error_told_in_band_still_makes_a_failed_record():
    """A server that catches the author's failure to end its stream properly leaves the block in peace."""

    async def main():
        async with a_box() as box:
            box.engine.script(text=LOCAL_TEXT, fail_after=5)
            async with box.dispatcher.answer(a_request(stream=True)) as answer:
                with pytest.raises(EdgedError):
                    [chunk async for chunk in answer.chunks()]
            assert (box.record.status, box.record.error) == (Status.FAILED, "worker_lost")

    run(main)


# -- records ---------------------------------------------------------------------------------------------------------


def test_a_sink_that_fails_costs_nobody_else_anything(caplog):
    """The client gets its answer, the other sinks their record, the log a line."""

    def broken(record):
        raise OSError("disk full")

    async def main():
        also = []
        async with a_box(sinks=[broken, also.append]) as box:
            seen = await box.ask()
            assert seen.text == "a quiet local answer"
            assert [box.record] == also

    run(main)
    assert "a sink did not take the record" in caplog.text


def test_the_record_is_final_once_the_chunks_are_read():
    """What a client is shown at the end of its answer is what the ledger keeps, cost included."""

    async def main():
        async with a_box() as box:
            box.engine.script(logprob=UNSURE)
            async with box.dispatcher.answer(a_request(stream=True)) as answer:
                async for _ in answer.chunks():
                    pass
                shown = answer.record()
            kept = box.record
            assert shown.cost_uusd == kept.cost_uusd > 0
            assert shown.attempts == kept.attempts
            assert (shown.status, shown.reason, shown.decisions) == (kept.status, kept.reason, kept.decisions)

    run(main)


def test_many_at_once_leave_one_record_each_and_nothing_behind():
    """Forty clients, a third of which hang up."""

    async def main():
        async with a_box(engine=ScriptedEngine(slots=4), thresholds={"queue": 4}) as box:
            box.engine.default = Script(text=LOCAL_TEXT, logprob=[-0.01], token_delay_s=0.001)
            box.up.default = Reply(text="cloud1 cloud2", chunk_delay_s=0.002)
            tasks = [asyncio.create_task(box.ask(stream=place % 2 == 0)) for place in range(40)]
            await asyncio.sleep(0.004)
            for task in tasks[::3]:
                task.cancel()
            await asyncio.wait(tasks)
            await box.at_rest()
            assert len({record.id for record in box.records}) == len(box.records)
            assert box.client.calls == len(box.cloud_attempts)
            assert len(box.records) == 40

    run(main)
