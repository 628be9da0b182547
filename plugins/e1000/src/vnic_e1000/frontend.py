"""The e1000: registers in front, two rings and a link behind, and a loop that runs them.

One frame from the guest: a write of TDT schedules `transmit`; it parses a burst, gives it to the
link, and completes what was taken.  One frame to the guest: the link is readable, `receive` opens
the room over the posted descriptors, the backend fills it.  A write of RDT matters only when the
guest had run out of buffers.

Spec: 8254x Family of Gigabit Ethernet Controllers Software Developer's Manual.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from vnic import hookimpl
from vnic.burst import Burst, Room
from vnic.config import default_mac
from vnic.features import GUEST_OFFLOADS, HOST_OFFLOADS, NONE, Features
from vnic.hookspecs import Host, ResetKind
from vnic.link import Link
from vnic.pci import Bar, BarKind, Function, Identity

from vnic_e1000.device import Device, IoWindow
from vnic_e1000.eeprom import Eeprom, image
from vnic_e1000.interrupts import Delay, Interrupts
from vnic_e1000.options import E1000Options, Model
from vnic_e1000.registers import BAR_SIZE, Cause
from vnic_e1000.ring_kernel import RxRing, Stats, TxRing

log = logging.getLogger("vnic.e1000")

MEMORY_BAR: Final = 0
IO_BAR: Final = 2

BURSTS_PER_CALL: Final = 4
"""Bursts that one `transmit` sends before other NICs get their turn."""

LONG_RING: Final = 128
"""Descriptors of a receive ring to which frames may come uncut.  The room delivers all segments of
one, or none until there are buffers for all, and 64 KiB at an MSS of 536 are 123 of them.  What
firmware posts is a few buffers and no more: for it the host network cuts.
"""

_UNCUT: Final = GUEST_OFFLOADS & ~Features.GUEST_CSUM

IDENTITIES: Final = {
    Model.I82540EM: Identity(
        vendor=0x8086,
        device=0x100E,
        revision=2,
        class_code=0x020000,
        subsystem_vendor=0x8086,
        subsystem=0x001E,
        min_grant=0xFF,
    ),
    Model.I82545EM: Identity(
        vendor=0x8086,
        device=0x100F,
        revision=1,
        class_code=0x020000,
        subsystem_vendor=0x8086,
        subsystem=0x1001,
        min_grant=0xFF,
    ),
}
"""Spec: "PCI Local Bus Interface", "Mandatory PCI Registers"."""

WRITTEN_NOW: Final = 1
WRITTEN_DELAYED: Final = 2
EMPTIED: Final = 4
"""What `TxRing.complete` returns."""

_TXDW: Final = int(Cause.TXDW)
_TXQE: Final = int(Cause.TXQE)
_RXDMT0: Final = int(Cause.RXDMT0)
_RXO: Final = int(Cause.RXO)
# Numbers, as in all that is done once a burst: an operation on flags takes some microseconds.


class Plugin:
    """The frontend behind ``e1000``.  Its face is `pci`."""

    Options = E1000Options

    pci: Function
    device: Device
    _link: Link
    _host: Host
    _options: E1000Options

    def __init__(self) -> None:
        self._burst = Burst()
        self._waiting = False  # the link is full: frames stay in the ring until it is writable
        self._starved = True  # the guest has posted no room that would do
        self._receiving = False
        self._rx_low = 0  # how few free descriptors are few
        self._was_low = False
        self._asked: Features | None = None  # of the link
        self._may_receive = False  # what the driver allows, of all that it takes
        self._may_transmit = False
        self._loops = False
        self._ready = False

    # ---- hooks

    @hookimpl
    def init(self, options: E1000Options, link: Link, host: Host) -> None:
        """Build the device, at rest."""
        self._options = options
        self._link = link
        self._host = host
        identity = IDENTITIES[options.model]
        self.mac = options.mac or default_mac(link.name)
        stats = Stats()
        self._tx = TxRing(host.memory, stats)
        self._rx = RxRing(host.memory, stats)
        self._room = Room(self._rx.capsule, self._rx)
        interrupts = self._interrupts = Interrupts(host.loop, self._set_irq)
        self._rx_delay = Delay(host.loop, interrupts, Cause.RXT0)
        self._tx_delay = Delay(host.loop, interrupts, Cause.TXDW)
        eeprom = Eeprom(image(self.mac, identity.device, identity.subsystem))
        self.device = Device(
            self, eeprom, self._tx, self._rx, interrupts, self._rx_delay, self._tx_delay
        )
        self.device.set_carrier(link.is_up)
        self._io = IoWindow(self.device)
        self.pci = Function(
            host,
            identity,
            [
                Bar(index=MEMORY_BAR, size=BAR_SIZE, registers=self.device),
                Bar(index=IO_BAR, size=IoWindow.SIZE, registers=self._io, kind=BarKind.IO),
            ],
            on_command=self.mode_changed,
            on_reset=self._reset_device,
        )
        self._ready = True
        self._ask()

    @hookimpl
    def cleanup(self) -> None:
        """Forget the guest."""
        if self._ready:
            self.reset(ResetKind.SESSION)

    @hookimpl
    def reset(self, kind: ResetKind) -> None:
        """Return to power-on: configuration space, registers, PHY."""
        self.pci.reset()
        self._reset_device()

    @hookimpl
    def transmit(self) -> None:
        """Send what the guest has made available, a few bursts at the most."""
        self._waiting = False
        for _ in range(BURSTS_PER_CALL):
            if not self._send_burst():
                return
        self._host.schedule(self.transmit)

    @hookimpl
    def receive(self) -> None:
        """Deliver what the link has into what the guest has posted."""
        if self._receiving or not self._may_receive:
            return
        self._receiving = True
        self._room.open()
        self._link.recv(self._room)
        self._received(self._room.close())
        self._receiving = False

    @hookimpl
    def link_changed(self, up: bool) -> None:
        """Show the guest its carrier."""
        self.device.set_carrier(up)

    # ---- the datapath

    def _send_burst(self) -> bool:
        """Send one burst; whether there may be more to send now."""
        if not self._may_transmit:
            return False
        burst, tx = self._burst, self._tx
        n = tx.parse(burst)
        if n == 0:
            taken = 0
        elif self._loops:
            taken = self._loop_back(burst)
        else:
            taken = self._link.send(burst)
        written = tx.complete(burst, taken)
        if written:
            self._completed(written)
        if taken < n:
            self._waiting = True
        return taken == n != 0 and not written & EMPTIED

    def _completed(self, written: int) -> None:
        cause = _TXQE if written & EMPTIED else 0
        if written & WRITTEN_NOW:
            cause |= _TXDW
        if cause:
            self._interrupts.raise_cause(cause)
        if written & WRITTEN_DELAYED and not written & WRITTEN_NOW:
            self._tx_delay.event()

    def _loop_back(self, burst: Burst) -> int:
        """Receive what was sent; what there is no room for is missed, as on a wire."""
        n = len(burst)
        taken = 0
        if self.device.receiving and self.pci.bus_master and not self._receiving:
            self._receiving = True
            self._room.open()
            taken = self._room.put(burst)
            self._received(self._room.close())
            self._receiving = False
            if taken < n:
                self._interrupts.raise_cause(_RXO)
        self.device.count("MPC", n - taken)
        return n

    def _received(self, delivered: int) -> None:
        """Show the guest what a room has put into its ring."""
        self._rx.sync()
        if self._room.full:
            # Until `_refill`: a backend may deliver from within `recv_enable`, fill the ring and be
            # paused, and the `receive` that follows finds nothing, not room.
            self._starved = True
            self.device.count("RNBC")
        if delivered:
            low = self._rx.n_owned <= self._rx_low
            if low and not self._was_low:
                self._interrupts.raise_cause(_RXDMT0)
            self._was_low = low
            self._rx_delay.event()

    def _refill(self) -> None:
        """The guest has posted more room: go on delivering."""
        if self._may_receive and self._starved:
            self._starved = False
            self._was_low = self._rx.n_owned <= self._rx_low
            self._link.recv_enable()
            self.receive()

    # ---- what the device tells

    def tail_moved(self) -> None:
        """There may be frames to transmit."""
        if not self._waiting:
            self._host.schedule(self.transmit)

    def room_made(self) -> None:
        """There may be buffers to receive into."""
        if self._starved:
            self._host.schedule(self._refill)

    def mode_changed(self) -> None:
        """Receiver, transmitter, loopback or bus mastering: start or stop what that is about."""
        if not self._ready:
            return
        device, master = self.device, self.pci.bus_master
        self._loops = device.loopback
        receive = self._may_receive = device.receiving and master and not self._loops
        transmit = self._may_transmit = device.transmitting and master
        self._rx_low = device.rx_threshold
        self._ask()
        if receive:
            self._starved = True
            self._host.schedule(self._refill)
        else:
            self._link.recv_discard()
            self._room.reset()
        if transmit:
            self._host.schedule(self.transmit)

    def _ask(self) -> None:
        """Ask the link for the offloads that the driver's rings are fit for."""
        features = GUEST_OFFLOADS | HOST_OFFLOADS if self._options.offload else NONE
        if self.device["RDLEN"] // 16 < LONG_RING:
            features = features & ~_UNCUT
        if features != self._asked:
            self._asked = features
            self._link.set_features(features)

    def device_reset(self) -> None:
        """The driver has reset the device."""
        self._waiting = False
        self._was_low = False
        self._link.send_reset()
        self.mode_changed()

    def _reset_device(self) -> None:
        self.device.phy.reset()
        self._io.reset()
        self.device.reset()
        self.device_reset()

    def _set_irq(self, level: bool) -> None:
        self.pci.set_irq(level)

    def counters(self) -> dict[str, int]:
        """Return what became of frames since the NIC was made."""
        counts = Counter(self._room.counters)
        counts.update(self._tx.counters)
        counts["rx_bad_buffers"] += self._rx.n_bad_buffers
        return dict(counts)
