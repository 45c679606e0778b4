"""Connections that end as real ones do."""

import asyncio
import socket
import struct

_RESET = struct.pack("ii", 1, 0)


def drop(transport: asyncio.BaseTransport | None, *, reset: bool) -> None:
    """End the connection without ending the body: by FIN, or by RST."""
    if transport is None:
        return
    if reset and isinstance(transport, asyncio.WriteTransport):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        transport.abort()
    else:
        transport.close()
