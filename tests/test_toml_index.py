"""Every key of a TOML text is found on its line, however it is written."""

import tomllib

import pytest

from edged.toml_index import Location, TomlIndex

TEXT = '''\
# [not.a.table]
top = """
[not.a.table]
x = "y" \\""" # no comment
""" # comment

"quoted \\u0041.key" = 'it''s'
[a]
b.c = { d = 1, 'e.f' = [1,
  { g = 2 } ] } # ]
dates = [ 1979-05-27T07:32:00Z, # [x]
  "]", \'\'\'
  ]\'\'\',

  3 ]
[[list]]
x = 1
[list.inner]
y = 2
[[list.deep]]
z = 3
[[list.deep]]
z = 4
[[list]]
  [[list.deep]]
z = 5
empty = ""
'''.replace("'it''s'", "'its'")


@pytest.mark.parametrize(
    ("location", "line"),
    [
        (("top",), 2),
        (("quoted A.key",), 7),
        (("a",), 8),
        (("a", "b", "c", "d"), 9),
        (("a", "b", "c", "e.f", 1, "g"), 10),
        (("a", "dates"), 11),
        (("a", "dates", 1), 12),
        (("a", "dates", 3), 15),
        (("list", 0), 16),
        (("list", 0, "inner", "y"), 19),
        (("list", 0, "deep", 1, "z"), 23),
        (("list", 1), 24),
        (("list", 1, "deep", 0, "z"), 26),
        (("list", 1, "deep", 0, "missing"), 25),
        (("list", 1, "deep", 0, "empty"), 27),
        (("nowhere",), 0),
        (("x",), 0),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_key_is_on_its_line(location: Location, line: int, newline: str) -> None:
    """Tables, arrays of tables, dotted and quoted keys, inline tables, multi-line strings and arrays."""
    tomllib.loads(TEXT)
    assert TomlIndex(TEXT.replace("\n", newline)).line_of(location) == line
