"""What a guest's driver can do, whatever the NIC: for contract tests, benchmarks and the demo.

A frontend's distribution brings its driver, behind an entry point of ``vnic.drivers`` with the
frontend's own prefix.  It is written from the NIC's specification, not from the frontend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from vnic.features import Features
    from vnic.nic import Nic
    from vnic.testing.host import SoftwareHost


class DriverError(Exception):
    """The device did what its specification forbids; the driver says what, and stops."""


class Driver(Protocol):
    """The driver of one NIC in one software guest.

    All is done in the caller's thread; where the loop runs in another, take its lock.  A frame
    starts at the destination address.  A header is ``struct virtio_net_hdr_v1``: 12 bytes.  Of a
    NIC that has none, zeroes, but for what its descriptors say in other words.
    """

    mac: bytes
    mtu: int
    features: Features
    """What was negotiated, in virtio's words."""
    interrupts: int
    """How often the NIC interrupted, for whatever reason."""
    on_interrupt: Callable[[], None] | None
    """Called by each interrupt.  It may schedule calls of the driver, and may not make them."""

    def __init__(self, nic: Nic, host: SoftwareHost, **options: Any) -> None:
        """Negotiate, make the rings, post receive buffers, start.

        Raises: DriverError, for a device that can't be driven.
        """

    def send(self, frames: Sequence[Buffer], headers: Sequence[bytes | None] | None = None) -> int:
        """Put copies of the frames in the ring, kick if that is wanted; return how many fitted.

        Raises: DriverError, here and below, for what the device did since the last call.
        """

    def recv(self, limit: int = 256) -> list[tuple[bytes, bytes]]:
        """Return (frame, header) of at most ``limit`` frames, oldest first.

        Their buffers are posted again.  Fewer than ``limit``: the next one interrupts.
        """

    def prepare_bulk(
        self, frames: Sequence[Buffer], headers: Sequence[bytes | None] | None = None
    ) -> None:
        """Lay out what `send_bulk` sends: these frames, in turn.

        Raises: RuntimeError, while frames of `send` are in the ring.
        """

    def send_bulk(self, n: int) -> int:
        """Send the next ``n`` prepared frames from where they lie; return how many fitted."""

    def recv_bulk(self, n: int) -> int:
        """Take up to ``n`` frames: look at each one's start, count it, post its buffers again."""

    @property
    def n_received(self) -> int:
        """How many frames `recv` and `recv_bulk` have taken."""

    @property
    def n_received_bytes(self) -> int:
        """And their bytes."""

    @property
    def n_outstanding(self) -> int:
        """How many sent frames the device has not completed, as far as it can be seen now."""

    def check(self) -> None:
        """Look at the device at rest: nothing may be due that it did not interrupt for.

        Call it when the loop has nothing left to do.

        Raises: DriverError.
        """

    def stop(self) -> None:
        """Stop the device.  Twice is allowed."""
