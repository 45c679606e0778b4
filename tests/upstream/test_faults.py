"""A refusal is blamed on whose fault it is, and repeats nothing the provider wrote."""

import pytest

from edged.errors import UpstreamBusy, UpstreamDenied, UpstreamRejected, UpstreamUnavailable
from edged.upstream import faults

CANARY = "sk-canary-0123456789"


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, UpstreamRejected), (404, UpstreamRejected), (405, UpstreamRejected), (413, UpstreamRejected),
        (415, UpstreamRejected), (422, UpstreamRejected), (418, UpstreamRejected),
        (401, UpstreamDenied), (402, UpstreamDenied), (403, UpstreamDenied),
        (408, UpstreamUnavailable), (500, UpstreamUnavailable), (502, UpstreamUnavailable),
        (504, UpstreamUnavailable), (520, UpstreamUnavailable), (599, UpstreamUnavailable),
        (429, UpstreamBusy), (503, UpstreamBusy), (529, UpstreamBusy),
    ],
)  # fmt: skip
def test_each_status_has_one_meaning(status, expected):
    """The request's fault, our account's fault, overload, or the provider's failure (F02)."""
    error = faults.from_status("cloud", status, retry_after_s=2.0)
    assert type(error) is expected
    assert error.upstream == "cloud"
    assert error.retry_after_s == 2.0
    assert str(status) in error.message


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (429, {"code": "insufficient_quota"}, UpstreamDenied),
        (429, {"code": "rate_limit_exceeded"}, UpstreamBusy),
        (429, {"code": "invalid_request_error"}, UpstreamBusy),
        (400, {"status": "API_KEY_INVALID"}, UpstreamDenied),
        (400, {"code": "context_length_exceeded"}, UpstreamRejected),
        (400, {"type": "server_error"}, UpstreamRejected),
        (401, {"type": "invalid_request_error"}, UpstreamDenied),
        (500, {"code": "rate_limit_exceeded"}, UpstreamUnavailable),
    ],
)
def test_a_code_corrects_a_status_that_is_too_coarse(status, error, expected):
    """An empty account is no rate limit, a bad key is no bad request; other statuses stand."""
    assert type(faults.from_status("cloud", status, error=error)) is expected


@pytest.mark.parametrize(
    "error",
    [
        {"message": f"bad key {CANARY}", "code": CANARY, "type": CANARY, "param": CANARY},
        {"message": CANARY, "code": {"x": CANARY}, "param": [CANARY]},
        CANARY,
        [CANARY],
        None,
        5,
    ],
)
@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_nothing_of_the_providers_text_passes(error, status):
    """Messages, codes and params outside our own tables stay out: they may echo a key (E07)."""
    for built in (faults.from_status("c", status, error=error, sent={"n"}), faults.from_error_object("c", error)):
        assert CANARY not in repr(built) + str(built) + str(vars(built))


def test_a_rejected_parameter_is_named_if_we_sent_it():
    """``param`` is one of our own fields or nothing."""
    error = {"code": "unsupported_parameter", "param": "seed"}
    built = faults.from_status("cloud", 400, error=error, sent={"seed", "model"})
    assert built.param == "seed"
    assert "unsupported_parameter, parameter seed" in built.message
    assert faults.from_status("cloud", 400, error=error, sent={"model"}).param is None


def test_an_empty_account_is_ours_to_fill_whatever_the_status():
    """Anthropic says so with a 400, which would otherwise be the request's fault."""
    said = {"type": "invalid_request_error", "message": f"Your credit balance is too low to access the API {CANARY}"}
    error = faults.from_status("cloud", 400, error=said)
    assert type(error) is UpstreamDenied
    assert CANARY not in error.message
    quoted = {**said, "message": 'messages: "Your credit balance is too low" is not a role'}
    assert type(faults.from_status("cloud", 400, error=quoted)) is UpstreamRejected
