"""Waits to be called, by one peer at a time."""

from __future__ import annotations

import errno
import select
import socket
from typing import ClassVar, Final

import attrs
from vnic.errors import BackendError
from vnic.loop import Timer, Watch
from vnic.sockets import BACKLOG, SocketFile

from vnic_stream.addresses import Address
from vnic_stream.peer import Peer, State, log

REST_S: Final = 1.0
"""How long nobody is accepted when that has failed for want of descriptors, or when the last peer
stayed for less: the guest's carrier would go up and down as fast as somebody can call."""


@attrs.define(kw_only=True, eq=False)
class Listener(Peer):
    """Waits to be called.  While there is a peer, another one is refused.

    Were the first replaced, anybody who can connect could take the network away from a guest.
    """

    address: Address

    _listener: socket.socket | None = attrs.field(default=None, init=False)
    _file: SocketFile | None = attrs.field(default=None, init=False)
    _watch: Watch | None = attrs.field(default=None, init=False)
    _timer: Timer | None = attrs.field(default=None, init=False)
    _has_refused: bool = attrs.field(default=False, init=False)
    """Since the last peer came."""

    THEN: ClassVar[str] = "listening"

    def open(self) -> None:
        """Listen."""
        self._listener = self._listen()
        self._watch = self.link.loop.watch(self._listener.fileno(), self._accept)
        self.state = State.LISTENING
        self._tell("nobody has called yet")

    def close(self) -> None:
        """End the connection, and listen no more."""
        super().close()
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._file is not None:
            self._file.remove()
            self._file = None

    def _look_again(self) -> None:
        self.state = State.LISTENING
        if self.link.loop.clock() - self._met_at < REST_S:
            self._rest()

    def _listen(self) -> socket.socket:
        address = self.address
        sock: socket.socket | None = None
        try:
            sock = socket.socket(address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            if isinstance(address.sockaddr, str):
                self._file = SocketFile(address.sockaddr)
                self._file.bind(sock)
            else:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(address.sockaddr)
            sock.listen(BACKLOG)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, OSError):
                raise _cannot_listen(self.name, error) from None
            raise
        return sock

    def _accept(self, events: int) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # no descriptors left: it would stay readable, and spin
            log.error("%s: can't accept a peer: %s", self.name, error.strerror)
            self._rest()
            return
        if self.sock is not None and _has_hung_up(self.sock):
            self.lost("the peer has hung up")
        if self.state is State.UP:
            self._refuse(sock)
            return
        sock.setblocking(False)
        self._has_refused = False
        self._meet(sock)

    def _refuse(self, sock: socket.socket) -> None:
        sock.close()
        self.link.count("peer_refused")
        if not self._has_refused:  # it is the caller who decides how often that is
            self._has_refused = True
            log.warning("%s: a second peer calls, and is refused", self.name)

    def _rest(self) -> None:
        watch = self._watch
        assert watch is not None
        watch.set(read=False)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.link.timer(REST_S, lambda: watch.set(read=True))


def _has_hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def _cannot_listen(name: str, error: OSError) -> BackendError:
    match error.errno:
        case errno.EADDRINUSE:
            remedy = "stop the process that listens there, or choose another port"
        case errno.EADDRNOTAVAIL:
            remedy = "give an address that this host has"
        case errno.EACCES:
            remedy = "choose a port from 1024 on"
        case _:
            remedy = "see what this host lacks"
    return BackendError(f"{name}: cannot listen: {(error.strerror or '').lower()}; {remedy}")
