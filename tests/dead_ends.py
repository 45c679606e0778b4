"""Addresses that take no connection, each in its own way."""

import socket
from contextlib import ExitStack, contextmanager

_FILL = 4


@contextmanager
def black_hole(*, family=socket.AF_INET, port=0):
    """A port where connections neither succeed nor fail: its queue is full, so that the kernel drops every SYN."""
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(family))
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", port))
        sock.listen(0)
        for _ in range(_FILL):
            filler = stack.enter_context(socket.socket(family))
            filler.setblocking(False)
            filler.connect_ex(sock.getsockname())
        yield sock.getsockname()[1]


def refused_port():
    """A port where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def an_address(host, port):
    """One entry of getaddrinfo's answer."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    where = (host, port, 0, 0) if family == socket.AF_INET6 else (host, port)
    return family, socket.SOCK_STREAM, 6, "", where
