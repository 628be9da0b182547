"""Calls the peer, again and again until it answers."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import Callable
from typing import ClassVar, Final

import attrs
from vnic.link import JointWatch
from vnic.loop import Timer

from vnic_stream.addresses import Address
from vnic_stream.peer import Peer, State

CONNECT_S: Final = 10.0
"""How long an attempt to connect may take; the kernel itself would try for two minutes."""

JITTER: Final = 0.25
"""The part of a wait that is left to chance, so that many NICs don't call at the same moment."""


@attrs.define
class BackOff:
    """Waits between attempts, in seconds: each twice as long as the last, less some chance."""

    shortest: float
    longest: float
    chance: Callable[[], float] = random.random
    """From 0 to 1."""
    last: float = 0.0
    """The latest wait, without the chance."""

    def next(self) -> float:
        """Return how long to wait now."""
        self.last = min(2 * self.last, self.longest) if self.last else self.shortest
        return self.last * (1 - JITTER * self.chance())

    def reset(self) -> None:
        """Begin with the shortest again."""
        self.last = 0.0


@attrs.define(kw_only=True, eq=False)
class Caller(Peer):
    """Calls the peer, again and again until it answers; that it doesn't is no error."""

    address: Address
    back_off: BackOff

    _calling: socket.socket | None = attrs.field(default=None, init=False)
    _watch: JointWatch | None = attrs.field(default=None, init=False)
    _timer: Timer | None = attrs.field(default=None, init=False)

    THEN: ClassVar[str] = "calling again until it answers"

    def open(self) -> None:
        """Call for the first time."""
        self._call()

    def close(self) -> None:
        """End the connection, and call no more."""
        super().close()
        self._forget_call()

    def _call(self) -> None:
        self.state = State.CONNECTING
        try:
            sock = socket.socket(self.address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._not_answered(error.errno or 0)
            return
        code = sock.connect_ex(self.address.sockaddr)
        if code != errno.EINPROGRESS:
            self._answered(sock, code)
            return
        if not self._said:
            self._tell("no answer yet")
        self._calling = sock
        self._watch = self.link.watch(
            sock.fileno(), read=False, write=True, writable=self._settled, error=self._settled
        )
        self._timer = self.link.timer(CONNECT_S, self._timed_out)

    def _settled(self) -> None:
        sock, self._calling = self._calling, None
        self._forget_call()
        if sock is not None:
            self._answered(sock, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _timed_out(self) -> None:
        self._forget_call()
        self._not_answered(errno.ETIMEDOUT)

    def _answered(self, sock: socket.socket, code: int) -> None:
        if code == 0 and _is_itself(sock):
            code = errno.ECONNREFUSED
        if code:
            sock.close()
            self._not_answered(code)
        else:
            self._meet(sock)

    def _not_answered(self, code: int) -> None:
        self._tell(f"nobody answers: {os.strerror(code).lower()}")
        self._wait()

    def _look_again(self) -> None:
        if self.link.loop.clock() - self._met_at >= self.back_off.last:
            self.back_off.reset()  # it was worth the wait
        self._wait()

    def _wait(self) -> None:
        self.state = State.WAITING
        self._timer = self.link.timer(self.back_off.next(), self._call)

    def _forget_call(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._calling is not None:
            self._calling.close()
            self._calling = None


def _is_itself(sock: socket.socket) -> bool:
    """Whether a socket has met itself, as it may when it calls a port of the ephemeral range.

    Spec: RFC 9293, "Establishing a Connection", simultaneous initiation.
    """
    try:
        return sock.family != socket.AF_UNIX and sock.getsockname() == sock.getpeername()
    except OSError:
        return False  # broken again already; whoever reads from it will see
