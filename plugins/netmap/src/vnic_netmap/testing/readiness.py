"""A descriptor that is readable, writable and in error just as it is told, for any kind of poll.

It is a datagram socket.  A byte from the socket ``far`` makes it readable; bytes that it has sent
to ``ballast`` and that nobody reads fill its buffer, so that it is not writable; and when ``far``
turns away from it with bytes unread, it has an error (ECONNRESET) until SO_ERROR is read.
"""

from __future__ import annotations

import select
import socket

import attrs


@attrs.frozen
class State:
    """What poll says of a descriptor."""

    readable: bool = False
    writable: bool = False
    error: bool = False


UNBOUND = State(error=True)


class Signal:
    """The module's end of a descriptor that it gave; the descriptor itself is `take`n once."""

    def __init__(self) -> None:
        self._near, self._far, self._ballast = (_new_socket() for _ in range(3))
        self._near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
        self._near.connect(self._far.getsockname())
        self._far.connect(self._near.getsockname())
        self._state = State(writable=True)
        self.show(UNBOUND)

    def take(self) -> int:
        """Return a descriptor for user space, who closes it."""
        return self._near.dup().detach()

    def close(self) -> None:
        """Let go of the module's end: what waits for the descriptor hears nothing any more."""
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
            while select.select([self._ballast], [], [], 0)[0]:
                self._ballast.recv(1)
        else:
            while select.select([], [self._near], [], 0)[1]:
                self._near.sendto(b"!", self._ballast.getsockname())


def _new_socket() -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.bind("")  # any name, in no file system
    return sock
