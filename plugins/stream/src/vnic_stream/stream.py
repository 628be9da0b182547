"""``stream:/run/passt.sock``: Ethernet on a byte stream, as QEMU and passt speak it.

A burst goes out in one system call, each frame behind its length, straight from where it lies;
what comes in is read in large pieces, and a burst is made of it where it lies.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Final

from vnic import hookimpl
from vnic.burst import Burst, Room
from vnic.errors import ConfigError
from vnic.link import Joint, JointWatch

from vnic_stream.addresses import Passed, parse_name
from vnic_stream.caller import BackOff, Caller
from vnic_stream.frames_kernel import Incoming, Outgoing
from vnic_stream.listener import Listener
from vnic_stream.options import RECONNECT, StreamOptions
from vnic_stream.peer import PassedOn, Peer

STEPS_PER_RECV: Final = 4
"""Reads and bursts in one ``recv``, so that other NICs get their turn."""

COUNTERS: Final = {
    "tx_drop_disconnected": "frames from the guest that the connection's end met, whole or in part",
    "tx_drop_too_long": "frames from the guest longer than any Ethernet frame",
    "rx_drop_disconnected": "frames for the guest that waited here, whole or in part, at that end",
    "peer_lost": "connections that came to an end",
    "peer_no_frame": "of those, ended here because the peer announced what is no frame",
    "peer_refused": "peers that called while another one was connected",
}


class Stream:
    """The backend behind ``stream``."""

    Options = StreamOptions

    def __init__(self) -> None:
        self._peer: Peer | None = None
        self._sock: socket.socket | None = None
        self._watch: JointWatch | None = None
        self._incoming = Incoming()
        self._outgoing = Outgoing()
        self._full = False
        self._paused = False
        self._was_read = False

    # ---- hooks

    @hookimpl
    def init(self, name: str, options: StreamOptions, link: Joint) -> None:
        """Begin to call the peer, or to listen; that there is none yet is no error."""
        self._link = link
        self._peer = self._make_peer(name, options)
        try:
            self._peer.open()
        except BaseException:
            self.cleanup()
            raise

    @hookimpl
    def cleanup(self) -> None:
        """Hang up, and listen no more."""
        peer, self._peer = self._peer, None
        if peer is not None:
            peer.close()

    @hookimpl
    def send(self, burst: Burst) -> int:
        """Write the frames; a part of one that doesn't fit is copied, and goes first next time."""
        sock, watch, n = self._sock, self._watch, len(burst)
        if sock is None or watch is None:
            self._link.count("tx_drop_disconnected", n)
            return n
        taken, too_long, error = self._outgoing.send(sock.fileno(), burst)
        if too_long:
            self._link.count("tx_drop_too_long", too_long)
        if error:
            self._link.count("tx_drop_disconnected", n - taken)
            self._lost(os.strerror(error).lower())
            return n
        self._full = taken < n
        if self._full or self._outgoing.waiting:
            watch.set(write=True)
        return taken

    @hookimpl
    def recv(self, room: Room) -> int:
        """Deliver what came, and read more of it; what is left after some steps is announced."""
        incoming, consumed = self._incoming, 0
        self._was_read = True
        for _ in range(STEPS_PER_RECV):
            if incoming.find():
                n = room.put(incoming.burst, incoming.start)
                incoming.taken(n)
                consumed += n
                if room.full:
                    return consumed
            elif not self._read():
                return consumed
        if incoming.find() or incoming.too_long:
            self._link.readable()
        return consumed

    @hookimpl
    def recv_enable(self) -> None:
        """The guest has room; the link watches the socket again."""
        self._paused = False

    @hookimpl
    def recv_disable(self) -> None:
        """The guest has none."""
        self._paused = True

    # ---- the connection

    def _make_peer(self, name: str, options: StreamOptions) -> Peer:
        where = parse_name(name, "stream")
        of_all: dict[str, Any] = {
            "name": name,
            "link": self._link,
            "begin": self._begin,
            "end": self._end,
        }
        if isinstance(where, Passed):
            if options.listen or options.reconnect:
                raise ConfigError(
                    f"{name}: a passed socket has its peer; leave out listen and reconnect"
                )
            return PassedOn(passed=where, **of_all)
        if options.listen:
            return Listener(address=where, **of_all)
        back_off = BackOff(*options.reconnect or RECONNECT)
        return Caller(address=where, back_off=back_off, **of_all)

    def _begin(self, sock: socket.socket) -> None:
        self._sock = sock
        self._watch = self._link.watch(
            sock.fileno(), error=self._hung_up, writable=self._writable, write=self._full
        )

    def _end(self) -> None:
        if self._watch is not None:
            self._watch.close()
        self._sock = self._watch = None
        self._link.count("peer_lost")
        if lost := self._outgoing.reset():
            self._link.count("tx_drop_disconnected", lost)
        if lost := self._incoming.reset():
            self._link.count("rx_drop_disconnected", lost)

    def _lost(self, why: str) -> None:
        if self._peer is not None:
            self._peer.lost(why)

    def _read(self) -> bool:
        """Read what there is; whether there was anything."""
        sock, incoming = self._sock, self._incoming
        if sock is None:
            return False
        if incoming.too_long:
            self._link.count("peer_no_frame")
            self._lost(
                f"the peer announces a frame of {incoming.too_long} bytes, which none can have: "
                "it speaks another protocol"
            )
            return False
        try:
            n = sock.recv_into(incoming.space())
        except BlockingIOError:
            return False
        except OSError as error:
            self._lost((error.strerror or str(error)).lower())
            return False
        if n == 0:
            self._lost("the peer has hung up")
            return False
        incoming.came(n)
        return True

    def _writable(self) -> None:
        """Finish the frame that was sent in part, then let the guest go on."""
        sock, watch = self._sock, self._watch
        if sock is None or watch is None:
            return
        error = self._outgoing.flush(sock.fileno())
        if error:
            self._lost(os.strerror(error).lower())
        elif self._outgoing.waiting:
            watch.set(write=True)
        elif self._full:
            self._full = False
            self._link.writable()

    def _hung_up(self) -> None:
        """Let the guest have what the peer sent before; it is over when that was read.

        Or when nobody reads: a hang-up is reported as long as the socket is watched.
        """
        self._was_read = False
        if not self._paused:
            self._link.readable()
        if not self._was_read:
            self._lost("the peer has hung up")
