"""Each check finds the violation it is there for, and none in a storm that went well."""

from dataclasses import replace

import pytest

from edged.chaos.checks import GUARANTEES, not_judged, violations
from edged.chaos.client import Heard
from edged.chaos.evidence import Call, Evidence
from edged.chaos.plan import Ask
from edged.core import Attempt, Outcome, Reason, Record, Status, Target

MARK = "ask-abcdefghij"
OTHER = "ask-ponmlkjihg"
ASK = Ask(mark=MARK, model="auto", key=0, label="any", form="text", stream=False, max_tokens=4)
HEADERS = {"x-edged-request-id": "r1", "x-edged-served-by": "cloud"}


def heard(text=f"{MARK}~far1~0 {MARK}~far1~1", ask=ASK, headers=HEADERS, **fields):
    body = f'{{"choices": [{{"message": {{"content": "{text}"}}}}]}}'.encode()
    return Heard(ask, **{"status": 200, "headers": headers, "raw": body, "body": body, **fields})


def an_attempt(**fields):
    usual = {"target": Target.CLOUD, "backend": "far", "model": "m", "outcome": Outcome.SERVED}
    return Attempt(**{**usual, "started_s": 0.0, "total_s": 1.0, "cost_uusd": 20, **fields})


def a_record(**fields):
    usual = {"id": "r1", "received_at": 0.0, "api": "openai", "model": "auto", "status": Status.OK, "total_s": 1.0}
    usual |= {"served_by": Target.CLOUD, "reason": Reason.LOW_CONFIDENCE, "attempts": (an_attempt(),)}
    return Record(**{**usual, "prompt_text": f"user: This is {MARK}.", **fields})


def a_call(**fields):
    usual = {"upstream": "far", "mark": MARK, "fault": "none", "text": MARK, "authorization": "", "ended": True}
    return Call(**{**usual, "counted_uusd": 20, **fields})


def evidence(**fields):
    usual = {
        "asks": (ASK,),
        "heard": (heard(),),
        "calls": (a_call(),),
        "records": (a_record(),),
        "gauges": {"edged_upstream_calls": 1.0, "edged_in_flight_requests": 0.0},
        "secrets": ("the-key",),
        "live_s": (0.01,) * 200,
        "local_before_s": (0.2,),
        "local_cut_off_s": (0.2,),
    }
    return Evidence(**{**usual, **fields})


def found(**fields):
    return {name for name, lines in violations(evidence(**fields)).items() if lines}


def test_a_storm_that_went_well_has_no_violation():
    """Every guarantee is listed, with nothing under it."""
    assert set(violations(evidence())) == set(GUARANTEES)
    assert found() == set()


