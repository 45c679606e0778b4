"""From the bodies of embeddings and rerank requests to what they ask, or to an error that names the field."""

import json

import pytest

from edged.core import Locality
from edged.errors import InvalidRequest
from edged.server.embedding_requests import MAX_DOCUMENTS, MAX_INPUTS, embeddings_request, rerank_request

KNOWN = {"id": "r", "received_s": 0.0, "tenant": "t"}


def embeddings(header=None, **fields):
    return embeddings_request({"model": "m", "input": "a", **fields}, header=header, **KNOWN)


def rerank(header=None, **fields):
    return rerank_request({"model": "m", "query": "q", "documents": ["a"], **fields}, header=header, **KNOWN)


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("a text", ("a text",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
    ],
)
def test_input_is_a_text_or_tokens_or_many_of_one_kind(given, texts):
    """The four forms OpenAI knows."""
    request = embeddings(input=given).request
    assert (request.texts, request.field, request.purpose, request.api) == (texts, "input", "embed", "embeddings")


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": ""}, "invalid_value", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": None}, "invalid_type", "input"),
        ({"input": 5}, "invalid_type", "input"),
        ({"input": {"text": "a"}}, "invalid_type", "input"),
        ({"input": ["a", ""]}, "invalid_value", "input[1]"),
        ({"input": ["a", [1]]}, "invalid_type", "input[1]"),
        ({"input": [[1], "a"]}, "invalid_type", "input[1]"),
        ({"input": [1, "a"]}, "invalid_type", "input[1]"),
        ({"input": [True]}, "invalid_type", "input[0]"),
        ({"input": [-1]}, "invalid_value", "input[0]"),
        ({"input": [[1], [2**31]]}, "invalid_value", "input[1][0]"),
        ({"input": ["a"] * (MAX_INPUTS + 1)}, "invalid_value", "input"),
        ({"encoding_format": "int8"}, "invalid_value", "encoding_format"),
        ({"dimensions": 0}, "invalid_value", "dimensions"),
        ({"dimensions": "8"}, "invalid_type", "dimensions"),
        ({"model": ""}, "invalid_value", "model"),
        ({"truncate": True}, "unknown_parameter", "truncate"),
        ({"edged": {"deadline_ms": 5}}, "unsupported_parameter", "edged.deadline_ms"),
        ({"edged": {"min_confidence": 0.5}}, "unsupported_parameter", "edged.min_confidence"),
        ({"edged": {"nothing": 1}}, "unknown_parameter", "edged.nothing"),
    ],
)
def test_what_cannot_be_honoured_in_an_embeddings_body_is_refused(fields, code, param):
    """By the field's own name."""
    with pytest.raises(InvalidRequest) as caught:
        embeddings(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_missing_input_is_named():
    """As OpenAI names it."""
    with pytest.raises(InvalidRequest) as caught:
        embeddings_request({"model": "m"}, **KNOWN)
    assert (caught.value.code, caught.value.param) == ("missing_required_parameter", "input")


def test_documents_are_strings_or_objects_with_a_text():
    """Both in one request; what is to come back is kept apart from what is asked."""
    parsed = rerank(documents=["a", {"text": "b"}], top_n=1, return_documents=True)
    assert (parsed.request.texts, parsed.request.query, parsed.request.field) == (("a", "b"), "q", "documents")
    assert (parsed.request.purpose, parsed.request.api) == ("rerank", "rerank")
    assert (parsed.most, parsed.with_documents) == (1, True)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"query": ""}, "invalid_value"),
        ({"documents": []}, "invalid_value"),
        ({"documents": [""]}, "invalid_value"),
        ({"documents": [5]}, "invalid_type"),
        ({"documents": [{"content": "a"}]}, "missing_required_parameter"),
        ({"documents": ["a"] * (MAX_DOCUMENTS + 1)}, "invalid_value"),
        ({"top_n": 0}, "invalid_value"),
        ({"max_tokens_per_doc": 9}, "unknown_parameter"),
    ],
)
def test_what_cannot_be_honoured_in_a_rerank_body_is_refused(fields, code):
    """Nothing is cut to fit, nothing is skipped."""
    with pytest.raises(InvalidRequest) as caught:
        rerank(**fields)
    assert caught.value.code == code
    assert caught.value.param.startswith(next(iter(fields)))


def test_labels_come_from_the_body_or_the_header():
    """As they do for chat."""
    parsed = embeddings(header=json.dumps({"locality": "local_only"}), edged={"task": "search"})
    assert (parsed.request.limits.locality, parsed.request.limits.task) == (Locality.LOCAL_ONLY, "search")
