"""An artefact in one sentence."""

from edged.calibration.artefact import Artefact, LabelSource


def promise(artefact: Artefact | None, problem: str | None) -> str:
    """What is promised of local answers, or why nothing is."""
    if artefact is None:
        return f"uncertified: {problem or 'nothing was measured yet'}; everything goes to the cloud"
    if artefact.threshold is None:
        return f"uncertified: {artefact.note or 'no threshold keeps the target'}; everything goes to the cloud"
    certificate = artefact.certificate
    if certificate is None:
        return f"serves from a confidence of {artefact.threshold:.2f} on, chosen for its share; no error is promised"
    errors = "error" if artefact.source is LabelSource.GOLD else "disagreement with the cloud"
    return (
        f"serves {_percent(certificate.coverage)} locally with at most {_percent(certificate.alpha)} {errors}, "
        f"confidence {_percent(1 - certificate.delta)}, from {artefact.labels} labels"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
