"""Whether an upstream model can do what a request asks, decided before anything is spent. Pure."""

from edged.config import UpstreamConfig, UpstreamModelConfig
from edged.core import OutputKind, Request, Trust
from edged.errors import Unsupported


def check(request: Request, upstream: UpstreamConfig, model: UpstreamModelConfig) -> None:
    """Refuse what the config says this model cannot do.

    Raises: Unsupported naming the field and the key that would allow it.
    """
    name = f'the upstream model "{upstream.name}/{model.name}"'
    if request.images and not model.vision:
        raise Unsupported(f"messages: {name} reads no images (vision = false)", param="messages")
    if request.images and request.clearance.redacted and upstream.trust is not Trust.SITE:
        text = "messages: images cannot be redacted: a request labelled redact may not send any"
        raise Unsupported(text, param="messages")
    if request.tools and not model.tools:
        raise Unsupported(f"tools: {name} calls no functions (tools = false)", param="tools")
    if request.output.kind is OutputKind.JSON_SCHEMA and not model.json_schema:
        text = f"response_format: {name} keeps to no JSON schema (json_schema = false)"
        raise Unsupported(text, param="response_format")
