"""Framed messages over a blocking socket: the worker's end of the socketpair."""

import socket
import threading

from edged.engine.protocol import HEADER, MAX_FRAME_BYTES, Command, Event, decode_command, encode


class Channel:
    """Events out (any thread), commands in (one thread)."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._lock = threading.Lock()

    def send(self, event: Event) -> None:
        """Send one event whole. Raises: OSError when the daemon is gone."""
        frame = encode(event)
        with self._lock:
            self._socket.sendall(frame)

    def receive(self) -> Command | None:
        """The next command; None when the daemon is gone."""
        header = self._exactly(HEADER.size)
        if header is None:
            return None
        (size,) = HEADER.unpack(header)
        if size > MAX_FRAME_BYTES:
            raise ValueError(f"a frame of {size} bytes is over the limit of {MAX_FRAME_BYTES}")
        body = self._exactly(size)
        return None if body is None else decode_command(body)

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size:
            part = self._socket.recv(min(size - len(data), 1 << 20))
            if not part:
                return None
            data += part
        return bytes(data)
