"""A time limit for Python code that may never return, such as a hostile template."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_set_async_exc = ctypes.pythonapi.PyThreadState_SetAsyncExc


class _TakenBack(Exception):
    """Stands in for a limit that came too late to matter."""


class TimeLimitExceeded(Exception):
    """The code inside ``time_limit`` ran too long."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeLimitExceeded inside the block once it has run for ``seconds``.

    Uses CPython's asynchronous exceptions, which interrupt any loop of byte code, though no call into C. None is left
    behind when the block ends: one that is still on its way is taken back.
    """
    thread_id = ctypes.c_ulong(threading.get_ident())
    lock = threading.Lock()
    begun, over = threading.Event(), threading.Event()
    finished = fired = False

    def watch() -> None:
        nonlocal fired
        begun.wait()
        if over.wait(seconds):
            return
        with lock:
            if not finished:
                fired = True
                _set_async_exc(thread_id, ctypes.py_object(TimeLimitExceeded))

    threading.Thread(target=watch, name="time limit", daemon=True).start()
    try:
        begun.set()
        yield
    finally:
        with lock:
            finished = True
        over.set()
        if fired:
            _take_back(thread_id)


def _take_back(thread_id: ctypes.c_ulong) -> None:
    """Put an exception of ours in the place of one that may still be on its way, and receive it.

    Setting None instead would leave the interpreter's flag up for good: CPython 3.11 looks for the exception at every
    call from then on, and hangs at the first one that is traced (a debugger, coverage, hypothesis).
    """
    try:
        _set_async_exc(thread_id, ctypes.py_object(_TakenBack))
        while True:
            pass
    except _TakenBack:
        return
