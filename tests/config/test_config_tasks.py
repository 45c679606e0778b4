"""Task files are read whole or refused with file, key and limit."""

import json
from pathlib import Path

import pytest

from edged import config
from edged.config import tasks as task_files
from edged.errors import ConfigError

CONFIG = """
[[model]]
name = "m"
file = "m.gguf"
[[model]]
name = "vectors"
file = "v.gguf"
purpose = "embed"
[[upstream]]
name = "up"
base_url = "https://up.example/v1"
[[upstream.model]]
name = "big"
input_usd_per_mtok = 1
output_usd_per_mtok = 1
[[route]]
name = "auto"
local = "m"
cloud = ["up/big"]
[[route]]
name = "far"
cloud = ["up/big"]
[[route]]
name = "near"
local = "vectors"
"""
INTENT = """
name = "intent"
route = "auto"
instructions = "Which intent does this sentence have?"
input_word = "Sentence"
answer_word = "Intent"
[[option]]
name = "PlayMusic"
description = "wants to hear something"
[[option]]
name = "GetWeather"
[[example]]
input = "play some jazz"
answer = "PlayMusic"
[target]
max_error = 0.05
[learn]
enabled = true
"""


def loaded(directory: Path, *texts: str | bytes) -> tuple[config.TaskFile, ...]:
    """The tasks of a directory with these files."""
    for number, text in enumerate(texts):
        (directory / f"{number}.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    return config.load_tasks(directory, config.parse(CONFIG))


def refused(directory: Path, *texts: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(directory, *texts)
    return caught.value.message.replace(str(directory), ".")


def test_a_task_file_says_what_is_put_to_the_model(tmp_path: Path) -> None:
    """Options, their notes, examples and words become one question."""
    (task,) = loaded(tmp_path, INTENT)
    question = task.question
    assert question.options == ("PlayMusic", "GetWeather")
    assert question.notes == ("wants to hear something", None)
    assert [(example.state, example.answer) for example in question.examples] == [("play some jazz", "PlayMusic")]
    assert (question.input_word, question.answer_word) == ("Sentence", "Intent")
    assert task.target.delta == 0.1
    assert (task.learn.audit_share, task.learn.max_labels) == (0.05, 5_000)


def test_without_a_learn_section_nothing_is_learnt(tmp_path: Path) -> None:
    """What is stored and what is spent on audits is opted into."""
    (task,) = loaded(tmp_path, INTENT.replace("enabled = true", ""))
    assert not task.learn.enabled


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Which intent", "Guess which intent"),
        ('answer_word = "Intent"', 'answer_word = "Label"'),
        ("wants to hear something", "sings"),
        ('name = "GetWeather"', 'name = "Weather"'),
        ("play some jazz", "play some rock"),
    ],
)
def test_what_changes_the_prompt_changes_the_definition(tmp_path: Path, old: str, new: str) -> None:
    """Artefacts are filed under the definition they were made for."""
    (task,) = loaded(tmp_path, INTENT)
    (other,) = loaded(tmp_path, INTENT.replace(old, new))
    assert task.key != other.key
    assert other.key.startswith("intent@")


def test_what_does_not_change_the_prompt_keeps_the_definition(tmp_path: Path) -> None:
    """A tighter target or another audit share makes nothing stale."""
    (task,) = loaded(tmp_path, INTENT)
    (other,) = loaded(tmp_path, INTENT.replace("0.05", "0.02") + "audit_share = 0.5\n")
    assert task.key == other.key


def test_an_enum_of_the_options_is_the_tasks_schema_in_any_spelling(tmp_path: Path) -> None:
    """Order, type and titles do not count; another value or another shape does."""
    (task,) = loaded(tmp_path, INTENT)
    spelled = {"title": "T", "type": "string", "enum": ["GetWeather", "PlayMusic"]}
    assert config.schema_sha256(spelled) in task.schema_sha256s
    assert config.schema_sha256({"enum": ["GetWeather", "PlayMusic", "Other"]}) not in task.schema_sha256s
    assert config.schema_sha256({"enum": ["GetWeather", "PlayMusic"], "type": "array"}) not in task.schema_sha256s
    (named,) = loaded(tmp_path, "match_schema = false\n" + INTENT)
    assert named.schema_sha256s == ()


