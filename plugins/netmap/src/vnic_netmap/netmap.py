"""``netmap:eth0``: a port of the kernel's netmap module as a backend."""

from __future__ import annotations

import errno
import logging
from typing import Final

from vnic import hookimpl
from vnic.burst import BURST_MAX, Burst, Room
from vnic.features import GUEST_OFFLOADS, NONE, Features
from vnic.link import Joint, JointWatch

from vnic_netmap.abi import NM_MAX_SLOTS
from vnic_netmap.names import PortName, parse
from vnic_netmap.options import NetmapOptions
from vnic_netmap.port import Port
from vnic_netmap.ring_kernel import COUNTERS as RING_COUNTERS
from vnic_netmap.ring_kernel import Rings

log = logging.getLogger("vnic.netmap")

COUNTERS: Final = {
    **RING_COUNTERS,
    "netmap_drop_no_tx": "frames from the guest on a port that is only listened to",
    "netmap_drop_gone": "frames from the guest that found the port gone",
}

_DISCARD_SLOTS: Final = 1024
"""Slots that one call gives back unread: a ring of the usual size."""

_TURN_FRAMES: Final = NM_MAX_SLOTS
"""After which another receive ring has its turn: more than what one of them holds."""

_WITH_HEADER: Final = GUEST_OFFLOADS | Features.CSUM | Features.HOST_TSO4 | Features.HOST_TSO6
"""What may pass where there is a header.

To the guest: all that another port's user may send.  From it: what the module can do for a
receiver that has no header.  It drops USO there, and knows nothing of ECN; the link does those.
"""


class Netmap:
    """A netmap port behind a NIC: a NIC's rings, the host's, a pipe, or a port of a VALE switch."""

    Options = NetmapOptions

    def __init__(self) -> None:
        self._port: Port | None = None
        self._watch: JointWatch | None = None
        self._capabilities = NONE
        self._delivering = False
        self._ring = 0  # the receive ring whose turn it is
        self._turn = _TURN_FRAMES  # how many more of its frames are taken before the next one's
        self._reason = ""
        self._told: set[str] = set()

    @hookimpl
    def init(self, name: str, options: NetmapOptions, link: Joint) -> None:
        """Register the port, map its memory, wait for frames."""
        self.open(name, parse(name), options, link)

    def open(self, shown: str, name: PortName, options: NetmapOptions, link: Joint) -> None:
        """Do what ``init`` does with a name that was read already; ``shown`` is it in errors.

        Raises: ConfigError or BackendError, with nothing left open.
        """
        self._name = shown
        self._link = link
        self._port = port = Port.open(shown, name, options)
        try:
            if port.header_len:
                self._capabilities = _WITH_HEADER
            self._watch = link.watch(port.fd, read=port.rings.n_rx > 0, error=self._look)
        except BaseException:
            self.cleanup()
            raise

    @hookimpl
    def cleanup(self) -> None:
        """Let go of the port.  While a room has frames of it, that waits until it is done."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        port, self._port = self._port, None
        if port is not None and not self._delivering:
            port.close()

    @hookimpl
    def send(self, burst: Burst) -> int:
        """Copy the frames into slots, and have them sent with one system call."""
        port, watch, n = self._port, self._watch, len(burst)
        if port is None or watch is None:
            return n
        rings = port.rings
        if not rings.n_tx:
            self._link.count("netmap_drop_no_tx", n)
            return n
        taken = rings.send(burst)
        try:
            port.txsync()
            while taken < n:
                # More than the rings hold: what has left may have made room.
                more = rings.send(burst, taken)
                if not more:
                    rings.wait_to_send()
                    port.txsync()
                    watch.set(write=True)
                    break
                taken += more
                port.txsync()
        except OSError as error:
            self._fail(error)
            self._link.count("netmap_drop_gone", n)
            return n
        self._count(rings)
        return taken

    @hookimpl
    def recv(self, room: Room) -> int:
        """Offer the frames in the receive rings where they lie; a burst of them at the most."""
        port = self._synced()
        if port is None:
            return 0
        self._delivering = True
        try:
            n = self._deliver(port, room)
        finally:
            self._delivering = False
            if self._port is not port:
                port.close()
        self._count(port.rings)
        return n

    @hookimpl
    def recv_discard(self) -> int:
        """Give the slots of pending frames back: only pointers move."""
        port = self._synced()
        if port is None:
            return 0
        n = port.rings.discard(_DISCARD_SLOTS)
        self._count(port.rings)
        return n

    @hookimpl
    def get_capabilities(self) -> Features:
        """Return what the header can say; without one: nothing."""
        return self._capabilities

    def _synced(self) -> Port | None:
        """Return the port, its receive rings up to date; None where it is gone, or goes now."""
        port = self._port
        if port is not None:
            try:
                port.rxsync()
            except OSError as error:
                self._fail(error)
                return None
        return port

    def _deliver(self, port: Port, room: Room) -> int:
        """Take rings by turns: in order, so that what a sender put into several stays in order."""
        rings, n, n_empty = port.rings, 0, 0
        while n < BURST_MAX and n_empty < rings.n_rx:
            offered = rings.gather(self._ring, min(BURST_MAX - n, self._turn))
            if offered:
                taken = room.put(rings.burst)
                rings.consume(taken)
                n += taken
                if taken < offered or self._port is not port:
                    break
                n_empty = 0
                self._turn -= taken
            else:
                n_empty += 1
            if not offered or not self._turn:
                self._ring, self._turn = (self._ring + 1) % rings.n_rx, _TURN_FRAMES
        if n_empty == rings.n_rx:
            self._ring = 0
        return n

    # ---- what goes wrong

    def _count(self, rings: Rings) -> None:
        """Count frames that were lost, and log the first of each kind."""
        if not rings.has_dropped:
            return
        for counter, n in rings.dropped().items():
            self._link.count(counter, n)
            if counter not in self._told:
                self._told.add(counter)
                log.warning("%s: %s: %s", self._name, counter, COUNTERS[counter])

    def _look(self) -> None:
        """Find out why poll reports an error, which it does as long as it lasts."""
        if self._port is not None:
            try:
                self._port.rxsync()
            except OSError as error:
                self._fail(error)
            else:
                # The sync calls say nothing of such errors.
                self._reason = (
                    "the module finds its rings in disorder; end what else writes to them"
                )
            self._end()

    def _fail(self, error: OSError) -> None:
        """Note that the port is of no use any more, in the middle of a burst; `_end` says so."""
        if error.errno in (errno.EIO, errno.ENXIO):
            self._reason = "its interface is gone, or its driver; bring it back"
        else:
            self._reason = f"the module fails: {error.strerror}; look at its log (dmesg)"
        self._link.loop.schedule(self._end)

    def _end(self) -> None:
        """Let go of a port that has failed, and take the link down."""
        if self._port is not None:
            self.cleanup()
            self._link.down(f"{self._name}: {self._reason}; then open this NIC again")
