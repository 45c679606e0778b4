"""The box's temperature and clock, where psutil can read them."""

import psutil

from edged.routing.heat import Reading

_PACKAGES = ("coretemp", "k10temp", "zenpower", "cpu_thermal", "cpu-thermal", "soc_thermal", "acpitz")
"""Sensors of the processor, by the names of their drivers; the first that is there counts."""


def read() -> Reading:
    """One look; what cannot be read is None. Blocks for as long as the sensors take, so not on the event loop."""
    temperature_c, limit_c = _temperature()
    return Reading(temperature_c, limit_c, _clock())


def _temperature() -> tuple[float | None, float | None]:
    """The hottest core and its limit."""
    try:
        found = psutil.sensors_temperatures()
    except (AttributeError, OSError):  # not on every system
        return None, None
    name = next((known for known in _PACKAGES if found.get(known)), None)
    if name is None:
        return None, None
    hottest = max(found[name], key=lambda sensor: sensor.current)
    return hottest.current, hottest.high or hottest.critical or None


def _clock() -> float | None:
    """The present clock over the highest."""
    try:
        frequency = psutil.cpu_freq()
    except (AttributeError, OSError, NotImplementedError):
        return None
    return frequency.current / frequency.max if frequency and frequency.max else None
