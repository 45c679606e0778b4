"""What providers cannot do, or refuse, in one request: who is asked, what is recorded, what the client is told."""

from dataclasses import replace

import pytest
from builders import a_request, refusing
from dispatch_builders import STREAMED, UNSURE, a_box, run

from edged.core import (
    IMAGE_MARK,
    Chat,
    Image,
    Message,
    Outcome,
    OutputFormat,
    OutputKind,
    Reason,
    Role,
    Sampling,
    Status,
    Target,
    Tool,
)
from edged.errors import Unsupported, UpstreamUnavailable
from edged.server.openai import edged_object

PICTURE = Chat((Message(Role.USER, f"what is this?\n{IMAGE_MARK}", images=(Image(url="https://x.example/a.png"),)),))
SEES = {"vision": True}


def a_model(name="scripted-model", **flags):
    return {"name": name, "input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0, **flags}


def ask(box, **fields):
    """Ask about a picture."""
    return box.ask(replace(a_request(**{"stream": True, **fields}), input=PICTURE))


# -- parameters ------------------------------------------------------------------------------------------------------


@STREAMED
def test_a_refused_parameter_costs_one_call_once_and_every_call_is_recorded(stream):
    """Asked again without it, the same upstream answers; calls made are attempts recorded (guarantee 4)."""

    async def main():
        async with a_box() as box:
            box.up.respond = refusing("seed")
            box.engine.script(logprob=UNSURE)
            box.engine.script(logprob=UNSURE)
            for _ in range(2):
                seen = await box.ask(stream=stream, sampling=Sampling(seed=7))
                assert seen.head.served_by is Target.CLOUD
            first, second = box.records
            outcomes = [(a.outcome, a.error) for a in first.attempts if a.target is Target.CLOUD]
            assert outcomes == [(Outcome.FAILED, "parameter_refused"), (Outcome.SERVED, None)]
            assert first.attempts[-1].dropped_parameters == ("seed",)
            assert first.attempts[-2].cost_uusd == 0
            assert len(second.attempts) == 2
            assert edged_object(second)["attempts"][-1]["dropped_parameters"] == ["seed"]
            assert box.client.calls == len(box.up.seen) == len(box.cloud_attempts) == 3
            await box.at_rest()

    run(main)


def test_several_refused_parameters_are_each_learned_by_one_call():
    """A reasoning model refuses the limit's old name, then the temperature: the third call is answered."""

    async def main():
        async with a_box() as box:
            box.up.respond = refusing("max_tokens", "temperature")
            box.engine.script(logprob=UNSURE)
            seen = await box.ask(max_tokens=50, sampling=Sampling(temperature=0.5))
            assert seen.head.served_by is Target.CLOUD
            assert len(box.cloud_attempts) == box.client.calls == 3
            assert box.record.attempts[-1].dropped_parameters == ("temperature",)
            await box.at_rest()

    run(main)


def test_a_refusal_that_cannot_be_helped_goes_to_the_next_upstream():
    """A parameter that matters is not left out."""

    async def main():
        async with a_box(ups=2) as box:
            box.up.respond = refusing("stop")
            box.engine.script(logprob=UNSURE)
            seen = await box.ask(stop=("x",))
            assert seen.head.model == "cloud1/scripted-model"
            assert [a.error for a in box.cloud_attempts] == ["upstream_rejected", None]
            await box.at_rest()

    run(main)


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ({"tools": False}, {"tools": (Tool("f"),)}),
        ({"json_schema": False}, {"output": OutputFormat(OutputKind.JSON_SCHEMA, '{"type": "object"}', "x")}),
    ],
)
def test_a_model_that_cannot_do_it_is_passed_over_for_nothing(flags, fields):
    """One call, one attempt: that of the model that can."""

    async def main():
        models = [a_model("simple", **flags), a_model("able")]
        async with a_box(up_config={"model": models}, local="", cloud=["cloud/simple", "cloud/able"]) as box:
            box.up.reply(text="{}")
            seen = await box.ask(**fields)
            assert seen.head.model == "cloud/able"
            assert [a.model for a in box.cloud_attempts] == ["able"]
            assert box.client.calls == len(box.up.seen) == 1
            await box.at_rest()

    run(main)


def test_what_no_upstream_can_do_is_a_400_and_no_call():
    """Several answers at once of Anthropic: refused before spending."""

    async def main():
        async with a_box(ups=2, up_config={"kind": "anthropic"}, local="") as box:
            seen = await box.ask(n=2)
            assert type(seen.error) is Unsupported
            assert seen.error.param == "n"
            assert (box.client.calls, box.record.attempts) == (0, ())
            await box.at_rest()

    run(main)


# -- images ----------------------------------------------------------------------------------------------------------


@STREAMED
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_an_image_goes_to_an_upstream_that_sees(stream, kind):
    """The local model reads text: it is not tried, and the reason is capability."""

    async def main():
        async with a_box(up_config={"model": [a_model(**SEES)], "kind": kind}) as box:
            box.up.reply(text="a cat")
            seen = await ask(box, stream=stream)
            assert (seen.text, seen.head.reason) == ("a cat", Reason.CAPABILITY)
            assert [a.target for a in box.record.attempts] == [Target.CLOUD]
            assert box.up.seen[0].body["messages"][0]["content"][1]["type"] in {"image", "image_url"}
            await box.at_rest()

    run(main)


def test_an_image_that_nobody_can_see_is_refused_before_anything_is_spent():
    """400 that names the key to set; nothing is called, the local model is not asked to guess."""

    async def main():
        async with a_box(ups=2) as box:
            seen = await ask(box)
            assert type(seen.error) is Unsupported
            assert seen.error.status == 400
            assert "vision = false" in seen.error.message
            assert (box.client.calls, box.record.attempts, box.record.status) == (0, (), Status.REJECTED)
            assert box.engine.steps == []
            await box.at_rest()

    run(main)


@pytest.mark.parametrize(
    ("limits", "route"),
    [
        ({"locality": "local_only"}, {}),
        (None, {"locality": "local_only"}),
        ({"locality": "site_only"}, {}),
        (None, {"cloud": []}),
    ],
)
def test_an_image_that_must_stay_is_refused(limits, route):
    """No label is loosened for a picture."""

    async def main():
        async with a_box(up_config={"model": [a_model(**SEES)]}, **route) as box:
            seen = await ask(box, limits=limits)
            assert type(seen.error) is Unsupported
            assert seen.error.param == "messages"
            assert box.client.calls == 0
            await box.at_rest()

    run(main)


def test_an_image_pinned_to_a_local_model_is_refused():
    """The client named a model that reads text."""

    async def main():
        async with a_box(up_config={"model": [a_model(**SEES)]}) as box:
            seen = await ask(box, model="small")
            assert type(seen.error) is Unsupported
            assert box.client.calls == 0

    run(main)


def test_where_the_one_that_sees_has_failed_its_failure_is_the_answer():
    """Not "nobody sees": trying again may help. The local model does not answer in its place."""

    async def main():
        models = [a_model("sees", **SEES), a_model("blind")]
        async with a_box(up_config={"model": models}, cloud=["cloud/sees", "cloud/blind"]) as box:
            box.up.reply(status=500)
            seen = await ask(box)
            assert isinstance(seen.error, UpstreamUnavailable)
            assert [a.model for a in box.record.attempts] == ["sees"]
            assert box.engine.steps == []
            await box.at_rest()

    run(main)
