"""The virtio-net device: two rings, a link, and the negotiation between them.

One frame from the guest: a kick schedules `transmit`; it parses a burst, gives it to the link, and
completes what was taken.  One frame to the guest: the link is readable, `receive` opens the room
over the posted buffers, the backend fills it, and the ring shows the driver what was filled.
While there is work nobody kicks: the loop polls (`_poll`), and arms the rings before it sleeps, or
before it leaves them alone because others have work and they have none.

It has one interface, the vhost face; registers in front of that are the pci face (`pci.VirtioPci`).

Spec: Virtio 1.3, "Network Device".
"""

from __future__ import annotations

import logging
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from vnic import Features, hookimpl
from vnic.burst import Burst, Room
from vnic.config import default_mac
from vnic.errors import PeerError
from vnic.features import HOST_OFFLOADS, NONE, OFFLOADS, asked_by, names
from vnic.hookspecs import Host, QueueAddresses, ResetKind
from vnic.link import Link
from vnic.loop import Poller
from vnic.pci import Function

from vnic_virtio_net.options import VirtioNetOptions
from vnic_virtio_net.pci import VirtioPci
from vnic_virtio_net.ring_kernel import RxRing, TxRing

log = logging.getLogger("vnic.virtio_net")

RECEIVEQ: Final = 0
TRANSMITQ: Final = 1
"""Spec: "Network Device", "Virtqueues"."""

BURSTS_PER_CALL: Final = 4
"""Bursts that one `transmit` sends before other NICs get their turn."""

RING_FEATURES: Final = (
    Features.VERSION_1
    | Features.MRG_RXBUF
    | Features.INDIRECT_DESC
    | Features.EVENT_IDX
    | Features.IN_ORDER
)

VIRTIO_NET_S_LINK_UP: Final = 1

_CONFIG: Final = struct.Struct("<6sHHH")
"""MAC, status, most queue pairs, MTU.  Spec: "Device configuration layout"."""


