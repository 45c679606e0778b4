"""Model files: what the catalogue knows, what is installed, and how a file gets from one to the other."""

from edged.catalogue.entries import Calibration, Catalogue, Entry, find, load
from edged.catalogue.fetch import Listener, Pull, Silent
from edged.catalogue.optimized import Fit, Weights, in_use, resolve
from edged.catalogue.store import Installed, State, Store

__all__ = [
    "Calibration",
    "Catalogue",
    "Entry",
    "Fit",
    "Installed",
    "Listener",
    "Pull",
    "Silent",
    "State",
    "Store",
    "Weights",
    "find",
    "in_use",
    "load",
    "resolve",
]
