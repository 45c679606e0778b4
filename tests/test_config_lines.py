"""A wrong config is described completely, each problem with the line to edit."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edged import config
from edged.config_lines import Problem, find_problems
from edged.errors import ConfigError

EXAMPLE = Path(__file__).parents[1].joinpath("systemd", "edged.toml").read_text(encoding="utf-8")
BAD = """\
[server]
listen = "0.0.0.0:8080"
slots = 4
allowed_hosts = ["a", 3]

[[model]]
name = "a b"
catalogue = "x"
file = "/x"
thread = 4
threads = "two"

[[upstream]]
name = "cloud"
base_url = "ftp://x"
api_key = "sk-canary"
  [[upstream.model]]
  name = "big"
  input_usd_per_mtok = -1

[[route]]
name = "auto"
local = "ab"
cloud = ["cloud/bg", "cloud/big"]
thresholds = { confidence = 1.5, queue = 1.5 }

[[route]]
name = "auto"
[route.budgt]
x = 1
[sever]
"""


def test_every_problem_is_found_at_once_with_its_line_and_key() -> None:
    """Keys, values, a section's own rules and names across sections are all reported, in line order."""
    found = find_problems(BAD)
    assert [(problem.line, problem.key) for problem in found] == [
        (2, "server.listen"),
        (3, "server.slots"),
        (4, "server.allowed_hosts[1]"),
        (6, "model[0]"),
        (7, "model[0].name"),
        (10, "model[0].thread"),
        (11, "model[0].threads"),
        (15, "upstream[0].base_url"),
        (16, "upstream[0].api_key"),
        (17, "upstream[0].model[0].output_usd_per_mtok"),
        (19, "upstream[0].model[0].input_usd_per_mtok"),
        (23, "route[0].local"),
        (24, "route[0].cloud"),
        (25, "route[0].thresholds.confidence"),
        (25, "route[0].thresholds.queue"),
        (27, "route[1]"),
        (28, "route[1].name"),
        (29, "route[1].budgt"),
        (31, "sever"),
    ]


def test_no_secret_is_repeated() -> None:
    """A key written into the file by mistake does not show in what is said about it."""
    assert "canary" not in repr(find_problems(BAD))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[sever]", 'unknown key; did you mean "server"?'),
        ("[server]\nlisen = 1", 'unknown key; did you mean "listen"?'),
        ("[server]\nhold_tokens = 1", "unknown key; it belongs in [[route]]"),
        ("[[route]]\nconfidence = 1", "unknown key; it belongs in [route.thresholds]"),
        ("[server]\nzzz = 1", "unknown key"),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one(text: str, message: str) -> None:
    """A typing error is named, a key in the wrong section is sent home."""
    assert message in [problem.message for problem in find_problems(text)]


@pytest.mark.parametrize(
    ("text", "line"),
    [("[server]\nlisten = \n", 2), ("a = 'x'\nb = [1,\n", 3), ("x = 1\nx = 2\n\n", 2), ("[[model]\n", 1)],
)
def test_a_syntax_error_has_its_line(text: str, line: int) -> None:
    """What is not TOML is one problem, at its line."""
    (problem,) = find_problems(text)
    assert problem.line == line
    assert problem.message.startswith("not valid TOML: ")


def test_an_empty_file_says_what_is_needed() -> None:
    """A problem of no line in particular has line 0."""
    assert find_problems("") == (Problem(0, "", "needs at least one [[model]] or [[upstream]]"),)


@given(st.lists(st.sampled_from(EXAMPLE.replace("\n#", "\n").splitlines()), max_size=14))
def test_it_agrees_with_the_daemon(lines: list[str]) -> None:
    """No problem is found exactly when the daemon would load the text, whatever lines it is made of."""
    text = "\n".join(lines)
    try:
        config.parse(text)
    except ConfigError:
        assert find_problems(text)
    else:
        assert find_problems(text) == ()


def test_plural_table_names_are_found_too() -> None:
    """[[models]] is accepted by the daemon, so its lines are known."""
    (problem,) = find_problems('[[models]]\nname = "a"\nfile = "/x"\nslots = 0\n')
    assert (problem.line, problem.key) == (4, "models[0].slots")
