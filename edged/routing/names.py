"""From the ``model`` a client names to the route that answers it."""

from collections.abc import Sequence

from edged.config import Config, RouteConfig
from edged.core import Locality
from edged.errors import ModelNotFound

_SHOWN = 20


def resolve(config: Config, name: str, *, only: Sequence[str] = ()) -> RouteConfig:
    """The route called ``name``, or an implicit one for a local model's name or ``UPSTREAM/model``.

    ``only`` holds the names that the caller's API key is for; empty means all.
    Raises: ModelNotFound.
    """
    if only and name not in only:
        known = ", ".join(only[:_SHOWN])
        raise ModelNotFound(f"this API key is not for the model {name[:100]!r}; it is for: {known}", param="model")
    for route in config.routes:
        if route.name == name:
            return route
    for model in config.models:
        if model.name == name:
            return RouteConfig(name=name, local=name, locality=Locality.LOCAL_ONLY)
    for upstream in config.upstreams:
        if any(f"{upstream.name}/{model.name}" == name for model in upstream.models):
            return RouteConfig.model_construct(name=name, cloud=(name,), locality=Locality.CLOUD_ONLY)
    known = ", ".join(public_names(config)[:_SHOWN])
    raise ModelNotFound(f"the model {name[:100]!r} does not exist here; known: {known}", param="model")


def public_names(config: Config) -> list[str]:
    """Everything a client may ask for: routes, local models, upstream models."""
    upstreams = [f"{upstream.name}/{model.name}" for upstream in config.upstreams for model in upstream.models]
    return [*(route.name for route in config.routes), *(model.name for model in config.models), *upstreams]
