"""Labels hold on every path that leaves the box, seen from the upstreams' own logs."""

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest
from builders import a_config, a_request, a_route
from dispatch_builders import STREAMED, UNSURE, Box, _let_accepts_end, looked_after, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edged.config import Config, RedactConfig
from edged.core import (
    Chat,
    Clearance,
    Completion,
    EngineState,
    Image,
    Locality,
    Message,
    OutputFormat,
    OutputKind,
    Reason,
    Role,
    Status,
    Target,
    Tool,
    strictest,
)
from edged.dispatch.audit import Auditor
from edged.dispatch.cloud import Cloud
from edged.dispatch.dispatcher import Dispatcher
from edged.dispatch.money import Money
from edged.dispatch.veil import Veil
from edged.errors import ClearanceRefused, InvalidRequest, Unsupported, WorkerLost
from edged.privacy.detect import Detector
from edged.privacy.rewrite import redact
from edged.testing import Reply, ScriptedUpstream
from edged.testing.local import Script, ScriptedEngine
from edged.upstream import pricing
from edged.upstream.client import UpstreamClient

MAIL = "anna.mueller@example.com"
CARD = "4111 1111 1111 1111"
KEY = "frontdesk"


@asynccontextmanager
async def a_private_box(*, trusts=("cloud",), key="any", redact=None, patience=None, veil=True, **route):
    """One route "auto" over upstreams of these trusts ("cloud" or "site"), audits and redaction as in the daemon."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(ScriptedUpstream()) for _ in trusts]
        quick = {"connect_timeout_s": 1.0, "first_token_timeout_s": 2.0, "idle_timeout_s": 2.0, **(patience or {})}
        upstreams = [
            server.config(f"up{i}", trust=trust, **quick)
            for i, (server, trust) in enumerate(zip(servers, trusts, strict=True))
        ]
        names = [f"up{i}/scripted-model" for i in range(len(trusts))]
        config = _config(a_config(routes=[a_route(cloud=names, **route)], upstreams=upstreams), key, redact)
        stack.push_async_callback(_let_accepts_end)
        client = await stack.enter_async_context(UpstreamClient(upstreams))
        cloud = Cloud(client, Money(config), veil=Veil(config) if veil else None)
        await stack.enter_async_context(looked_after(cloud))
        engine, records, audits = ScriptedEngine(), [], []
        auditor = Auditor(cloud, audits.append)
        dispatcher = Dispatcher(config, engines={"small": engine}, cloud=cloud, sinks=[records.append], auditor=auditor)
        yield Box(dispatcher, engine, servers, client, cloud, records)
        await auditor.close()


def _config(config, key, redact):
    document = config.model_dump(mode="json", by_alias=True)
    document["api_key"] = [{"name": KEY, "key": "env:NOBODY", "locality": key}]
    return Config.model_validate({**document, "redact": redact or {}})


def _wire(up):
    """All that an upstream has seen, headers too."""
    return "\n".join(json.dumps(seen.body, ensure_ascii=False) + str(dict(seen.headers)) for seen in up.seen)


# -- whatever happens ------------------------------------------------------------------------------------------------

LABELS = ["any", "redact", "site_only", "local_only"]
scripts = st.builds(
    Script,
    text=st.sampled_from(["local1 local2 local3 local4", "local1", ""]),
    logprob=st.sampled_from([-0.01, -8.0]),
    first_token_delay_s=st.sampled_from([0.0, 0.0, 0.03]),
    fail_after=st.none() | st.integers(0, 3),
    hang_after=st.none() | st.integers(0, 2),
    refusal=st.none() | st.just(WorkerLost("it died")),
)
replies = st.builds(
    Reply,
    status=st.sampled_from([200, 200, 200, 429, 500, 400]),
    error=st.none() | st.just({"code": "server_error"}),
    cut_at_byte=st.none() | st.integers(0, 900),
    slice_bytes=st.none() | st.integers(1, 9),
)
events = st.fixed_dictionaries(
    {
        "label": st.sampled_from([*LABELS, "cloud_only"]),
        "model": st.sampled_from(["auto", "auto", "auto", "small", "up0/scripted-model"]),
        "tenant": st.sampled_from(["", KEY]),
        "stream": st.booleans(),
        "script": scripts,
        "replies": st.tuples(replies, replies),
        "down": st.booleans(),
    }
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    storm=st.lists(events, min_size=1, max_size=4),
    route_label=st.sampled_from([*LABELS, "cloud_only"]),
    key_label=st.sampled_from(LABELS),
    trusts=st.permutations(["cloud", "site"]),
    extras=st.booleans(),
)
def test_no_storm_carries_a_request_past_its_label(storm, route_label, key_label, trusts, extras):
    """Doubt, silence, failure, fallback, retry, hedge and audit in any order: local_only reaches no upstream, site_only
    no cloud, and of redact no personal data is in any byte that a cloud upstream received."""

    async def main():
        more = (
            {"hedge": {"enabled": True, "after_s": 0.01, "max_share": 1.0}, "audit": {"share": 1.0}} if extras else {}
        )
        patience = {"first_token_timeout_s": 0.08, "idle_timeout_s": 0.08}
        thresholds = {"ttft_s": 0.02, "itl_s": 0.02, "queue": 1}
        route = {"locality": route_label, "thresholds": thresholds, **more}
        async with a_private_box(trusts=tuple(trusts), key=key_label, patience=patience, **route) as box:
            asked = {}
            for place, event in enumerate(storm):
                box.engine.state = EngineState.DOWN if event["down"] else EngineState.READY
                box.engine.script(event["script"])
                for up, reply in zip(box.ups, event["replies"], strict=True):
                    up.default = reply
                secret = f"u{place}.planted@example.com"
                on_route = route_label if event["model"] == "auto" else "any"
                of_key = key_label if event["tenant"] else "any"
                asked[secret] = strictest(*map(Locality, (event["label"], on_route, of_key)))
                request = a_request(
                    text=f"question{place} of {secret} / {CARD}",
                    model=event["model"],
                    tenant=event["tenant"],
                    stream=event["stream"],
                    limits={"locality": event["label"]},
                    clearance=Clearance(),
                )
                try:
                    async with asyncio.timeout(0.3):
                        await box.ask(request)
                except TimeoutError:
                    assert box.records[-1].status is Status.CANCELLED
            await asyncio.sleep(0.05)  # audits begin when everything is over
            for up, trust in zip(box.ups, trusts, strict=True):
                _check(up, trust, asked)

    run(main)


def _check(up, trust, asked):
    seen = _wire(up)
    for place, (secret, label) in enumerate(asked.items()):
        if label is Locality.LOCAL_ONLY or (label is Locality.SITE_ONLY and trust == "cloud"):
            assert f"question{place} " not in seen
        if trust == "cloud" and label is not Locality.ANY:
            assert secret not in seen
    if trust == "cloud" and Locality.ANY not in asked.values():
        assert CARD not in seen


@STREAMED
def test_a_call_that_nobody_cleared_never_leaves(stream):
    """The client itself refuses: a request as it came in, one not yet redacted, one for the site only."""

    async def main():
        async with a_private_box() as box:
            redact = Clearance(Locality.REDACT)
            for clearance in (Clearance(), redact, Clearance(Locality.SITE_ONLY)):
                request = a_request(stream=stream, clearance=clearance)
                with pytest.raises(ClearanceRefused):
                    await anext(box.client.stream(request, "up0", "scripted-model"))
            assert box.client.calls == 0
            request = a_request(stream=stream, clearance=replace(redact, redacted=True))
            assert [chunk async for chunk in box.client.stream(request, "up0", "scripted-model")]

    run(main)


def test_without_redaction_a_redact_request_is_not_sent():
    """A Cloud that was given no way to redact has the client refuse the call, and nothing is on the wire."""

    async def main():
        async with a_private_box(veil=False) as box:
            seen = await box.ask(text=MAIL, limits={"locality": "redact"}, model="up0/scripted-model")
            assert isinstance(seen.error, ClearanceRefused)
            assert not box.up.seen

    run(main)


# -- redaction -------------------------------------------------------------------------------------------------------


@STREAMED
@pytest.mark.parametrize("slice_bytes", [None, 1, 7])
def test_the_cloud_sees_placeholders_and_the_client_its_own_words(stream, slice_bytes):
    """Whatever the slicing of the stream, the echo is exact."""

    async def main():
        async with a_private_box(locality="redact") as box:
            box.engine.script(Script(logprob=UNSURE))
            text = f"Write to {MAIL}, pay with {CARD}, and keep <EMAIL_1>."
            words = f"echo: {text}".replace(MAIL, "<EMAIL_2>").replace(CARD, "<CARD_1>")
            chunks = [words[i : i + 3] for i in range(0, len(words), 3)]
            box.up.reply(Reply(chunks=chunks, slice_bytes=slice_bytes))
            seen = await box.ask(text=text, stream=stream)
            assert box.up.seen[0].body["messages"][0]["content"] == words.removeprefix("echo: ")
            assert seen.text == f"echo: {text}"
            assert box.record.redacted == (("card", 1), ("email", 1))
            assert (box.record.served_by, box.record.locality) == (Target.CLOUD, Locality.REDACT)

    run(main)


def test_arguments_of_calls_come_back_whole():
    """Placeholders in tool calls are put back as JSON needs them."""

    async def main():
        async with a_private_box() as box:
            tool = Tool("send", "mails", '{"type": "object", "properties": {"to": {"type": "string"}}}')
            box.up.reply(Reply(calls=[("send", '{"to": "<EMAIL_1>", "cc": ["<email_1>"]}')], finish="tool_calls"))
            limits = {"locality": "redact"}
            seen = await box.ask(text=f"mail {MAIL}", tools=(tool,), limits=limits, model="up0/scripted-model")
            deltas = [delta for chunk in seen.chunks for delta in chunk.tool_calls]
            assert json.loads("".join(delta.arguments for delta in deltas)) == {"to": MAIL, "cc": [MAIL]}

    run(main)


def test_a_json_answer_stays_json_when_values_return():
    """``response_format`` is kept to: what is put back is escaped."""

    async def main():
        async with a_private_box(redact={"patterns": {"odd": r'o"\d'}}, locality="redact") as box:
            box.up.reply(Reply(text='{"a": "<ODD_1>"}'))
            box.engine.state = EngineState.DOWN
            seen = await box.ask(text='see o"7', output=OutputFormat(OutputKind.JSON_OBJECT))
            assert json.loads(seen.text) == {"a": 'o"7'}

    run(main)


def test_an_upstream_of_the_site_gets_the_original():
    """``trust = "site"``: nothing is replaced, and the record says so."""

    async def main():
        async with a_private_box(trusts=("site",), locality="redact") as box:
            box.engine.script(Script(logprob=UNSURE))
            seen = await box.ask(text=MAIL)
            assert MAIL in _wire(box.up)
            assert seen.text == f"echo: {MAIL}"
            assert box.record.redacted is None

    run(main)


def test_a_fallback_from_site_to_cloud_is_redacted_and_back_again_is_not():
    """What is sent is decided for each upstream anew."""

    async def main():
        for trusts in (("site", "cloud"), ("cloud", "site")):
            async with a_private_box(trusts=trusts, locality="redact") as box:
                box.engine.script(Script(logprob=UNSURE))
                box.ups[0].reply(Reply(status=500))
                assert (await box.ask(text=MAIL)).text == f"echo: {MAIL}"
                assert [MAIL in _wire(up) for up in box.ups] == [trust == "site" for trust in trusts]

    run(main)


@pytest.mark.parametrize("what", ["picture", "tokens", "too long"])
def test_what_cannot_be_redacted_is_answered_by_the_box_or_nobody(what):
    """Deferred local answers come back marked private; a pinned request is a 400 that says why."""
    asked = {
        "picture": Chat((Message(Role.USER, "\ufffc", images=(Image(url="https://example.com/x.png"),)),)),
        "tokens": Completion((1, 2, 3)),
        "too long": Chat((Message(Role.USER, "x" * 2_000),)),
    }[what]

    async def main():
        async with a_private_box(locality="redact", redact={"max_chars": 1_000}) as box:
            pinned = a_request(model="up0/scripted-model", limits={"locality": "redact"})
            seen = await box.ask(replace(pinned, input=asked))
            assert isinstance(seen.error, Unsupported)
            if what != "picture":  # no local model reads pictures
                box.engine.script(Script(logprob=UNSURE, text="local1"))
                seen = await box.ask(replace(a_request(), input=asked))
                assert seen.text == "local1"
                assert box.records[-1].reason is Reason.PRIVATE
            assert not box.up.seen

    run(main)


def test_a_box_that_cannot_redact_refuses_the_wish_of_a_request(monkeypatch):
    """Asked for by a request alone, a missing extra is that request's error."""

    async def main():
        async with a_private_box() as box:
            monkeypatch.setitem(__import__("sys").modules, "re2", None)
            seen = await box.ask(text=MAIL, limits={"locality": "redact"}, model="up0/scripted-model")
            assert isinstance(seen.error, Unsupported)
            assert "edged[redact]" in seen.error.message
            assert not box.up.seen

    run(main)


