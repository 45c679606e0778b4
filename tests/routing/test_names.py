"""From the name a client gives to the route that answers it."""

import pytest
from builders import a_config, a_route

from edged.config import UpstreamConfig
from edged.core import Locality
from edged.errors import ModelNotFound
from edged.routing.names import public_names, resolve

UPSTREAM = UpstreamConfig.model_validate(
    {
        "name": "cloud",
        "base_url": "http://127.0.0.1:9/v1",
        "model": [{"name": "org/big", "input_usd_per_mtok": 1, "output_usd_per_mtok": 1}],
    }
)
CONFIG = a_config(routes=[a_route(cloud=["cloud/org/big"])], upstreams=[UPSTREAM], models=["small", "tiny"])


def test_a_route_is_found_by_its_name():
    """A route is itself."""
    assert resolve(CONFIG, "auto") is CONFIG.routes[0]


def test_a_local_models_name_is_pinned_to_the_box():
    """Asking for a local model by name asks for no cloud."""
    route = resolve(CONFIG, "tiny")
    assert (route.local, route.cloud, route.locality) == ("tiny", (), Locality.LOCAL_ONLY)


def test_an_upstreams_model_is_pinned_to_it():
    """UPSTREAM/model, where the model's own name may hold slashes."""
    route = resolve(CONFIG, "cloud/org/big")
    assert (route.local, route.cloud, route.locality) == ("", ("cloud/org/big",), Locality.CLOUD_ONLY)
    assert route.thresholds == a_route().thresholds


def test_every_public_name_resolves_and_nothing_else_does():
    """The list that clients see is the list that works."""
    assert public_names(CONFIG) == ["auto", "small", "tiny", "cloud/org/big"]
    for name in public_names(CONFIG):
        assert resolve(CONFIG, name).name == name


@pytest.mark.parametrize(
    "name", ["", "AUTO", "auto ", "cloud", "cloud/", "/org/big", "org/big", "../auto", "small/../tiny", "x" * 100_000]
)
def test_any_other_name_is_a_404_that_lists_what_there_is(name):
    """A name is a key in a fixed table, and the error stays short."""
    with pytest.raises(ModelNotFound) as caught:
        resolve(CONFIG, name)
    assert (caught.value.status, caught.value.param) == (404, "model")
    assert "cloud/org/big" in caught.value.message
    assert len(caught.value.message) < 400


def test_a_key_reaches_only_the_names_it_is_for():
    """What it is not for does not exist for it, known or not; the answer lists what does."""
    assert resolve(CONFIG, "auto", only=("auto",)).name == "auto"
    for other in ("small", "nothing"):
        with pytest.raises(ModelNotFound, match="it is for: auto"):
            resolve(CONFIG, other, only=("auto",))
