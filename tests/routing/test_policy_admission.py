"""Where a request starts: every numbered rule of ``admit`` and ``review_admission``, and what a request may change."""

import pytest
from builders import a_request, a_route, an_engine_snapshot, the_terms
from hypothesis import given
from hypothesis import strategies as st

from edged.config import RouteConfig
from edged.core import EngineState, Limits, Locality, Reason, Release, Target
from edged.errors import InvalidRequest
from edged.routing.policy import admit, review_admission, terms

LOCAL, CLOUD, NONE = Target.LOCAL, Target.CLOUD, Target.NONE
PRESSED = {"host_pressure": True}
COLD = {"state": EngineState.UNLOADED, "load_wait_s": 1.5}
ANY, LOCAL_ONLY, CLOUD_ONLY = Locality.ANY, Locality.LOCAL_ONLY, Locality.CLOUD_ONLY
REDACT, SITE_ONLY = Locality.REDACT, Locality.SITE_ONLY


@pytest.mark.parametrize(
    ("allowed", "engine", "in_flight", "expected"),
    [
        pytest.param({"locality": CLOUD_ONLY}, {}, 0, (CLOUD, Reason.PINNED_CLOUD), id="1 pinned to the cloud"),
        pytest.param({"has_local": False}, {}, 0, (CLOUD, Reason.PINNED_CLOUD), id="1 no local model"),
        pytest.param({"has_local": False}, None, 0, (CLOUD, Reason.PINNED_CLOUD), id="1 before the worker matters"),
        pytest.param({}, None, 0, (CLOUD, Reason.LOCAL_UNAVAILABLE), id="2 no engine"),
        pytest.param({}, {"state": EngineState.DOWN}, 0, (CLOUD, Reason.LOCAL_UNAVAILABLE), id="2 down"),
        pytest.param({}, {"state": EngineState.LOADING}, 0, (CLOUD, Reason.LOCAL_UNAVAILABLE), id="2 loading"),
        pytest.param(
            {"locality": LOCAL_ONLY},
            {"state": EngineState.DOWN},
            0,
            (NONE, Reason.LOCAL_UNAVAILABLE),
            id="2 down and pinned",
        ),
        pytest.param(
            {"has_cloud": False}, {"state": EngineState.DOWN}, 0, (NONE, Reason.LOCAL_UNAVAILABLE), id="2 no cloud"
        ),
        pytest.param({}, PRESSED, 0, (CLOUD, Reason.HOST_PRESSURE), id="3 memory is short"),
        pytest.param({"has_cloud": False}, PRESSED, 0, (LOCAL, Reason.WITHIN_BUDGET), id="3 nobody else"),
        pytest.param({"locality": LOCAL_ONLY}, PRESSED, 0, (LOCAL, Reason.PINNED_LOCAL), id="3 pinned"),
        pytest.param({}, PRESSED | {"load_wait_s": 0.1}, 0, (CLOUD, Reason.HOST_PRESSURE), id="3 no load adds to it"),
        pytest.param({}, {**COLD, "load_wait_s": 2.1}, 0, (CLOUD, Reason.LOCAL_UNAVAILABLE), id="4 loads too slowly"),
        pytest.param({}, {**COLD, "load_wait_s": 2.0}, 0, (LOCAL, Reason.WITHIN_BUDGET), id="4 loads in time"),
        pytest.param({"deadline_s": 1.0}, COLD, 0, (CLOUD, Reason.LOCAL_UNAVAILABLE), id="4 not by the deadline"),
        pytest.param(
            {"has_cloud": False}, {**COLD, "load_wait_s": 99.0}, 0, (LOCAL, Reason.WITHIN_BUDGET), id="4 nobody else"
        ),
        pytest.param(
            {"locality": LOCAL_ONLY}, {**COLD, "load_wait_s": 99.0}, 0, (LOCAL, Reason.PINNED_LOCAL), id="4 pinned"
        ),
        pytest.param({"locality": LOCAL_ONLY}, COLD, 10, (NONE, Reason.REJECTED_BUSY), id="5 all wait for the load"),
        pytest.param({}, {}, 10, (CLOUD, Reason.QUEUE_FULL), id="5 two slots and a queue of eight are full"),
        pytest.param({}, {}, 9, (LOCAL, Reason.WITHIN_BUDGET), id="5 one place left"),
        pytest.param({"queue": 0}, {}, 2, (CLOUD, Reason.QUEUE_FULL), id="5 no queue at all"),
        pytest.param({"queue": 0}, {}, 1, (LOCAL, Reason.WITHIN_BUDGET), id="5 a free slot needs no queue"),
        pytest.param({"locality": LOCAL_ONLY}, {}, 10, (NONE, Reason.REJECTED_BUSY), id="5 full and pinned"),
        pytest.param({"has_cloud": False}, {}, 10, (NONE, Reason.REJECTED_BUSY), id="5 full and no cloud"),
        pytest.param({"locality": LOCAL_ONLY}, {}, 9, (LOCAL, Reason.PINNED_LOCAL), id="6 pinned to the box"),
        pytest.param({}, {}, 0, (LOCAL, Reason.WITHIN_BUDGET), id="7 the box"),
    ],
)
def test_admission_decides_from_pins_and_load_alone(allowed, engine, in_flight, expected):
    """The first rule of the list that matches decides."""
    snapshot = None if engine is None else an_engine_snapshot(**engine)
    decision = admit(the_terms(**allowed), snapshot, in_flight=in_flight)
    assert (decision.target, decision.reason) == expected


