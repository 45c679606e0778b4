"""Money is integer micro-dollars, rounded up, and nothing unknown is free."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upstream_builders import a_request

from edged.config import UpstreamConfig
from edged.core import Message, Role, ToolCall, Usage
from edged.errors import ModelNotFound
from edged.upstream import pricing
from edged.upstream.pricing import PriceTable

TABLE = PriceTable(
    [
        UpstreamConfig.model_validate(
            {
                "name": "cloud",
                "base_url": "https://provider.example/v1",
                "model": [
                    {
                        "name": "big",
                        "input_usd_per_mtok": 2.5,
                        "output_usd_per_mtok": 10,
                        "cached_input_usd_per_mtok": 1.25,
                    },
                    {"name": "mini", "input_usd_per_mtok": 0.15, "output_usd_per_mtok": 0.60},
                    {"name": "tiny", "input_usd_per_mtok": 0.0000001, "output_usd_per_mtok": 0.07},
                    {"name": "free", "input_usd_per_mtok": 0, "output_usd_per_mtok": 0},
                ],
            }
        )
    ]
)  # fmt: skip


def used(prompt, completion, cached=0, reasoning=0):
    return Usage(prompt_tokens=prompt, completion_tokens=completion, cached_tokens=cached, reasoning_tokens=reasoning)


@pytest.mark.parametrize(
    ("model", "usage", "cost_uusd"),
    [
        ("big", used(1000, 0), 2_500),
        ("big", used(1000, 100), 3_500),
        ("big", used(1000, 100, cached=900), 250 + 1_125 + 1_000),
        ("big", used(1000, 100, reasoning=60), 3_500),
        ("big", used(10, 0, cached=90), 13),
        ("big", used(1, 0), 3),
        ("big", used(0, 0), 0),
        ("mini", used(1_000_000, 1_000_000), 750_000),
        ("mini", used(3, 3), 3),
        ("mini", used(1000, 0, cached=500), 150),
        ("tiny", used(1, 0), 1),
        ("tiny", used(10_000_000, 0), 1),
        ("tiny", used(0, 100), 7),
        ("free", used(10**6, 10**6), 0),
    ],
)
def test_the_golden_table(model, usage, cost_uusd):
    """cost = (prompt - cached) * p + cached * pc + completion * q, rounded up once at the end (F17)."""
    assert TABLE.cost_uusd("cloud", model, usage) == cost_uusd


@pytest.mark.parametrize(("upstream", "model"), [("cloud", "unknown"), ("other", "big")])
def test_a_model_without_a_price_is_refused_never_free(upstream, model):
    """An unknown price raises (F16)."""
    with pytest.raises(ModelNotFound):
        TABLE.cost_uusd(upstream, model, used(1, 1))
    with pytest.raises(ModelNotFound):
        TABLE.worst_case_uusd(upstream, model, prompt_tokens=1, max_tokens=1)


counts = st.integers(0, 10**7)


@given(prompt=counts, completion=st.integers(0, 5000), cached=counts, n=st.integers(1, 8))
def test_what_is_reserved_covers_what_is_spent(prompt, completion, cached, n):
    """The worst case of n answers is at least the cost of any usage within it."""
    for model in ("big", "mini", "tiny", "free"):
        worst = TABLE.worst_case_uusd("cloud", model, prompt_tokens=prompt, max_tokens=5000, n=n)
        assert worst >= TABLE.cost_uusd("cloud", model, used(prompt, completion * n, cached=cached))


def test_provider_dollars_become_micro_dollars_exactly():
    """The decimal the provider wrote, not its binary neighbour, rounded up."""
    assert [pricing.usd_to_uusd(x) for x in (0.1, 0.000003, 1, 1e-9, 0.29)] == [100_000, 3, 1_000_000, 1, 290_000]


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("", 0, 0),
        ("a", 1, 1),
        ("The quick brown fox jumps over the lazy dog.", 10, 20),
        ("1234567890", 10, 10),
        ("日本語のテキスト", 8, 16),
        ("🚀", 1, 2),
        ('{"a": [1, 2, 3]}', 10, 16),
    ],
)
def test_an_estimate_errs_high_but_not_wildly(text, least, most):
    """Between a known tokenizer's count and twice that."""
    assert least <= pricing.estimate_tokens(text) <= most


@given(st.text(max_size=50), st.text(max_size=50))
def test_an_estimate_never_shrinks_as_text_grows(start, more):
    """More text never costs less."""
    assert pricing.estimate_tokens(start + more) >= pricing.estimate_tokens(start)


def test_a_call_without_a_count_is_estimated_and_marked():
    """Prompt with every message's overhead and tool calls, and what was answered until it ended (F16)."""
    call = ToolCall("c", "f", "{}")
    messages = [Message(Role.USER, "hello there"), Message(Role.ASSISTANT, None, tool_calls=(call,))]
    usage = pricing.estimate_usage(a_request(messages=messages), "half an ans")
    assert usage.estimated
    assert usage.prompt_tokens > 20
    assert usage.completion_tokens >= 3
    assert pricing.estimate_prompt_tokens(a_request(prompt="hello")) == 2
    assert pricing.estimate_prompt_tokens(a_request(prompt=(1, 2, 3))) == 3