def test_money_counts_what_was_sent():
    """A provider that tells no usage is costed from the redacted prompt and from the answer with its placeholders."""

    async def main():
        async with a_private_box() as box:
            reply = Reply(text="<EMAIL_1> " * 20, usage=None, cut_at_byte=600)
            box.up.reply(reply)
            request = a_request(text=MAIL * 3, limits={"locality": "redact"}, model="up0/scripted-model", stream=True)
            await box.ask(request)
            usage = box.record.attempts[0].usage
            assert usage.estimated
            cleared = replace(request, clearance=Clearance(Locality.REDACT))
            sent = redact(cleared, Detector(RedactConfig()), max_chars=1_000).request
            assert usage.prompt_tokens == pricing.estimate_prompt_tokens(sent)

    run(main)


def test_the_ledger_gets_no_text_of_a_redact_request():
    """``store_text`` keeps prompts; what is hidden from the cloud it does not keep either. Counts stay."""

    async def main():
        async with a_private_box() as box:
            for label, kept in (("redact", False), ("any", True)):
                await box.ask(text=MAIL, limits={"locality": label}, model="up0/scripted-model")
                record = box.records[-1]
                assert (record.prompt_text is not None, record.answer_text is not None) == (kept, kept)
                assert (MAIL in repr(record)) is kept

    run(main)


