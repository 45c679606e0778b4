"""What each provider's way of counting comes to, from its bytes to micro-dollars: each token counts once (F16, F17)."""

import json
from datetime import date

import pytest
from upstream_builders import a_request

from edged.config import UpstreamConfig
from edged.core import Usage
from edged.upstream import anthropic, openai, pricing
from edged.upstream.codec import Call
from edged.upstream.pricing import PriceTable, stale_prices

PRICES = {"name": "m", "input_usd_per_mtok": 2, "output_usd_per_mtok": 10, "cached_input_usd_per_mtok": 0.2}


def an_upstream(kind="openai", **more):
    document = {"name": "cloud", "kind": kind, "base_url": "https://p.example/v1", "model": [{**PRICES, **more}]}
    return UpstreamConfig.model_validate(document)


OPENAI = {
    "openai": {
        "prompt_tokens": 1000,
        "completion_tokens": 300,
        "total_tokens": 1300,
        "prompt_tokens_details": {"cached_tokens": 900, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 200, "accepted_prediction_tokens": 0},
    },
    "llama-server": {"prompt_tokens": 1000, "completion_tokens": 300, "total_tokens": 1300},
    "vllm": {"prompt_tokens": 1000, "completion_tokens": 300, "total_tokens": 1300, "prompt_tokens_details": None},
    "deepseek": {
        "prompt_tokens": 1000,
        "completion_tokens": 300,
        "prompt_cache_hit_tokens": 900,
        "prompt_cache_miss_tokens": 100,
    },
    "reasoning counted beside": {
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "total_tokens": 1300,
        "completion_tokens_details": {"reasoning_tokens": 200},
    },
    "reasoning only in the total": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1300},
    "openrouter": {
        "prompt_tokens": 1000,
        "completion_tokens": 300,
        "total_tokens": 1300,
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 800},
        "cost": 0.0031,
        "is_byok": False,
    },
    "openrouter, own key": {
        "prompt_tokens": 1000,
        "completion_tokens": 300,
        "cost": 0.0001,
        "is_byok": True,
        "cost_details": {"upstream_inference_cost": 0.005},
    },
}


@pytest.mark.parametrize(
    ("shape", "computed_uusd", "provider_uusd"),
    [
        ("openai", 100 * 2 + 180 + 300 * 10, None),
        ("llama-server", 1000 * 2 + 300 * 10, None),
        ("vllm", 1000 * 2 + 300 * 10, None),
        ("deepseek", 100 * 2 + 180 + 300 * 10, None),
        ("reasoning counted beside", 1000 * 2 + 300 * 10, None),
        ("reasoning only in the total", 1000 * 2 + 300 * 10, None),
        ("openrouter", 200 * 2 + 2000 + 300 * 10, 3_100),
        ("openrouter, own key", 1000 * 2 + 300 * 10, 5_100),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_the_golden_table_of_openai_shapes(shape, computed_uusd, provider_uusd, streamed):
    """Two dollars a million in, ten out, a tenth for cached input; both figures are kept."""
    request = a_request()
    decoder = openai.Decoder(request, upstream="cloud", call=Call("/chat/completions", {"model": "m"}))
    choice = {"index": 0, "finish_reason": "stop"}
    if streamed:
        decoder.event(json.dumps({"choices": [{**choice, "delta": {"content": "yes"}}]}))
        decoder.event(json.dumps({"choices": [], "usage": OPENAI[shape]}))
        decoder.event("[DONE]")
    else:
        message = {"role": "assistant", "content": "yes"}
        decoder.body(json.dumps({"choices": [{**choice, "message": message}], "usage": OPENAI[shape]}).encode())
    last = decoder.close()[-1]
    assert PriceTable([an_upstream()]).cost_uusd("cloud", "m", last.usage) == computed_uusd
    assert last.cost_uusd == provider_uusd
    assert not last.usage.estimated


@pytest.mark.parametrize(
    ("counts", "priced", "cost_uusd"),
    [
        ({"input_tokens": 1000}, {}, 2000 + 3000),
        ({"input_tokens": 100, "cache_read_input_tokens": 900}, {}, 200 + 180 + 3000),
        ({"input_tokens": 100, "cache_creation_input_tokens": 900}, {}, 200 + 2250 + 3000),
        (
            {"input_tokens": 100, "cache_creation_input_tokens": 900},
            {"cache_write_usd_per_mtok": 4},
            200 + 3600 + 3000,
        ),
        (
            {"input_tokens": 100, "cache_creation_input_tokens": 300, "cache_read_input_tokens": 600},
            {},
            200 + 750 + 120 + 3000,
        ),
    ],
)
def test_the_golden_table_of_anthropic_shapes(counts, priced, cost_uusd):
    """Input, cache reads and cache writes are counted beside each other; a write costs a quarter more by default."""
    decoder = anthropic.Decoder(a_request(), upstream="cloud", call=Call("/messages", {"model": "m"}))
    start = {"type": "message_start", "message": {"usage": {**counts, "output_tokens": 1}}}
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "yes"}}
    ends = [{"type": "content_block_stop", "index": 0}]
    ends += [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 300}}]
    for event in (start, block, *ends, {"type": "message_stop"}):
        decoder.event(json.dumps(event), name=event["type"])
    usage = decoder.close()[-1].usage
    assert usage.prompt_tokens == 1000
    assert PriceTable([an_upstream("anthropic", **priced)]).cost_uusd("cloud", "m", usage) == cost_uusd


@pytest.mark.parametrize(("kind", "priced", "worst_uusd"), [
    ("openai", {}, 2000 + 1000),
    ("anthropic", {}, 2500 + 1000),
    ("openai", {"cache_write_usd_per_mtok": 4}, 4000 + 1000),
])  # fmt: skip
def test_what_is_reserved_covers_a_prompt_that_fills_the_cache(kind, priced, worst_uusd):
    """Where a provider may count cache writes, the worst case is a prompt written whole."""
    table = PriceTable([an_upstream(kind, **priced)])
    assert table.worst_case_uusd("cloud", "m", prompt_tokens=1000, max_tokens=100) == worst_uusd
    written = Usage(prompt_tokens=1000, completion_tokens=100, cache_write_tokens=1000)
    if kind == "anthropic" or priced:
        assert table.cost_uusd("cloud", "m", written) <= worst_uusd


def test_old_prices_are_named_with_their_age():
    """A price without a date has no age; the limit itself is not yet old."""
    today = date(2026, 11, 25)
    for as_of, found in [("2026-05-29", []), ("2026-05-28", [("cloud/m", 181)]), (None, []), ("2027-01-01", [])]:
        upstream = an_upstream(prices_as_of=as_of)
        assert list(stale_prices([upstream], today=today, after_days=180)) == found


def test_zero_is_free_only_where_the_config_says_so():
    """A model without prices is refused by the config, so none is free by an omission."""
    with pytest.raises(ValueError, match="input_usd_per_mtok"):
        UpstreamConfig.model_validate({"name": "c", "base_url": "https://p.example/v1", "model": [{"name": "m"}]})
    assert (
        pricing.PriceTable([an_upstream(input_usd_per_mtok=0, output_usd_per_mtok=0)]).cost_uusd(
            "cloud", "m", Usage(prompt_tokens=10**6, completion_tokens=10**6, cache_write_tokens=10**5)
        )
        == 0
    )
