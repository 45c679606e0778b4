"""A detector made once, and requests that carry planted data."""

import functools

from builders import a_request

from edged.config import RedactConfig
from edged.core import Chat, Locality, Message, Role
from edged.core.clearance import Clearance
from edged.privacy.detect import Detector
from edged.privacy.restore import Form, TextRestorer
from edged.privacy.rewrite import redact

MAIL = "anna.mueller@example.com"
PHONE = "+49 30 901820"
CARD = "4111 1111 1111 1111"


@functools.cache
def the_detector():
    return Detector(RedactConfig())


def a_detector(**config):
    return Detector(RedactConfig.model_validate(config))


def redacted(request=None, *, detector=None, max_chars=100_000, **fields):
    request = request or a_request(**{"clearance": Clearance(Locality.REDACT), **fields})
    return redact(request, detector or the_detector(), max_chars=max_chars)


def said(result, at=0):
    """The text of one message as it would be sent."""
    return result.request.input.messages[at].text


def a_chat(*texts):
    return Chat(tuple(Message(Role.USER, text) for text in texts))


def restore(result, *pieces, escape=str):
    restorer = TextRestorer(result.vault, Form(result.vault.kinds), escape)
    return "".join([*map(restorer.feed, pieces), restorer.flush()])
