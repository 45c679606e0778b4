"""Nouns with defaults, so that a test shows only the values that matter to it."""

import itertools
import json
import math
import time

from edged.config import Config, RouteConfig
from edged.core import (
    Chat,
    Clearance,
    EngineSnapshot,
    EngineState,
    FinishReason,
    Limits,
    Locality,
    Message,
    Release,
    Request,
    Role,
    Sampling,
    Token,
)
from edged.routing.policy import Terms
from edged.routing.probation import Observation
from edged.testing import Reply

_ids = itertools.count(1)


def a_request(*, text="hello", model="auto", id=None, received_s=None, sampling=None, limits=None, **fields):  # noqa: A002 - the field's name
    """A chat request that has just come in; ``limits`` as keywords of Limits, its locality by name."""
    limits = dict(limits or {})
    limits["locality"] = Locality(limits.get("locality", "any"))
    fields.setdefault("clearance", Clearance(Locality.ANY))
    return Request(
        id=id or f"r{next(_ids)}",
        model=model,
        input=Chat((Message(Role.USER, text),)),
        received_s=time.monotonic() if received_s is None else received_s,
        sampling=sampling or Sampling(),
        limits=Limits(**limits),
        **fields,
    )


def a_route(*, thresholds=None, budget=None, **fields):
    """A route with a local model and one upstream."""
    document = {"name": "auto", "local": "small", "cloud": ["cloud/scripted-model"], **fields}
    return RouteConfig.model_validate({**document, "thresholds": thresholds or {}, "budget": budget or {}})


def a_config(*, routes=None, upstreams=(), models=("small",), **sections):
    """A whole config; ``upstreams`` are UpstreamConfig values, ``sections`` further tables as in the file."""
    document = {
        "model": [{"name": name, "file": "/nowhere.gguf"} for name in models],
        "upstream": [upstream.model_dump(by_alias=True) for upstream in upstreams],
        "route": [route.model_dump(mode="json") for route in routes or [a_route()]],
    }
    return Config.model_validate(document | sections)


def the_terms(**fields):
    """What a route with both sides and default thresholds allows."""
    usual = {
        "locality": Locality.ANY,
        "has_local": True,
        "has_cloud": True,
        "release": Release.GUARDED,
        "hold_tokens": 4,
        "confidence": 0.5,
        "ttft_s": 2.0,
        "itl_s": 0.5,
        "queue": 8,
    }
    return Terms(**{**usual, **fields})


def an_engine_snapshot(**fields):
    """An idle, measured engine: 100 tokens/s prefill, 10 tokens/s decode."""
    usual = {
        "state": EngineState.READY,
        "slots": 2,
        "context_tokens": 1000,
        "prefill_tps": 100.0,
        "decode_tps": 10.0,
    }
    return EngineSnapshot(**{**usual, **fields})


def tokens(*probabilities):
    """Tokens of these probabilities; 0 is a token the model held for impossible."""
    return [Token(b"x", math.log(p) if p > 0 else -math.inf) for p in probabilities]


def an_observation(
    *, said=(), finish=None, elapsed_s=0.1, silence_s=0.0, has_text=True, cut_short=False, others=(), **fields
):
    """An answer of one choice that said ``said``; ``others`` are further (tokens, finish) pairs."""
    pairs = [(said, finish), *others]
    return Observation(
        elapsed_s=elapsed_s,
        silence_s=silence_s,
        choices=tuple(words for words, _ in pairs),
        finishes=tuple(end for _, end in pairs),
        has_text=has_text,
        cut_short=cut_short,
        **fields,
    )


STOP = FinishReason.STOP


def refusing(*names):
    """A scripted provider that knows none of these parameters."""

    def respond(seen):
        for name in names:
            if name in seen.body:
                error = {"message": f"Unsupported parameter: '{name}'", "param": name, "code": "unsupported_parameter"}
                return Reply(status=400, body=json.dumps({"error": error}).encode())
        return None

    return respond
