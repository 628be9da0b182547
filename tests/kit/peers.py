"""The other end of a stream, in plain Python: it says what it is told to, and reads when asked."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Sequence

PREFIX_LEN = 4


def framed(frames: Iterable[bytes]) -> bytes:
    """Return the frames as a stream has them: each behind its length."""
    return b"".join(len(frame).to_bytes(PREFIX_LEN, "big") + frame for frame in frames)


def unframed(data: bytes) -> tuple[list[bytes], bytes]:
    """Return the whole frames of a stream, and what is left."""
    frames = []
    while len(data) >= PREFIX_LEN:
        end = PREFIX_LEN + int.from_bytes(data[:PREFIX_LEN], "big")
        if len(data) < end:
            break
        frames.append(data[PREFIX_LEN:end])
        data = data[end:]
    return frames, data


class StreamPeer:
    """A peer that is connected; it blocks where it sends more than the socket takes."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.left = b""
        """The start of a frame whose end did not come yet."""
        self.ended = False
        """Whether the other side has hung up."""
        self._read: list[bytes] = []

    def send(self, frames: Sequence[bytes]) -> None:
        """Send frames; to nobody, if nobody is there."""
        with contextlib.suppress(OSError):
            self.socket.sendall(framed(frames))

    def read(self) -> None:
        """Read all that has come."""
        while not self.ended:
            try:
                data = self.socket.recv(1 << 20, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            self.ended = not data
            frames, self.left = unframed(self.left + data)
            self._read += frames

    def frames(self) -> list[bytes]:
        """Return the frames that have come since the last call."""
        self.read()
        frames, self._read = self._read, []
        return frames

    def close(self) -> None:
        """Hang up.  Twice is allowed."""
        self.socket.close()


def free_port(family: socket.AddressFamily = socket.AF_INET, kind: int = socket.SOCK_STREAM) -> int:
    """Return a port of the loopback interface that nobody uses at the moment."""
    with socket.socket(family, kind) as probe:
        probe.bind(("::1" if family is socket.AF_INET6 else "127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
