"""A time limit for Python code that may never return, such as a hostile template."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class TimeLimitExceeded(Exception):
    """The code inside ``time_limit`` ran too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitExceeded inside the block once it has run for ``seconds``.

    Uses CPython's asynchronous exceptions, which interrupt any loop of byte code, though no call into C.
    """
    thread_id = ctypes.c_ulong(threading.get_ident())
    lock = threading.Lock()
    finished = fired = False

    def fire() -> None:
        nonlocal fired
        with lock:
            if not finished:
                fired = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, ctypes.py_object(TimeLimitExceeded))

    timer = threading.Timer(seconds, fire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            finished = True
        timer.cancel()
        if fired:
            time.sleep(0.01)  # an exception already on its way arrives here, not in the caller's next line