@pytest.mark.parametrize(
    ("allowed", "engine", "request_", "prompt", "expected"),
    [
        # 100 tokens/s prefill, 10 tokens/s decode, context of 1000; elapsed 0.5 s; ttft_s 2.0
        pytest.param({}, {}, {"max_tokens": 901}, (100, 0), Reason.CONTEXT_OVERFLOW, id="1 one token too many"),
        pytest.param({}, {}, {"max_tokens": 900}, (100, 0), None, id="1 exactly full"),
        pytest.param({"has_cloud": False}, {}, {"max_tokens": 901}, (100, 0), None, id="1 nobody else: cut short"),
        pytest.param({}, {}, {}, (150, 0), None, id="2 exactly in time"),
        pytest.param({}, {}, {}, (151, 0), Reason.TTFT_PREDICTED, id="2 a token too late"),
        pytest.param({}, {}, {}, (900, 750), None, id="2 a cached prefix costs nothing"),
        pytest.param({}, {"queued_prompt_tokens": 100}, {}, (60, 0), Reason.TTFT_PREDICTED, id="2 others come first"),
        pytest.param({}, {"prefill_tps": None}, {}, (900, 0), None, id="2 nothing measured yet: stay"),
        pytest.param({"locality": LOCAL_ONLY}, {}, {}, (900, 0), None, id="2 pinned: stay"),
        pytest.param({"deadline_s": 2.4}, {}, {"max_tokens": 10}, (100, 0), Reason.DEADLINE_PREDICTED, id="3 too late"),
        pytest.param({"deadline_s": 2.5}, {}, {"max_tokens": 10}, (100, 0), None, id="3 exactly in time"),
        pytest.param(
            {"deadline_s": 9.0}, {}, {}, (100, 0), Reason.DEADLINE_PREDICTED, id="3 an answer of usual length"
        ),
        pytest.param({"deadline_s": 0.1}, {"decode_tps": None}, {}, (10, 0), None, id="3 nothing measured yet: stay"),
        pytest.param({"deadline_s": 0.1, "locality": LOCAL_ONLY}, {}, {}, (10, 0), None, id="3 pinned: stay"),
    ],
)
def test_a_prompt_of_known_length_stays_or_leaves(allowed, engine, request_, prompt, expected):
    """A request leaves before it waits; without a cloud or a measured rate it stays."""
    allowed = the_terms(**allowed)
    decision = review_admission(
        allowed,
        an_engine_snapshot(**engine),
        a_request(**request_),
        prompt_tokens=prompt[0],
        cached_tokens=prompt[1],
        elapsed_s=0.5,
    )
    stay = Reason.PINNED_LOCAL if allowed.locality is LOCAL_ONLY else Reason.WITHIN_BUDGET
    assert decision.reason is (expected or stay)
    assert decision.target is (CLOUD if expected else LOCAL)


def test_the_decision_carries_its_prediction_and_the_limit_it_was_held_against():
    """Every number a decision was made from is in it."""
    args = {"prompt_tokens": 100, "cached_tokens": 0, "elapsed_s": 0.5}
    late = review_admission(the_terms(ttft_s=1.0), an_engine_snapshot(), a_request(), **args)
    assert (late.predicted_ttft_s, late.threshold) == (1.5, 1.0)
    missed = review_admission(the_terms(deadline_s=2.0), an_engine_snapshot(), a_request(), **args)
    assert (missed.predicted_ttft_s, missed.threshold) == (1.5, 2.0)


# -- terms: a request tightens, never loosens ------------------------------------------------------------------------

_BOTH = {LOCAL, CLOUD}
_ALLOWS = {ANY: _BOTH, REDACT: _BOTH, SITE_ONLY: _BOTH, LOCAL_ONLY: {LOCAL}, CLOUD_ONLY: {CLOUD}}
_HELD = {Release.EAGER: 0, Release.GUARDED: 1, Release.STRICT: 2}

