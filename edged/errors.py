"""One error root; each subclass says whose fault it is. ``code`` is stable and documented, ``status`` is HTTP's.

Messages may reach a client: they never hold a path, a key or another client's text.
"""


class EdgedError(Exception):
    """Anything edged raises on purpose."""

    status = 500
    code = "internal_error"
    type = "server_error"

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        if code is not None:
            self.code = code


# -- the client's fault ----------------------------------------------------------------------------------------------


class InvalidRequest(EdgedError):
    """The request cannot be honoured as it is; ``param`` names the field."""

    status = 400
    code = "invalid_request"
    type = "invalid_request_error"


class Unsupported(InvalidRequest):
    """The request asks for something edged, or every backend of the route, does not do."""

    code = "unsupported_parameter"


class ContextOverflow(InvalidRequest):
    """Prompt and answer do not fit the context of any allowed backend."""

    code = "context_length_exceeded"


class TemplateRejected(InvalidRequest):
    """The model's chat template refuses this conversation."""

    code = "template_error"


class ModelNotFound(InvalidRequest):
    """No route, local model or upstream model has this name."""

    status = 404
    code = "model_not_found"


class BodyTooLarge(InvalidRequest):
    status = 413
    code = "request_too_large"


class NotAllowed(EdgedError):
    """The key or the host name is not allowed here."""

    status = 401
    code = "invalid_api_key"
    type = "authentication_error"


class HostNotAllowed(NotAllowed):
    """The Host or Origin header is not on the allow-list (DNS rebinding)."""

    status = 403
    code = "host_not_allowed"


# -- nobody's fault: capacity ----------------------------------------------------------------------------------------


class Busy(EdgedError):
    """Overload: try again after ``retry_after_s``."""

    status = 503
    code = "rejected_busy"
    type = "overloaded_error"


class BudgetExhausted(EdgedError):
    """The money for this is spent and nothing local may answer."""

    status = 429
    code = "budget_exhausted"
    type = "insufficient_quota"


class SpendUnrecorded(EdgedError):
    """The ledger cannot be written, so no budgeted call may be made, and nothing local may answer."""

    status = 503
    code = "spend_unrecorded"
    type = "server_error"


class NotReady(EdgedError):
    """Nothing can answer yet or any more: loading, restarting or draining."""

    status = 503
    code = "not_ready"
    type = "overloaded_error"


# -- the box's fault -------------------------------------------------------------------------------------------------


class EngineError(EdgedError):
    """The local engine failed this request."""

    code = "engine_error"


class ModelFileRejected(EngineError):
    """A model file is cut, damaged or hostile: no worker may load it. The message says what is wrong and the limit."""

    code = "model_file_rejected"


class OutOfMemory(EngineError):
    """Loading a model needs more memory than there is; the message holds the numbers."""

    status = 503
    code = "insufficient_memory"


class WorkerLost(EngineError):
    """The worker process died, hung or was restarted while it held the request."""

    status = 503
    code = "worker_lost"


class ClearanceRefused(EdgedError):
    """The last check before the network: this request may not go to this upstream. Nothing has been sent."""

    code = "clearance_refused"


# -- the provider's fault --------------------------------------------------------------------------------------------


class UpstreamError(EdgedError):
    """A provider failed; ``upstream`` is its configured name. Never carries the provider's raw body.

    ``may_cost`` says whether it had taken the prompt, so that it may charge for it; ``reached`` whether a connection
    was made at all; ``answered`` is the HTTP status it gave, if it gave one that is an error.
    """

    may_cost = True
    reached = True
    answered: int | None = None
    status = 502
    code = "upstream_error"
    type = "upstream_error"

    def __init__(
        self,
        message: str,
        *,
        upstream: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, param=param, code=code, retry_after_s=retry_after_s)
        self.upstream = upstream


class UpstreamUnavailable(UpstreamError):
    """It could not be reached, refused, or cut the connection: before the first token the next one may be tried."""

    code = "upstream_unavailable"


class UpstreamTimeout(UpstreamUnavailable):
    """A deadline fired; ``code`` says which: connect_timeout, first_token_timeout or idle_timeout."""

    status = 504
    code = "upstream_timeout"


class UpstreamBusy(UpstreamUnavailable):
    """It answered 429 or 503: not before ``retry_after_s``."""

    status = 503
    may_cost = False
    code = "upstream_busy"


class UpstreamOffline(UpstreamUnavailable):
    """It is known that it cannot be reached from here, so nothing was tried."""

    status = 503
    may_cost = False
    reached = False
    code = "upstream_offline"


class UpstreamRejected(UpstreamError):
    """It refused the request itself (a 4xx that is the request's fault): another provider may still take it."""

    may_cost = False
    code = "upstream_rejected"


class ParameterRefused(UpstreamRejected):
    """It refused ``param``, which is left out from now on: the same upstream may be asked again at once."""

    code = "parameter_refused"


class UpstreamDenied(UpstreamError):
    """It refused our credentials (401, 403) or our account (402)."""

    may_cost = False
    code = "upstream_denied"


class UpstreamProtocolError(UpstreamError):
    """It broke its own protocol: HTML, malformed events, a truncated stream."""

    code = "upstream_protocol_error"


# -- the operator's fault --------------------------------------------------------------------------------------------


class ConfigError(EdgedError):
    """The config file is wrong; ``problems`` holds one readable line each, naming the key."""

    code = "config_error"

    def __init__(self, message: str, problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.problems = problems


class CatalogueError(EdgedError):
    """A model is unknown, cannot be fetched or is not what the catalogue promised."""

    code = "catalogue_error"


class LedgerError(EdgedError):
    """The ledger cannot be read."""

    code = "ledger_error"
