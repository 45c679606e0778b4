"""Images go where somebody can see them, whatever the load; where nobody may, the request is refused by name."""

from dataclasses import replace

import pytest
from builders import a_request, a_route, an_engine_snapshot
from hypothesis import given
from hypothesis import strategies as st

from edged.core import Chat, EngineState, Image, Locality, Message, Reason, Role, Target, Trust
from edged.errors import InvalidRequest, Unsupported
from edged.routing.policy import admit, terms

PICTURE = Chat((Message(Role.USER, "\ufffc", images=(Image(url="https://x.example/a.png"),)),))
LABELS = st.sampled_from([locality.value for locality in Locality])


def a_picture(**fields):
    return replace(a_request(**fields), input=PICTURE)


@given(
    locality=LABELS,
    asked=LABELS,
    trust=st.sampled_from(list(Trust)),
    local=st.sampled_from(["small", ""]),
    cloud=st.lists(st.just("cloud/scripted-model"), max_size=1),
    load=st.tuples(st.sampled_from(list(EngineState)), st.booleans(), st.integers(0, 50)),
)
def test_no_image_is_ever_sent_to_a_local_model(locality, asked, trust, local, cloud, load):
    """Either the request is refused, or it starts in the cloud; a label holds for pictures as for words."""
    state, pressure, in_flight = load
    engine = an_engine_snapshot(state=state, host_pressure=pressure)
    try:
        route = a_route(local=local, cloud=cloud, locality=locality)
        allowed = terms(route, a_picture(limits={"locality": asked}), trust_of=lambda _: trust)
    except (InvalidRequest, ValueError):
        return
    decision = admit(allowed, engine, in_flight=in_flight)
    assert decision.target is Target.CLOUD
    assert decision.reason in {Reason.CAPABILITY, Reason.PINNED_CLOUD}
    assert allowed.upstreams
    assert all(allowed.clearance.admits(trust) for _ in allowed.upstreams)


@pytest.mark.parametrize(
    ("route", "asked", "word"),
    [({"cloud": []}, "any", "none"), ({}, "local_only", "local_only"), ({}, "site_only", "site_only")],
)
def test_a_picture_that_must_stay_is_refused_by_the_field_that_holds_it(route, asked, word):
    """The message names the route and why."""
    with pytest.raises(Unsupported) as caught:
        terms(a_route(**route), a_picture(limits={"locality": asked}))
    assert caught.value.param == "messages"
    assert "'auto'" in caught.value.message
    assert word in caught.value.message
