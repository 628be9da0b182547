"""A descriptor that is readable, writable and in error just as it is told, for any kind of poll.

It is a datagram socket.  A byte from the socket ``far`` makes it readable; bytes that it has sent
to ``ballast`` and that nobody reads fill its buffer, so that it is not writable; and when ``far``
turns away from it with bytes unread, it has an error (ECONNRESET) until SO_ERROR is read.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress

import attrs


@attrs.frozen
class State:
    """What poll says of a descriptor."""

    readable: bool = False
    writable: bool = False
    error: bool = False


UNBOUND = State(error=True)


class Signal:
    """What is behind a descriptor that user space has."""

    def __init__(self) -> None:
        self._near, self._far, self._ballast = (_new_socket() for _ in range(3))
        self._writable = select.poll()
        self._writable.register(self._near, select.POLLOUT)
        self._near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
        self._near.connect(self._far.getsockname())
        self._far.connect(self._near.getsockname())
        self._state = State(writable=True)
        self.show(UNBOUND)

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self._near.fileno()

    def close_fd(self) -> None:
        """Close the descriptor.  Who waits for it hears of it until `close`, as the kernel has it
        for one of which there is a duplicate.
        """
        near, self._near = self._near, self._near.dup()
        self._writable = select.poll()
        self._writable.register(self._near, select.POLLOUT)
        near.close()

    def close(self) -> None:
        """Close the last duplicate."""
        for sock in (self._near, self._far, self._ballast):
            sock.close()

    def show(self, state: State) -> None:
        """Be as told.  Who waits is woken by what becomes true, not by what was and still is."""
        if state == self._state:
            return
        if self._state.error:
            # As long as there is an error, a socket neither sends nor receives.
            self._near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if state.readable != self._state.readable:
            self._set_readable(state.readable)
        if state.writable != self._state.writable:
            self._set_writable(state.writable)
        if state.error:
            self._near.send(b"!")
            self._far.connect(self._ballast.getsockname())
            self._far.connect(self._near.getsockname())
        self._state = state

    def wake(self, *, readable: bool = False, writable: bool = False) -> None:
        """Wake who waits for an edge, by what is true already."""
        if self._state.error:
            return
        if readable and self._state.readable:
            self._set_readable(False)
            self._set_readable(True)
        if writable and self._state.writable:
            self._set_writable(False)
            self._set_writable(True)

    def _set_readable(self, readable: bool) -> None:
        if readable:
            self._far.send(b"!")
        else:
            self._near.recv(1)

    def _set_writable(self, writable: bool) -> None:
        if writable:
            with suppress(BlockingIOError):
                while self._ballast.recv(1):
                    pass
        else:
            while self._writable.poll(0):
                self._near.sendto(b"!", self._ballast.getsockname())


def _new_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind("")  # any name, in no file system
    return sock