class Plugin:
    """The frontend behind ``virtio-net``.  Its faces are `vhost` and `pci`."""

    Options = VirtioNetOptions
    n_queues: int = 2

    _options: VirtioNetOptions
    _link: Link
    _host: Host

    def __init__(self) -> None:
        self._features = NONE
        self._burst = Burst()
        self._rx: RxRing | None = None
        self._tx: TxRing | None = None
        self._room: Room | None = None
        self._interrupts: list[Callable[[], None]] = [_nobody, _nobody]
        self._enabled = [False, False]
        self._waiting = False  # the link is full: frames stay in the ring until it is writable
        self._starved = False  # the guest has posted no room that would do
        self._receiving = False
        self._poller: Poller | None = None
        self._wake: Callable[[], None] = _nobody  # what is polled is armed no more
        self._registers: VirtioPci | None = None
        self._failed = False
        self._counts: Counter[str] = Counter()  # of rings and rooms that are gone

    @property
    def vhost(self) -> Plugin:
        """The face that vhost servers drive: this class has its methods."""
        return self

    @property
    def pci(self) -> Function | None:
        """The face of those who pass on register accesses; there from `init` on."""
        return self._registers.function if self._registers is not None else None

    # ---- hooks

    @hookimpl
    def init(self, options: VirtioNetOptions, link: Link, host: Host) -> None:
        """Build the device, at rest."""
        self._options = options
        self._link = link
        self._host = host
        self.mac = options.mac or default_mac(link.name)
        self._registers = VirtioPci(self, host, _CONFIG.size)

    @hookimpl
    def cleanup(self) -> None:
        """Forget the guest."""
        self.reset(ResetKind.SESSION)

    @hookimpl
    def reset(self, kind: ResetKind) -> None:
        """Stop both queues and forget what was negotiated."""
        for index in range(self.n_queues):
            self.stop_queue(index)
            self._enabled[index] = False
        self._features = NONE
        self._failed = False
        if self._registers is not None:
            self._registers.reset()

    @hookimpl
    def transmit(self) -> None:
        """Send what the guest has made available, a few bursts at the most."""
        self._waiting = False
        if self._tx is not None:
            self._tx.park()
            self._wake()
            for _ in range(BURSTS_PER_CALL):
                if not self._send_burst(self._tx):
                    return
            self._host.schedule(self.transmit)

    @hookimpl
    def receive(self) -> None:
        """Deliver what the link has into what the guest has posted."""
        rx, room = self._rx, self._room
        if rx is None or room is None or self._receiving:
            return
        self._receiving = True
        room.open()
        self._link.recv(room)
        delivered = room.close()
        self._receiving = False
        if room.full:
            # Until `_refill`: a backend may deliver from within `recv_enable`, fill the ring and be
            # paused, and the `receive` that follows finds nothing, not room.
            self._starved = True
            self._wake()
        if delivered and rx.publish():
            self._interrupts[RECEIVEQ]()
        if rx.error is not None:
            self._fail(rx.error)

    @hookimpl
    def link_changed(self, up: bool) -> None:
        """Show it in the status; a VMM that speaks vhost has a carrier of its own to show."""
        log.info("%s: carrier %s", self._link.name, "up" if up else "down")
        if self._registers is not None and Features.STATUS in self._features:
            self._registers.config_changed()

    # ---- the datapath

    def _send_burst(self, tx: TxRing) -> bool:
        """Send one burst; whether there may be more to send now."""
        burst = self._burst
        n = tx.parse(burst)
        taken = n
        if n and self._enabled[TRANSMITQ]:
            taken = self._link.send(burst)
        if self._tx is not tx:
            return False  # stopped from within the send
        if tx.complete(burst, taken):
            self._interrupts[TRANSMITQ]()
        if taken < n:
            self._waiting = True
        if tx.error is not None:
            self._fail(tx.error)
            return False
        return taken == n != 0

    def _refill(self) -> None:
        """The guest has posted more room: go on delivering."""
        if self._rx is not None and self._enabled[RECEIVEQ]:
            self._rx.park()
            self._starved = False
            self._link.recv_enable()
            self.receive()

    def _poll(self) -> bool:
        busy = False
        if self._starved and self._rx is not None and self._rx.grown():
            self._refill()
            busy = True
        if self._tx is not None and not self._waiting and self._tx.ready():
            self._tx.park()
            self._send_burst(self._tx)
            busy = True
        return busy

    def _arm(self) -> bool:
        found = False
        if self._starved and self._rx is not None:
            found = self._rx.arm()
        if self._tx is not None and not self._waiting:
            found = self._tx.arm() or found
        return found

    def _fail(self, reason: str) -> None:
        """The driver broke a ring: stop until it resets the device."""
        if not self._failed:
            self._failed = True
            for index in range(self.n_queues):
                self.stop_queue(index)
            self._host.failed(reason)
            if self._registers is not None:
                self._registers.device_failed()

    # ---- the vhost face

    def get_features(self) -> Features:
        """Return the rings' features, and the offloads that the link has."""
        offered = RING_FEATURES | Features.MAC | Features.STATUS
        if self._options.mtu is not None:
            offered |= Features.MTU
        if self._options.offload:
            offered |= self._link.offers
        return offered

    def set_features(self, features: Features) -> None:
        """Take the driver's choice, and tell the link of its offloads."""
        # As ints: ~ on a flag forgets the bits that have no name here.
        excess = int(features) & ~int(self.get_features())
        if excess:
            raise PeerError(f"features: {names(Features(excess))} were not offered")
        self._failed = False
        self._features = features
        self._link.set_features(features & OFFLOADS)

    def start_queue(self, index: int, queue: QueueAddresses, interrupt: Callable[[], None]) -> None:
        """Begin to serve a queue where the driver says that it lies."""
        self._check_index(index)
        self.stop_queue(index)
        if self._failed:
            return
        features = self._features
        modern = bool(features & (Features.VERSION_1 | Features.MRG_RXBUF))
        options: dict[str, Any] = {
            "event_idx": Features.EVENT_IDX in features,
            "indirect": Features.INDIRECT_DESC in features,
            "header_len": 12 if modern else 10,
        }
        self._interrupts[index] = interrupt
        if index == TRANSMITQ:
            self._tx = TxRing(self._host.memory, queue, **options)
            self._tx.allow(int(asked_by(features)))
            self._waiting = False
            self._host.schedule(self.transmit)
        else:
            self._rx = RxRing(
                self._host.memory,
                queue,
                mergeable=Features.MRG_RXBUF in features,
                offloads=int(features & OFFLOADS & ~HOST_OFFLOADS),
                **options,
            )
            self._room = Room(self._rx.capsule, self._rx)
            self._starved = True
            if self._enabled[RECEIVEQ]:
                self._host.schedule(self._refill)
        if self._poller is None:
            self._poller = self._host.loop.poll(self._poll, self._arm)
            self._wake = self._poller.wake

    def stop_queue(self, index: int) -> int:
        """Stop a queue; what it has not shown as used is taken again later."""
        self._check_index(index)
        self._interrupts[index] = _nobody
        base = 0
        if index == TRANSMITQ and self._tx is not None:
            base = self._tx.base
            self._counts.update(self._tx.counters)
            self._tx = None
            self._link.send_reset()
        elif index == RECEIVEQ and self._rx is not None:
            self._link.recv_discard()
            base = self._rx.base
            if self._room is not None:
                self._room.reset()
                self._counts.update(self._room.counters)
            self._rx = self._room = None
            self._starved = False
        if self._rx is None and self._tx is None and self._poller is not None:
            self._poller.close()
            self._poller, self._wake = None, _nobody
        return base

    def enable_queue(self, index: int, enabled: bool) -> None:
        """Let frames through a queue, or throw them away."""
        self._check_index(index)
        self._enabled[index] = enabled
        if index == RECEIVEQ:
            if not enabled:
                self._link.recv_discard()
            elif self._rx is not None:
                self._host.schedule(self._refill)
        elif enabled:
            self._host.schedule(self.transmit)

    def kick(self, index: int) -> None:
        """Look at a queue soon."""
        self._check_index(index)
        if index == TRANSMITQ:
            if not self._waiting:
                self._host.schedule(self.transmit)
        elif self._starved:
            self._host.schedule(self._refill)

    def read_config(self, offset: int, n: int) -> bytes:
        """Read ``struct virtio_net_config``."""
        status = VIRTIO_NET_S_LINK_UP if self._link.is_up else 0
        config = _CONFIG.pack(self.mac, status, 1, self._options.mtu or 1500)
        return config[offset : offset + n].ljust(n, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Nothing of it is the driver's to write, since VERSION_1."""

    def counters(self) -> dict[str, int]:
        """Return the counters of both rings since the device was made."""
        counts = Counter(self._counts)
        if self._tx is not None:
            counts.update(self._tx.counters)
        if self._room is not None:
            counts.update(self._room.counters)
        return dict(counts)

    def _check_index(self, index: int) -> None:
        if not 0 <= index < self.n_queues:
            raise PeerError(f"queue {index}: this device has {self.n_queues}")


def _nobody() -> None:
    return