routes = st.builds(
    lambda sides, **fields: a_route(**sides, **fields),
    sides=st.sampled_from(
        [
            {"locality": "any"},
            {"locality": "local_only"},
            {"locality": "cloud_only"},
            {"cloud": []},
            {"local": ""},
            {"cloud": [], "locality": "local_only"},
            {"local": "", "locality": "cloud_only"},
        ]
    ),
    release=st.sampled_from(list(Release)),
    thresholds=st.fixed_dictionaries({"confidence": st.floats(0, 1)}),
)
asked_limits = st.builds(
    Limits,
    locality=st.sampled_from(list(Locality)),
    deadline_s=st.none() | st.floats(0.001, 1000),
    min_confidence=st.none() | st.floats(0, 1),
    max_cost_uusd=st.none() | st.integers(0, 10**9),
)


@given(route=routes, limits=asked_limits)
def test_a_request_only_tightens_its_route(route: RouteConfig, limits: Limits):
    """Whatever a request asks, no side, threshold or hold gets looser than the route's own."""
    request = a_request(limits={name: getattr(limits, name) for name in Limits.__dataclass_fields__})
    try:
        allowed = terms(route, request)
    except InvalidRequest:
        return
    assert _ALLOWS[allowed.locality] <= _ALLOWS[route.locality]
    assert _ALLOWS[allowed.locality] <= _ALLOWS[limits.locality]
    assert allowed.confidence >= max(route.thresholds.confidence, limits.min_confidence or 0)
    assert _HELD[allowed.release] >= _HELD[route.release]
    assert allowed.has_local == bool(route.local)
    assert allowed.has_cloud == bool(route.cloud)
    assert not allowed.may_escalate or (route.cloud and LOCAL_ONLY not in (route.locality, limits.locality))


@given(route=routes, limits=asked_limits, down=st.booleans(), in_flight=st.integers(0, 20))
def test_no_admission_sends_a_local_only_request_to_the_cloud(route, limits, down, in_flight):
    """A label holds whatever the load."""
    try:
        allowed = terms(route, a_request(limits={"locality": limits.locality, "deadline_s": limits.deadline_s}))
    except InvalidRequest:
        return
    engine = an_engine_snapshot(state=EngineState.DOWN if down else EngineState.READY)
    first = admit(allowed, engine, in_flight=in_flight)
    second = review_admission(
        allowed, engine, a_request(max_tokens=10_000), prompt_tokens=900, cached_tokens=0, elapsed_s=50.0
    )
    if allowed.locality is LOCAL_ONLY:
        assert CLOUD not in (first.target, second.target)


@pytest.mark.parametrize(
    ("route", "asked"),
    [
        ({"locality": "local_only"}, CLOUD_ONLY),
        ({"locality": "cloud_only"}, LOCAL_ONLY),
        ({"cloud": []}, CLOUD_ONLY),
        ({"local": ""}, LOCAL_ONLY),
    ],
)
def test_a_locality_the_route_cannot_give_is_refused_by_name(route, asked):
    """A label that cannot be honoured is an error that names the field, never ignored."""
    with pytest.raises(InvalidRequest) as caught:
        terms(a_route(**route), a_request(limits={"locality": asked}))
    assert caught.value.param == "edged.locality"
    assert "auto" in caught.value.message


def test_a_confidence_asked_for_is_judged_even_on_an_eager_route():
    """``min_confidence`` cannot be honoured without a hold, so it brings one."""
    route = a_route(release="eager")
    assert terms(route, a_request(limits={"min_confidence": 0.3})).release is Release.GUARDED
    assert terms(route, a_request()).release is Release.EAGER


def test_a_limit_is_named_only_beside_the_number_it_limits() -> None:
    """Without a measured rate nothing is predicted, so no threshold was applied and none is recorded."""
    unmeasured = an_engine_snapshot(prefill_tps=None)
    request, allowed = a_request(), terms(a_route(cloud=("cloud/big-model",)), a_request())
    decision = review_admission(allowed, unmeasured, request, prompt_tokens=9, cached_tokens=0, elapsed_s=0.1)
    assert decision.predicted_ttft_s is None
    assert decision.threshold is None


def test_a_cold_load_counts_for_the_deadline_alone():
    """Loading is no latency of the model: thresholds leave it out, the moment the client named does not."""
    args = {"prompt_tokens": 100, "cached_tokens": 0, "elapsed_s": 0.5, "load_s": 60.0}
    stays = review_admission(the_terms(), an_engine_snapshot(), a_request(), **args)
    assert (stays.target, stays.predicted_ttft_s) == (LOCAL, 1.5)
    missed = review_admission(the_terms(deadline_s=30.0), an_engine_snapshot(), a_request(max_tokens=1), **args)
    assert missed.reason is Reason.DEADLINE_PREDICTED
