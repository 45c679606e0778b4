"""Small builders: only what matters to a rule shows in its test."""

from edged.engine.protocol import Params
from edged.engine.sequence import Sequence


def a_params(**changes) -> Params:
    values = {
        "max_tokens": 16,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": (),
        "seed": None,
        "stop": (),
        "top_logprobs": 0,
    }
    return Params(**(values | changes))


def a_sequence(tokens, *, id="a", choice=0, tenant="", generated=(), **params) -> Sequence:  # noqa: A002 - its name
    return Sequence(
        id=id,
        choice=choice,
        tenant=tenant,
        tokens=[*tokens, *generated],
        prompt_tokens=len(tokens),
        params=a_params(**params),
        submitted_s=0.0,
    )
