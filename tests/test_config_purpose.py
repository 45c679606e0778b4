"""What a model is for, and which routes may point to it."""

import pytest

from edged import config
from edged.config_lines import find_problems
from edged.errors import ConfigError

MODEL = '[[model]]\nname = "m"\nfile = "/m.gguf"\n'
UPSTREAM = """
[[upstream]]
name = "cloud"
base_url = "https://provider.example/v1"
[[upstream.model]]
name = "big"
input_usd_per_mtok = 1
output_usd_per_mtok = 1
"""


def test_models_are_for_chat_unless_they_say_otherwise():
    """And a text to embed needs room for itself alone, whatever the slots."""
    chat = config.parse(MODEL).models[0]
    embed = config.parse(f'{MODEL}purpose = "embed"\n').models[0]
    assert (chat.purpose, chat.pooling) == ("chat", "auto")
    assert (chat.pool_tokens, embed.pool_tokens) == (3 * 4096, 4096)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ('purpose = "sing"', "model[0].purpose"),
        ('purpose = "embed"\npooling = "max"', "model[0].pooling"),
        ('pooling = "cls"', 'pooling = "cls" needs purpose = "embed", it is "chat"'),
        ('purpose = "rerank"\npooling = "last"', 'pooling = "last" needs purpose = "embed", it is "rerank"'),
    ],
)
def test_what_makes_no_sense_is_named(settings, problem):
    """The key, and what it may be."""
    with pytest.raises(ConfigError) as caught:
        config.parse(MODEL + settings)
    assert problem in caught.value.message


@pytest.mark.parametrize("purpose", ["embed", "rerank"])
def test_a_route_to_a_model_that_embeds_has_no_cloud(purpose):
    """Upstreams are asked for chat only, so such a route could never escalate; alone it is fine."""
    model = f'{MODEL}purpose = "{purpose}"\n'
    route = '[[route]]\nname = "auto"\nlocal = "m"\n'
    assert config.parse(model + UPSTREAM + route).routes[0].local == "m"
    text = model + UPSTREAM + route + 'cloud = ["cloud/big"]\n'
    with pytest.raises(ConfigError, match=f'route "auto": cloud must be empty.* purpose = "{purpose}"'):
        config.parse(text)
    (problem,) = find_problems(text)
    assert text.splitlines()[problem.line - 1].startswith("cloud =")
    assert "must be empty" in problem.message
