"""``dgram:/run/a.sock,peer=/run/b.sock``: an Ethernet frame in each datagram, as QEMU speaks it."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from typing import Final

from vnic import hookimpl
from vnic.burst import Burst, Room
from vnic.errors import BackendError, ConfigError
from vnic.link import Joint, JointWatch
from vnic.loop import Timer
from vnic.sockets import SocketFile

from vnic_stream.addresses import Address, Passed, parse_name
from vnic_stream.options import DgramOptions

log: Final = logging.getLogger("vnic.stream")

LOOK_S: Final = 1.0
"""How often it is looked who is at a UNIX socket's path: a peer that was started again is another
socket, and has to be connected to anew."""

COUNTERS: Final = {
    "tx_drop_no_peer": "frames from the guest that met no socket at the peer's address",
    "tx_drop_too_long": "frames from the guest longer than such a datagram may be",
    "tx_drop_other": "frames from the guest that the kernel refused for another reason",
    "rx_drop_other": "frames for the guest that the kernel failed to hand over",
}

_NO_PEER: Final = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOTCONN)
"""What a socket says once the peer's has been closed."""

_TX_DROPS: Final = {
    **dict.fromkeys(_NO_PEER, "tx_drop_no_peer"),
    errno.EMSGSIZE: "tx_drop_too_long",
}


class Dgram:
    """The backend behind ``dgram``.

    UDP tells nobody whether there is a peer, so that link is always up; a UNIX socket's is up while
    there is a socket at the peer's path.
    """

    Options = DgramOptions

    def __init__(self) -> None:
        self._sock: socket.socket | None = None
        self._file: SocketFile | None = None
        self._watch: JointWatch | None = None
        self._timer: Timer | None = None
        self._peer: Address | None = None

    # ---- hooks

    @hookimpl
    def init(self, name: str, options: DgramOptions, link: Joint) -> None:
        """Bind the socket and connect it: it receives from its peer, and from nobody else."""
        self._name = name
        self._link = link
        where = parse_name(name, "dgram")
        try:
            if isinstance(where, Passed):
                if options.peer is not None:
                    raise ConfigError(f"{name}: a passed socket has its peer; leave peer out")
                self._sock = where.open(socket.SOCK_DGRAM, name)
            else:
                self._sock = self._open(where, options.peer)
            self._watch = link.watch(self._sock.fileno(), error=self._clear_error)
            if self._peer is not None and self._peer.is_unix:
                self._look()
        except BaseException:
            self.cleanup()
            raise

    @hookimpl
    def cleanup(self) -> None:
        """Close the socket, and remove its name."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._file is not None:
            self._file.remove()
            self._file = None

    @hookimpl
    def send(self, burst: Burst) -> int:
        """Send the frames, one system call each; full where the peer's UNIX socket is."""
        if self._sock is None or self._watch is None:
            return len(burst)
        taken, failed, error = burst.writev(self._sock.fileno(), header=False)
        if failed:
            self._link.count(_TX_DROPS.get(error, "tx_drop_other"), failed)
            if error in _NO_PEER:
                self._gone()
        if taken < len(burst):
            self._watch.set(write=True)
        return taken

    @hookimpl
    def recv(self, room: Room) -> int:
        """Read datagrams straight into the guest's buffers."""
        if self._sock is None:
            return 0
        n, error = room.readv(self._sock.fileno(), header=False)
        if error and error not in _NO_PEER:  # those are about frames that were sent
            self._link.count("rx_drop_other")
        return n

    # ---- the socket

    def _open(self, local: Address, peer: Address | None) -> socket.socket:
        name = self._name
        if peer is None:
            raise ConfigError(f"{name}: whom to send to isn't said; add peer=ADDRESS")
        if local.family != peer.family:
            raise ConfigError(f"{name}: {peer} is an address of another kind; give two of a kind")
        if local == peer:
            raise ConfigError(f"{name}: peer={peer}: this NIC's own address; give the peer's")
        if local.is_multicast:
            raise ConfigError(f"{name}: a group of hosts; give an address of this one")
        self._peer = peer
        sock: socket.socket | None = None
        try:
            sock = socket.socket(local.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            if isinstance(local.sockaddr, str):
                self._file = SocketFile(local.sockaddr)
                self._file.bind(sock)
            else:
                sock.bind(local.sockaddr)
                sock.connect(peer.sockaddr)
        except BaseException as error:
            if sock is not None:
                sock.close()
            if isinstance(error, OSError):
                raise BackendError(
                    f"{name}: cannot be opened, to {peer}: {(error.strerror or '').lower()}; "
                    "give an address that this host has and nobody uses, and a peer that it reaches"
                ) from None
            raise
        return sock

    def _look(self) -> None:
        """Connect to whatever socket is at the peer's path now."""
        if self._sock is None or self._peer is None:
            return
        code = self._sock.connect_ex(self._peer.sockaddr)
        if code == 0:
            self._link.up()
        else:
            why = os.strerror(code).lower()
            self._link.down(f"{self._name}: nobody at {self._peer}: {why}; waiting for it")
        self._timer = self._link.timer(LOOK_S, self._look)

    def _gone(self) -> None:
        """Nobody received what was sent."""
        if self._timer is not None:  # a UNIX socket's: another one may be there already
            self._timer.cancel()
            self._look()
        elif self._sock is not None and self._sock.family is socket.AF_UNIX:
            self._link.down(f"{self._name}: its peer has closed it; pass another socket")

    def _clear_error(self) -> None:
        """Take note of what came of a frame that was sent, without which it is told for ever.

        And watch anew: while the link is down, a watch ends with the error that it reports.
        """
        if self._sock is None or self._watch is None:
            return
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        log.debug("%s: %s", self._name, os.strerror(code))
        self._watch.close()
        if _is_shut_down(self._sock):
            self._watch = None
            self._link.down(f"{self._name}: its socket was shut down; pass another one")
        else:
            # The old one may have waited to send.
            self._watch = self._link.watch(self._sock.fileno(), write=True, error=self._clear_error)


def _is_shut_down(sock: socket.socket) -> bool:
    """Whether a socket is shut down both ways, as whoever passed it may do; told for ever, too."""
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
