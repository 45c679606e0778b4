"""What may leave the box with one request."""

from dataclasses import dataclass

from edged.core.words import Locality, Trust
from edged.errors import ClearanceRefused

_STRICTNESS = (Locality.ANY, Locality.REDACT, Locality.SITE_ONLY, Locality.LOCAL_ONLY)


@dataclass(frozen=True, slots=True)
class Clearance:
    """How far a request may travel: nowhere, unless the policy says otherwise.

    ``label`` is one of any, redact, site_only, local_only, from loose to strict; ``redacted`` says that personal data
    has been replaced in the request that carries this.
    """

    label: Locality = Locality.LOCAL_ONLY
    redacted: bool = False

    def admits(self, trust: Trust) -> bool:
        """Whether an upstream of this trust may be asked at all; with ``redact``, after redaction."""
        match self.label:
            case Locality.ANY | Locality.REDACT:
                return True
            case Locality.SITE_ONLY:
                return trust is Trust.SITE
            case _:
                return False

    def needs_redaction(self, trust: Trust) -> bool:
        return self.label is Locality.REDACT and trust is not Trust.SITE and not self.redacted

    def check(self, trust: Trust, upstream: str) -> None:
        """The last look before the network. Raises: ClearanceRefused where the request may not go as it stands."""
        if not self.admits(trust) or self.needs_redaction(trust):
            text = f'a request labelled {self.label} may not go to the upstream "{upstream}" as it stands'
            raise ClearanceRefused(text)


def strictest(*labels: Locality) -> Locality:
    """The strictest of several labels; ``cloud_only`` says nothing about what may be seen."""
    return max((label for label in labels if label in _STRICTNESS), key=_STRICTNESS.index, default=Locality.ANY)
