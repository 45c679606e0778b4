"""Model files: what the catalogue knows, what is installed, and how a file gets from one to the other."""

from edged.catalogue.entries import Catalogue, Entry, find, load
from edged.catalogue.fetch import Listener, Pull, Silent
from edged.catalogue.store import Installed, State, Store, resolve

__all__ = ["Catalogue", "Entry", "Installed", "Listener", "Pull", "Silent", "State", "Store", "find", "load", "resolve"]
