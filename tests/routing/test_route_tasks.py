"""``[[route.task]]``: what a task does not say is as its route says, and what it says must exist."""

import pytest
from builders import a_route

from edged.config import parse
from edged.errors import ConfigError

HEAD = """
[[model]]
name = "small"
file = "/nowhere.gguf"

[[upstream]]
name = "cloud"
base_url = "http://127.0.0.1:9/v1"
[[upstream.model]]
name = "big"
input_usd_per_mtok = 1
output_usd_per_mtok = 1

[[route]]
name = "auto"
local = "small"
cloud = ["cloud/big"]
"""


def test_a_task_changes_only_what_it_says():
    """Models, upstreams and single thresholds; any other task is the route itself."""
    tasks = [{"name": "code", "cloud": [], "thresholds": {"ttft_s": 9.0}}, {"name": "house", "local": ""}]
    route = a_route(task=tasks, thresholds={"confidence": 0.7, "itl_s": 3.0})
    code = route.serving("code")
    assert (code.local, code.cloud, code.name) == ("small", (), "auto")
    assert (code.thresholds.ttft_s, code.thresholds.itl_s, code.thresholds.confidence) == (9.0, 3.0, 0.7)
    assert route.serving("house").local == ""
    assert route.serving("house").cloud == route.cloud
    assert route.serving("chat") is route


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[route.task]]\nname = "code"\nlocal = "large"', 'task "code": local = "large" is not a [[model]]'),
        ('[[route.task]]\nname = "code"\ncloud = ["cloud/none"]', 'task "code": cloud = "cloud/none" is not UPSTREAM'),
        ('[[route.task]]\nname = "code"\nlocal = ""\ncloud = []', 'task "code": needs a local model, a cloud list'),
        ('locality = "local_only"\n[[route.task]]\nname = "code"\nlocal = ""', 'locality "local_only" needs a local'),
        ('locality = "cloud_only"\n[[route.task]]\nname = "code"\ncloud = []', 'locality "cloud_only" needs a cloud'),
        ('[[route.task]]\nname = "a"\n[[route.task]]\nname = "a"', 'task: the name "a" is used twice'),
        ('[[route.task]]\nname = "a"\nthresholds = { confidence = 2 }', "less than or equal to 1"),
        ('[[route.task]]\nname = "a"\nspeed = 2', "unknown key"),
    ],
)
def test_a_task_that_cannot_be_served_is_refused_by_name(text, says):
    """At the start, with route, task and limit."""
    with pytest.raises(ConfigError) as caught:
        parse(HEAD + text)
    assert says in caught.value.message


def test_a_route_without_tasks_is_as_before():
    """The default."""
    route = parse(HEAD).routes[0]
    assert (route.tasks, route.keep_author) == ((), True)