# -- labels of route, key and request --------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["route", "key", "request"])
@pytest.mark.parametrize("label", ["site_only", "local_only"])
def test_a_label_holds_wherever_it_comes_from(by, label):
    """Without an upstream that may see the request the box answers, sure or not, marked private."""

    async def main():
        route = {"locality": label} if by == "route" else {}
        async with a_private_box(key=label if by == "key" else "any", **route) as box:
            box.engine.script(Script(logprob=UNSURE, text="local1"))
            seen = await box.ask(tenant=KEY, limits={"locality": label if by == "request" else "any"})
            assert seen.text == "local1"
            assert box.record.reason is Reason.PRIVATE
            assert box.record.locality is Locality(label)
            assert not box.up.seen

    run(main)


@pytest.mark.parametrize(
    ("route", "key", "asked", "model", "said"),
    [
        ({}, "local_only", "cloud_only", "auto", "the API key says local_only, the request says cloud_only"),
        ({}, "local_only", "any", "up0/scripted-model", "the route says cloud_only, the API key says local_only"),
        ({}, "any", "site_only", "up0/scripted-model", 'no upstream with trust = "site"'),
        ({"locality": "cloud_only"}, "site_only", "any", "auto", 'no upstream with trust = "site"'),
        ({"local": ""}, "site_only", "any", "auto", 'no upstream with trust = "site"'),
    ],
)
def test_labels_that_leave_nobody_are_a_400_that_says_whose(route, key, asked, model, said):
    """The message names the field, who said what, and what is missing."""

    async def main():
        async with a_private_box(key=key, **route) as box:
            seen = await box.ask(tenant=KEY, limits={"locality": asked}, model=model)
            assert isinstance(seen.error, InvalidRequest)
            assert (seen.error.status, seen.error.param) == (400, "edged.locality")
            assert said in seen.error.message
            assert not box.up.seen

    run(main)


def test_cloud_only_combines_with_redact_and_site_only():
    """One says who answers, the other what they may see."""

    async def main():
        async with a_private_box(trusts=("cloud", "site"), key="site_only", locality="cloud_only") as box:
            assert (await box.ask(text=MAIL, tenant=KEY)).text == f"echo: {MAIL}"
            assert [len(up.seen) for up in box.ups] == [0, 1]
        async with a_private_box(key="redact", locality="cloud_only") as box:
            assert (await box.ask(text=MAIL, tenant=KEY)).text == f"echo: {MAIL}"
            assert MAIL not in _wire(box.up)

    run(main)
