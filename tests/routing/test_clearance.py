"""How far a request may travel: the strictest label holds, and nothing is cleared by default."""

import pytest
from builders import a_request, a_route
from hypothesis import given
from hypothesis import strategies as st

from edged.core import Clearance, Locality, Request, Trust, strictest
from edged.errors import ClearanceRefused, InvalidRequest
from edged.routing.policy import terms

ORDER = (Locality.ANY, Locality.REDACT, Locality.SITE_ONLY, Locality.LOCAL_ONLY)
SIGHT = {
    Locality.ANY: {"site": "all", "cloud": "all"},
    Locality.REDACT: {"site": "all", "cloud": "redacted"},
    Locality.SITE_ONLY: {"site": "all", "cloud": "none"},
    Locality.LOCAL_ONLY: {"site": "none", "cloud": "none"},
}


@pytest.mark.parametrize("label", ORDER)
@pytest.mark.parametrize("trust", list(Trust))
def test_who_may_see_a_request_is_the_table_of_the_docs(label, trust):
    """All of it, all but personal data, or nothing."""
    sight = SIGHT[label][trust.value]
    clearance = Clearance(label)
    assert clearance.admits(trust) is (sight != "none")
    assert clearance.needs_redaction(trust) is (sight == "redacted")
    for redacted, may_go in ((False, sight == "all"), (True, sight != "none")):
        if may_go:
            Clearance(label, redacted=redacted).check(trust, "up")
        else:
            with pytest.raises(ClearanceRefused):
                Clearance(label, redacted=redacted).check(trust, "up")


def test_nothing_is_cleared_by_default():
    """A request that no policy has seen goes nowhere."""
    fields = Request.__dataclass_fields__
    assert fields["clearance"].default_factory() == Clearance(Locality.LOCAL_ONLY)


@given(labels=st.lists(st.sampled_from(list(Locality))))
def test_the_strictest_label_holds(labels):
    """Whoever says it; ``cloud_only`` says nothing about sight."""
    ranks = [ORDER.index(label) for label in labels if label in ORDER]
    assert strictest(*labels) is ORDER[max(ranks, default=0)]


@given(
    route=st.sampled_from(list(Locality)),
    key=st.sampled_from(list(Locality)),
    asked=st.sampled_from(list(Locality)),
    trusts=st.lists(st.sampled_from(list(Trust)), min_size=1, max_size=3),
)
def test_the_policy_names_only_upstreams_that_may_see_the_request(route, key, asked, trusts):
    """One place decides who may be asked, in the route's order, and says so before anybody is."""
    names = {f"up{i}/m": trust for i, trust in enumerate(trusts)}
    try:
        allowed = terms(
            a_route(cloud=list(names), locality=route),
            a_request(limits={"locality": asked}),
            key=key,
            trust_of=names.__getitem__,
        )
    except InvalidRequest as exc:
        assert exc.param == "edged.locality"  # noqa: PT017 - only some combinations are refused
        assert Locality.CLOUD_ONLY in (route, key, asked)
        return
    label = strictest(route, key, asked)
    assert allowed.clearance == Clearance(label)
    assert allowed.upstreams == tuple(name for name, trust in names.items() if SIGHT[label][trust.value] != "none")
    assert allowed.upstreams or not allowed.may_escalate
    assert allowed.is_kept_here is (not allowed.upstreams)
