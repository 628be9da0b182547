"""A guest's virtio-net driver: negotiates, posts buffers, sends and receives, and trusts nothing.

It is written from the specification.  What a real driver would shrug off (an id used twice, bytes
beyond a buffer, an interrupt that doesn't come) is a DriverError here.

Spec: Virtio 1.3, "Split Virtqueues"; "Network Device".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Literal

import attrs
from vnic.features import Features, coherent
from vnic.hookspecs import QueueAddresses
from vnic.testing import DriverError, SoftwareHost

from vnic_virtio_net.testing.driver_kernel import Queue, RxQueue, TxQueue
from vnic_virtio_net.testing.pci import PciTransport
from vnic_virtio_net.testing.transport import Handlers, Transport, VhostTransport

if TYPE_CHECKING:
    from typing_extensions import Buffer
    from vnic.nic import Nic

DRIVER_FEATURES: Final = (
    Features.MTU
    | Features.MAC
    | Features.MRG_RXBUF
    | Features.STATUS
    | Features.INDIRECT_DESC
    | Features.EVENT_IDX
    | Features.VERSION_1
    | Features.IN_ORDER
)
"""What a driver asks for unless told otherwise: all but offloads, so that frames arrive as sent."""

RX: Final = 0
TX: Final = 1

_NAMES: Final = ("receive queue", "transmit queue")
_HDR_LEN: Final = 12
_ETH_OVERHEAD: Final = 18
"""Bytes of a frame beyond its MTU: Ethernet header and a VLAN tag."""
_GSO_FRAME_LEN: Final = 65589
"""The longest frame with segmentation offload.  Spec: "Setting Up Receive Buffers"."""
_MRG_BUFFER_LEN: Final = 1536
_GUEST_GSO: Final = (
    Features.GUEST_TSO4 | Features.GUEST_TSO6 | Features.GUEST_USO4 | Features.GUEST_USO6
)
_HOST_GSO: Final = Features.HOST_TSO4 | Features.HOST_TSO6 | Features.HOST_USO

_STATUS_OFFSET: Final = 6
_STATUS_LINK_UP: Final = 1
_MTU_OFFSET: Final = 10


@attrs.frozen
class Shape:
    """How one queue is laid out: ``Shape(1024, cuts=(12, 1518))`` has its headers apart."""

    size: int = 256
    """Entries of the ring: a power of two, at most 32768."""
    cuts: tuple[int, ...] | None = attrs.field(default=None, kw_only=True)
    """Bytes of each descriptor of a buffer, the virtio-net header's included: ``(5, 7, 60, 1500)``.
    A transmitted frame uses as many as it needs.  None: one descriptor, long enough for any frame
    (or, with MRG_RXBUF, for most)."""
    indirect: bool = attrs.field(default=False, kw_only=True)
    """Whether the descriptors are in tables of their own; needs INDIRECT_DESC."""
    n_buffers: int | None = attrs.field(default=None, kw_only=True)
    """How many buffers there are; None: as many as the ring takes and the host has memory for."""


class Driver:
    """A `vnic.testing.Driver` for virtio-net, by either of its faces.

    Queues that can't interrupt (``polling``) say so to the device, for good.
    """

    transport: Transport

    def __init__(
        self,
        nic: Nic,
        host: SoftwareHost,
        *,
        features: Features = DRIVER_FEATURES,
        rx: Shape = Shape(),
        tx: Shape = Shape(),
        polling: bool = False,
        face: Literal["vhost", "pci"] = "vhost",
        messages: bool = True,
    ) -> None:
        """Negotiate ``features`` as far as they are offered, and start.

        By the pci face it is interrupted by ``messages``, or by the pin.

        Raises: DriverError, for a NIC without that face.
        """
        if face == "pci":
            self.transport = PciTransport(nic, host, messages=messages)
        else:
            self.transport = VhostTransport(nic)
        self._polling = polling
        self._started = False
        self._kick_device = self.transport.kick
        self.offered = self.transport.offered
        self.features = coherent(features & self.offered)
        self.transport.negotiate(self.features)
        self.mac = b"\x02\0\0\0\0\0"
        if Features.MAC in self.features:
            self.mac = self.transport.read_config(0, 6)
        self.mtu = 1500
        if Features.MTU in self.features:
            self.mtu = int.from_bytes(self.transport.read_config(_MTU_OFFSET, 2), "little")
        self.interrupts = 0
        self.config_changes = 0
        """How many of those told of the configuration: of the carrier."""
        self.on_interrupt: Callable[[], None] | None = None
        self.rx = RxQueue(_NAMES[RX], host, *self._layout(rx, RX, host.size))
        self.tx = TxQueue(_NAMES[TX], host, *self._layout(tx, TX, host.size))
        if not polling:
            self.rx.arm()
        self.resume()

    def _layout(
        self, shape: Shape, index: int, memory_size: int
    ) -> tuple[int, tuple[int, ...], int, bool, Features]:
        """Fill in what a shape leaves open, with what a driver of these features would take."""
        longest = self.mtu + _ETH_OVERHEAD
        if self.features & (_GUEST_GSO if index == RX else _HOST_GSO):
            longest = _GSO_FRAME_LEN
        cuts = shape.cuts or (_HDR_LEN + longest,)
        if shape.cuts is None and index == RX and Features.MRG_RXBUF in self.features:
            cuts = (_MRG_BUFFER_LEN,)
        if shape.indirect and Features.INDIRECT_DESC not in self.features:
            raise DriverError(f"{_NAMES[index]}: the device doesn't offer INDIRECT_DESC")
        n_buffers = shape.n_buffers
        if n_buffers is None:
            n_buffers = shape.size if shape.indirect else shape.size // len(cuts)
            n_buffers = max(1, min(n_buffers, memory_size // 4 // (sum(cuts) + 64 * len(cuts))))
        return shape.size, cuts, n_buffers, shape.indirect, self.features

    # ---- life

    def resume(self) -> None:
        """Start the queues, where `pause` left them.

        Raises: DriverError, after `stop` by the pci face.
        """
        if self._started:
            return
        queues = [
            QueueAddresses(
                size=queue.size,
                desc_gpa=queue.desc_gpa,
                avail_gpa=queue.avail_gpa,
                used_gpa=queue.used_gpa,
                base=queue.used_idx_now,
            )
            for queue in self._queues
        ]
        handlers = Handlers(
            queues=(self._rx_interrupt, self._tx_interrupt),
            shared=self._shared_interrupt,
            config=self._config_interrupt,
        )
        self.transport.start(queues, handlers)
        self._started = True
        for index, queue in enumerate(self._queues):
            # What was posted while it was stopped, it can't know of.
            queue.kick_due()
            self._kick_device(index)

    def pause(self) -> None:
        """Stop the queues as a migration does: what is posted stays, for `resume`.

        Raises: DriverError, when the device took chains that it didn't give back, and by the pci
        face, which can't.
        """
        if not isinstance(self.transport, VhostTransport):
            raise DriverError("only by the vhost face can a device be paused")
        bases = self._stop_queues()
        for queue, base in zip(self._queues, bases, strict=False):
            if base != queue.used_idx_now:
                raise DriverError(
                    f"{queue.name}: stopped at avail index {base}, with used idx "
                    f"{queue.used_idx_now}: chains were taken and not used"
                )

    def stop(self) -> None:
        """Stop the device, in whatever state it is.  Twice is allowed."""
        self._stop_queues()

    def _stop_queues(self) -> list[int]:
        if not self._started:
            return []
        self._started = False
        return self.transport.stop()

    @property
    def _queues(self) -> tuple[Queue, Queue]:
        return self.rx, self.tx

    @property
    def link_up(self) -> bool:
        """What the device says of its carrier; True where it can't say."""
        if Features.STATUS not in self.features:
            return True
        return bool(self.transport.read_config(_STATUS_OFFSET, 2)[0] & _STATUS_LINK_UP)

    # ---- frames

    def send(self, frames: Sequence[Buffer], headers: Sequence[bytes | None] | None = None) -> int:
        """Put copies of the frames in the ring, kick if that is wanted; return how many fitted.

        When not all did, there will be an interrupt as soon as there is room.
        """
        sent = self.tx.send(frames, headers)
        self._kick(TX, self.tx)
        if sent < len(frames) and not self._polling and self.tx.arm():
            sent += self.tx.send(frames[sent:], None if headers is None else headers[sent:])
            self._kick(TX, self.tx)
        return sent

    def recv(self, limit: int = 256) -> list[tuple[bytes, bytes]]:
        """Return (frame, header) of at most ``limit`` frames, oldest first.

        Fewer than ``limit``: the next one interrupts.
        """
        frames = self.rx.recv(limit)
        while len(frames) < limit and not self._polling and self.rx.arm():
            frames += self.rx.recv(limit - len(frames))
        self._kick(RX, self.rx)
        return frames

    def prepare_bulk(
        self, frames: Sequence[Buffer], headers: Sequence[bytes | None] | None = None
    ) -> None:
        """Lay out what `send_bulk` sends: these frames, in turn.

        Raises: RuntimeError, while there are frames in the ring.
        """
        self.tx.prepare(frames, headers)

    def send_bulk(self, n: int) -> int:
        """Send the next ``n`` prepared frames from where they lie; return how many fitted."""
        sent = self.tx.send_bulk(n)
        self._kick(TX, self.tx)
        if sent < n and not self._polling:
            # Room that came since then is the next call's, which then needs no interrupt.
            self.tx.arm()
        return sent

    def recv_bulk(self, n: int) -> int:
        """Take up to ``n`` frames: look at each one's start, count it, post its buffers again."""
        received = self.rx.recv_bulk(n)
        if received < n and not self._polling and self.rx.arm():
            received += self.rx.recv_bulk(n - received)
        self._kick(RX, self.rx)
        return received

    @property
    def n_received(self) -> int:
        """How many frames `recv` and `recv_bulk` have taken."""
        return self.rx.n_frames

    @property
    def n_received_bytes(self) -> int:
        """And their bytes."""
        return self.rx.n_bytes

    @property
    def n_outstanding(self) -> int:
        """How many sent frames the device has not completed."""
        self.tx.reclaim()
        return self.tx.n_posted

    def _kick(self, index: int, queue: Queue) -> None:
        if queue.kick_due() and self._started:
            self._kick_device(index)

    # ---- interrupts

    def check(self) -> None:
        """Raise, if something is there that an interrupt was asked for and none came.

        Only a device at rest can be judged: call it when the loop has nothing left to do.
        """
        if self.transport.broken:
            raise DriverError("the device needs a reset")
        for queue in self._queues:
            if queue.armed and queue.pending:
                raise DriverError(
                    f"{queue.name}: used idx is {queue.used_idx_now}, an interrupt was asked for "
                    f"and didn't come"
                )

    def _rx_interrupt(self) -> None:
        # As NAPI does: from the first interrupt on the queue is polled, until it's empty.
        self.rx.disarm()
        self._interrupt()

    def _tx_interrupt(self) -> None:
        self.tx.disarm()
        self._interrupt()

    def _shared_interrupt(self) -> None:
        for queue in self._queues:
            queue.disarm()
        self._interrupt()

    def _config_interrupt(self) -> None:
        self.config_changes += 1
        self._interrupt()

    def _interrupt(self) -> None:
        self.interrupts += 1
        if self.on_interrupt is not None:
            self.on_interrupt()