def test_a_schema_lies_beside_its_task(tmp_path: Path) -> None:
    """It counts for the definition and for the match, however it is spelled."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    (tmp_path / "weather.json").write_text(json.dumps(schema))
    text = 'name = "weather"\nschema = "weather.json"\n[target]\ncloud_share = 0.2\n'
    (task,) = loaded(tmp_path, text)
    assert json.loads(task.answer_schema or "") == schema
    assert task.schema_sha256s == (config.schema_sha256({**schema, "description": "where"}),)
    (tmp_path / "weather.json").write_text('{"type": "object"}')
    assert loaded(tmp_path, text)[0].key != task.key


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (INTENT.replace('route = "auto"', 'route = "nope"'), '0.toml: route: "nope" does not exist (known: auto, far'),
        (INTENT.replace('route = "auto"', 'route = "far"'), 'route: "far" has no local model'),
        (INTENT.replace('route = "auto"', 'route = "near"'), 'purpose = "embed", a task needs one for chat'),
        (INTENT.replace('answer = "PlayMusic"', 'answer = "Sing"'), 'example[0].answer: "Sing" is none of the options'),
        (INTENT.replace('name = "GetWeather"', 'name = "PlayMusic"'), 'option: the name "PlayMusic" is used twice'),
        (INTENT.replace("max_error = 0.05", ""), "target: needs exactly one of max_error and cloud_share"),
        (INTENT.replace("max_error = 0.05", "max_error = 1.5"), "target.max_error: Input should be less than 1"),
        (INTENT + "audit_share = 2\n", "learn.audit_share: Input should be less than or equal to 1"),
        (INTENT + "max_labels = 1000000\n", "learn.max_labels: Input should be less than or equal to 50000"),
        (INTENT.replace("instructions", "instructoins"), "instructoins: unknown key"),
        (INTENT.replace('name = "intent"', 'name = "../../etc"'), "name: String should match pattern"),
        (INTENT.replace('input_word = "Sentence"', 'input_word = "a\\nb"'), "input_word: String should match pattern"),
        (INTENT.replace('name = "PlayMusic"', 'name = " PlayMusic"'), "option[0].name: must be one line"),
        (INTENT.replace("[[option]]", "[[nothing]]", 1), "nothing: unknown key"),
        ('schema = "x.json"\n' + INTENT, "has options and a schema"),
        ('name = "t"\n[target]\nmax_error = 0.1\n[learn]\nenabled = true\n', "learn.enabled: only a task with options"),
        ('name = "t"\n[[option]]\nname = "a"\n[target]\nmax_error = 0.1\n', "needs 2 to 255 options, there is 1"),
        ('name = "t"\nschema = "../x.json"\n[target]\nmax_error = 0.1\n', 'schema: "../x.json" is outside the'),
        ('name = "t"\nschema = "/etc/passwd"\n[target]\nmax_error = 0.1\n', 'schema: "/etc/passwd" is outside the'),
        ('name = "t"\nschema = "gone.json"\n[target]\nmax_error = 0.1\n', "schema: gone.json is not a file"),
        ("name = ", "0.toml: not valid TOML"),
        ("a = " + "[" * 5_000 + "]" * 5_000, "not valid TOML"),
        (b'name = "\xff"', "0.toml is not UTF-8 text"),
        ("#" * (task_files.MAX_TASK_BYTES + 1), "0.toml is over the limit of 1048576 bytes"),
    ],
)
def test_a_wrong_file_is_refused_with_key_and_limit(tmp_path: Path, text: str | bytes, told: str) -> None:
    """The message says which file, which key, and what would be right."""
    assert told in refused(tmp_path, text)


@pytest.mark.parametrize("content", ["[1]", "{", "[" * 100_000, " " * (task_files.MAX_SCHEMA_BYTES + 1)])
def test_a_schema_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    """JSON of an object, within the limit."""
    (tmp_path / "x.json").write_text(content)
    assert "schema: x.json" in refused(tmp_path, 'name = "t"\nschema = "x.json"\n[target]\nmax_error = 0.1\n')


def test_a_link_leads_no_schema_out_of_the_directory(tmp_path: Path) -> None:
    """Where a link points counts, not what it is called."""
    (tmp_path / "secret.json").write_text("{}")
    directory = tmp_path / "tasks"
    directory.mkdir()
    (directory / "x.json").symlink_to(tmp_path / "secret.json")
    assert "outside the directory" in refused(directory, 'name = "t"\nschema = "x.json"\n[target]\nmax_error = 0.1\n')


def test_two_files_never_share_a_name(tmp_path: Path) -> None:
    """The message names both files."""
    assert './1.toml: name: "intent" is the name of 0.toml as well' in refused(tmp_path, INTENT, INTENT)


def test_every_problem_of_every_file_is_named(tmp_path: Path) -> None:
    """One start shows all there is to mend; the files that are right are read all the same."""
    directory = tmp_path
    texts = (INTENT, INTENT.replace('"auto"', '"nope"').replace('"intent"', '"b"'), "name = 1")
    for number, text in enumerate(texts):
        (directory / f"{number}.toml").write_text(text)
    tasks, problems = config.read_tasks(directory, config.parse(CONFIG))
    assert [task.name for task in tasks] == ["intent"]
    assert {problem.path.name for problem in problems} == {"1.toml", "2.toml"}


def test_only_the_default_directory_may_be_missing(tmp_path: Path) -> None:
    """Without task files there are no tasks; a directory that was asked for must be there."""
    assert config.load_tasks(tmp_path / "gone", config.parse(CONFIG)) == ()
    asked = config.parse(CONFIG + '\n[tasks]\ndirectory = "gone"\n')
    assert config.tasks_directory(asked, tmp_path / "edged.toml") == tmp_path / "gone"
    with pytest.raises(ConfigError, match="does not exist"):
        config.load_tasks(tmp_path / "gone", asked)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A directory with the right suffix is named, hidden files are left alone."""
    (tmp_path / "odd.toml").mkdir()
    (tmp_path / ".swp.toml").write_text("?")
    assert "odd.toml is not a file" in refused(tmp_path)


def test_tasks_alike_on_one_route_are_told_apart_by_name_alone(tmp_path: Path) -> None:
    """The same options for two questions: the schema says nothing."""
    tasks = loaded(tmp_path, INTENT, INTENT.replace('"intent"', '"mood"'))
    assert task_files.ambiguous(tasks) == {"intent": ("mood",), "mood": ("intent",)}