ZERO = {"edged_upstream_calls": 1.0}
WRONG = {
    "no record": ("1 one record", {"records": (), "calls": (), "gauges": {}}),
    "two records": (
        "1 one record",
        {"records": (a_record(), a_record(id="r2")), "gauges": {"edged_upstream_calls": 2.0}},
    ),
    "a record too many": (
        "1 one record",
        {"records": (a_record(), a_record(id="r2", prompt_text=OTHER, attempts=(), status=Status.FAILED))},
    ),
    "two calls in one answer": ("2 one source", {"heard": (heard(f"{MARK}~far1~0 {MARK}~far2~1"),)}),
    "two upstreams in one answer": ("2 one source", {"heard": (heard(f"{MARK}~far1~0 {MARK}~near1~1"),)}),
    "a word twice": ("2 one source", {"heard": (heard(f"{MARK}~far1~0 {MARK}~far1~0"),)}),
    "a word missing": ("2 one source", {"heard": (heard(f"{MARK}~far1~0 {MARK}~far1~2"),)}),
    "a splice behind local words": (
        "2 one source",
        {"heard": (heard(headers={**HEADERS, "x-edged-served-by": "local"}),)},
    ),
    "an author without words": ("2 one source", {"heard": (heard("The sea is blue."),)}),
    "two served attempts": (
        "2 one source",
        {"records": (a_record(attempts=(an_attempt(), an_attempt())),), "gauges": {"edged_upstream_calls": 2.0}},
    ),
    "a slot in use": ("3 nothing left", {"gauges": {**ZERO, 'edged_model_running{model="small"}': 1.0}}),
    "an open connection": ("3 nothing left", {"connections": 1}),
    "an open call": ("3 nothing left", {"calls": (a_call(ended=False),)}),
    "a busy worker": ("3 nothing left", {"cpu_at_rest": 0.9}),
    "an orphan": ("3 nothing left", {"leftovers": (4711,)}),
    "a bad end": ("3 nothing left", {"exit_code": -11}),
    "a call not recorded": ("4 calls recorded", {"gauges": {"edged_upstream_calls": 2.0}}),
    "a call only the upstream knows": ("4 calls recorded", {"calls": (a_call(), a_call(counted_uusd=0))}),
    "a storm of retries": (
        "4 calls recorded",
        {
            "records": (a_record(attempts=(*[an_attempt(outcome=Outcome.FAILED)] * 99, an_attempt())),),
            "gauges": {"edged_upstream_calls": 100.0},
        },
    ),
    "a call too cheap": ("5 money", {"calls": (a_call(counted_uusd=21),)}),
    "a reservation left": (
        "5 money",
        {"budgets": ({"scope": "route", "name": "auto", "limit_usd": 1, "spent_usd": 0, "reserved_usd": 0.1},)},
    ),
    "an overspent budget": (
        "5 money",
        {"budgets": ({"scope": "route", "name": "auto", "limit_usd": 1, "spent_usd": 1.1, "reserved_usd": 0},)},
    ),
    "a key in the log": ("6 privacy", {"log": "sent the-key"}),
    "a prompt in the log": ("6 privacy", {"log": f"asked {MARK}"}),
    "a key in an answer": ("6 privacy", {"heard": (heard(raw=b"the-key"),)}),
    "another client's text": ("6 privacy", {"heard": (heard(raw=OTHER.encode()),)}),
    "a question nobody asked": ("6 privacy", {"calls": (a_call(), a_call(mark="", counted_uusd=0))}),
    "never live": ("7 live", {"live_s": ()}),
    "slowly live": ("7 live", {"live_s": (0.01,) * 200 + (0.3,) * 5}),
    "slow without a network": ("8 cut off", {"local_cut_off_s": (2.0,)}),
    "a traceback": ("no crash", {"log": 'Traceback (most recent call last):\n  File "x"\nValueError: what\n'}),
    "an internal error": ("no crash", {"records": (a_record(error="internal_error"),)}),
}


@pytest.mark.parametrize("what", list(WRONG))
def test_each_violation_is_found_by_its_check(what):
    """By its own check at least."""
    name, fields = WRONG[what]
    assert name in found(**fields)


@pytest.mark.parametrize(
    ("label", "key", "upstream"), [("local_only", 0, "near"), ("site_only", 0, "far"), ("any", 2, "far")]
)
def test_a_label_that_was_crossed_is_found(label, key, upstream):
    """The request's own, or its key's."""
    ask = replace(ASK, label=label, key=key)
    assert "6 privacy" in found(asks=(ask,), calls=(a_call(upstream=upstream),))


def test_personal_data_that_reached_a_cloud_is_found():
    """The address of a redacted request."""
    ask = replace(ASK, label="redact")
    assert "6 privacy" in found(asks=(ask,), calls=(a_call(text=f"This is {MARK}. Write to {ask.e_mail}."),))
    assert found(asks=(ask,), calls=(a_call(text=f"This is {MARK}. Write to <EMAIL_1>."),)) == set()


def test_a_client_that_left_in_the_middle_of_a_word_is_no_violation():
    """JSON and calls come in pieces of any size."""
    assert found(heard=(heard('{\\"mar', left=True),)) == set()


def test_an_audits_call_is_no_retry():
    """It begins after its request has ended."""
    audited = an_attempt(outcome=Outcome.AUDITED, started_s=2.0)
    records = tuple(a_record(id=f"r{n}", prompt_text=None, attempts=(an_attempt(), audited)) for n in range(1, 100))
    lines = violations(evidence(records=records, gauges={"edged_upstream_calls": 198.0}))["4 calls recorded"]
    assert not lines


def test_liveness_is_judged_only_where_the_box_was_left_to_the_daemon():
    """Too few undisturbed probes: no verdict, and the report says so."""
    busy = evidence(live_s=(0.9,) * 10, live_set_aside_s=(0.9,) * 500)
    assert not violations(busy)["7 live"]
    assert len(list(not_judged(busy))) == 1
    assert not list(not_judged(evidence()))


def test_speed_without_a_network_is_judged_only_on_a_quiet_box():
    """Slower while others used it: no verdict, and the report says so."""
    busy = evidence(local_cut_off_s=(2.0,), local_disturbed=True)
    assert not violations(busy)["8 cut off"]
    assert len(list(not_judged(busy))) == 1
