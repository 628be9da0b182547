"""The peer of a stream: looked for, met, lost, and looked for again."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable
from enum import Enum
from typing import ClassVar, Final

import attrs
from vnic.link import Joint

from vnic_stream.addresses import Passed

log: Final = logging.getLogger("vnic.stream")

KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A host that vanished while nothing was said is noticed in 25 s, so that another may call."""


class State(Enum):
    """Where a connection stands.

    A caller goes from CONNECTING to UP, or to WAITING and on; a listener from LISTENING to UP and
    back; a socket that was passed is UP, and then GONE.
    """

    CLOSED = "closed"
    CONNECTING = "connecting"
    WAITING = "waiting"
    LISTENING = "listening"
    UP = "up"
    GONE = "gone"


@attrs.define(kw_only=True, eq=False)
class Peer:
    """What a caller, a listener and a socket that was passed have in common.

    The link is down while there is no peer.
    """

    name: str
    """For the log."""
    link: Joint
    begin: Callable[[socket.socket], None]
    """Called with the socket, once there is a peer."""
    end: Callable[[], None]
    """Called before that is closed."""

    state: State = attrs.field(default=State.CLOSED, init=False)
    sock: socket.socket | None = attrs.field(default=None, init=False)
    """Connected, while the state is UP."""
    _met_at: float = attrs.field(default=0.0, init=False)
    _said: str = attrs.field(default="", init=False)

    THEN: ClassVar[str] = ""
    """What follows when the peer is lost, in words."""

    def open(self) -> None:
        """Begin to look for the peer.

        Raises: ConfigError, BackendError.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End the connection, and look for no other.  Twice is allowed."""
        self.state = State.CLOSED
        self._hang_up()

    def lost(self, why: str) -> None:
        """Hang up on a peer that has gone, or isn't worth keeping, and look for another."""
        if self.state is State.UP:
            self._hang_up()
            self._tell(why)
            self._look_again()

    def _look_again(self) -> None:
        raise NotImplementedError

    def _meet(self, sock: socket.socket) -> None:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in KEEPALIVE:
                sock.setsockopt(*option)
        self.state = State.UP
        self.sock = sock
        self._met_at = self.link.loop.clock()
        self._said = ""
        log.info("%s: connected", self.name)
        self.begin(sock)
        self.link.up()

    def _hang_up(self) -> None:
        sock, self.sock = self.sock, None
        if sock is not None:
            self.end()
            sock.close()

    def _tell(self, why: str) -> None:
        """Take the link down, for this reason; if it is down already, log what is new."""
        reason = f"{self.name}: {why}; {self.THEN}"
        if self._said not in ("", reason):
            log.warning("%s", reason)
        self._said = reason
        self.link.down(reason)


@attrs.define(kw_only=True, eq=False)
class PassedOn(Peer):
    """The peer of a socket that was passed to this process: there is no other."""

    passed: Passed

    THEN: ClassVar[str] = "pass another socket, to a new NIC"

    def open(self) -> None:
        """Take the socket over."""
        self._meet(self.passed.open(socket.SOCK_STREAM, self.name))

    def _hang_up(self) -> None:
        if self.sock is not None:
            # Whoever passed it has it open still: closing ours would tell the peer nothing.
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_RDWR)
        super()._hang_up()

    def _look_again(self) -> None:
        self.state = State.GONE
