"""Whatever calls and probes say, in any order: the health of the upstreams stays honest and nobody is given up."""

import asyncio
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from edged.config import UpstreamConfig
from edged.dispatch.upstreams import Upstreams, UpstreamState
from edged.errors import (
    Unsupported,
    UpstreamBusy,
    UpstreamDenied,
    UpstreamOffline,
    UpstreamProtocolError,
    UpstreamRejected,
    UpstreamUnavailable,
)

NAMES = ["a/m", "a/n", "b/m"]
LONGEST_S = 900.0


def failed(kind, **fields):
    error = kind("scripted", upstream="a")
    for name, value in fields.items():
        setattr(error, name, value)
    return error


ENDINGS = {
    "good": None,
    "500": failed(UpstreamUnavailable, answered=500),
    "html": failed(UpstreamProtocolError),
    "429": failed(UpstreamBusy, answered=429),
    "400": failed(UpstreamRejected, answered=400),
    "401": failed(UpstreamDenied, answered=401),
    "403": failed(UpstreamDenied, answered=403),
    "unreached": failed(UpstreamUnavailable, reached=False),
    "no call": Unsupported("scripted"),
}


class Network:
    """Stands for the client: upstreams with a model or two, cooldowns, and which hosts can be reached."""

    def __init__(self):
        self.now_s = 1000.0
        self.reachable = {"a", "b"}
        self.cooling_until_s = Counter()
        self.upstreams = [
            UpstreamConfig.model_validate(
                {
                    "name": name,
                    "base_url": "http://127.0.0.1:9/v1",
                    "model": [{"name": m, "input_usd_per_mtok": 1, "output_usd_per_mtok": 1} for m in models],
                }
            )
            for name, models in (("a", "mn"), ("b", "m"))
        ]

    def cooldown_s(self, upstream, model):
        return max(0.0, self.cooling_until_s[upstream, model] - self.now_s)

    async def reaches(self, upstream):
        return upstream in self.reachable


events = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from([NAMES, NAMES[:1], NAMES[::-1]])),
        st.tuples(st.just("end"), st.sampled_from(sorted(ENDINGS))),
        st.tuples(st.just("drop"), st.none()),
        st.tuples(st.just("broke off"), st.sampled_from(NAMES)),
        st.tuples(st.just("network"), st.sampled_from([set(), {"a"}, {"b"}, {"a", "b"}])),
        st.tuples(st.just("probe"), st.none()),
        st.tuples(st.just("cool"), st.sampled_from(NAMES)),
        st.tuples(st.just("wait"), st.floats(0.0, 120.0)),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None)
@given(events=events)
def test_no_sequence_of_events_confuses_the_health(events):
    """Who is ready is refused by nothing (or is the one gentle exception), offline holds exactly while no host answers
    the probes, every permit comes back, and when the trouble is over everybody is asked again."""

    async def main():
        network = Network()
        upstreams = Upstreams(network, clock=lambda: network.now_s)
        upstreams._tended = True
        running = []
        for what, detail in events:
            await _happen(upstreams, network, running, what, detail)
            for name in NAMES:
                refused = upstreams.refusal(name)
                if upstreams.state(name) is UpstreamState.CLOSED:
                    assert refused is None
                if refused is not None:
                    assert 0 < refused.retry_after_s <= LONGEST_S
                down = isinstance(refused, UpstreamOffline)
                assert down == (upstreams.state(name) is UpstreamState.OFFLINE)
        for call in running:
            upstreams.drop(call)
        for target in upstreams._targets.values():
            assert (target.breaker._probing, target.access._probing, target.key._probing) == (0, 0, 0)
        network.reachable = {"a", "b"}
        await upstreams._probe()
        assert not upstreams.offline
        network.now_s += LONGEST_S
        assert upstreams.ready(NAMES) == NAMES
        assert upstreams.why_not(NAMES) is None

    asyncio.run(main())


def _ready(upstreams, names):
    """Those that nothing refuses; else one at most, which can be reached all the same."""
    ready, welcome = upstreams.ready(names), [name for name in names if upstreams.refusal(name) is None]
    assert ready == welcome if welcome else len(ready) <= 1
    assert not any(upstreams.uplink.is_down(name.partition("/")[0]) for name in ready)
    return ready


async def _happen(upstreams, network, running, what, detail):
    if what == "ask":
        running += [upstreams.begin(name) for name in _ready(upstreams, detail)[:1]]
    elif what == "end" and running:
        upstreams.end(running.pop(0), ENDINGS[detail])
    elif what == "drop" and running:
        upstreams.drop(running.pop())
    elif what == "broke off":
        upstreams.broke_off(detail)
    elif what == "network":
        network.reachable = detail
    elif what == "probe":
        for _ in range(2):
            await upstreams._probe()
        suspects = set(upstreams.uplink.suspects)
        assert not suspects & network.reachable
    elif what == "cool":
        network.cooling_until_s[tuple(detail.split("/"))] = network.now_s + 30.0
    elif what == "wait":
        network.now_s += detail
