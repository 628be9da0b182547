"""How a driver reaches its device: by the vhost face or by the registers of a PCI function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import attrs
from vnic.testing import DriverError

if TYPE_CHECKING:
    from vnic.features import Features
    from vnic.hookspecs import QueueAddresses, VhostFace
    from vnic.nic import Nic


@attrs.frozen(kw_only=True)
class Handlers:
    """Whom the device's interrupts call."""

    queues: Sequence[Callable[[], None]]
    """Each queue's own."""
    shared: Callable[[], None]
    """Called where an interrupt doesn't say which queue."""
    config: Callable[[], None]
    """The configuration has changed."""


class Transport(Protocol):
    """A device at rest, from its making on; the driver negotiates, starts, and stops it."""

    offered: Features

    @property
    def broken(self) -> bool:
        """Whether the device asks for a reset."""

    def negotiate(self, features: Features) -> None:
        """Tell the driver's choice.

        Raises: DriverError, when the device refuses it.
        """

    def read_config(self, offset: int, n: int, /) -> bytes:
        """Read the device's configuration."""

    def kick(self, index: int, /) -> None:
        """Tell the device that buffers were made available."""

    def start(self, queues: Sequence[QueueAddresses], handlers: Handlers) -> None:
        """Start the queues.  Frames flow once they are kicked.

        Raises: DriverError, when they can't be.
        """

    def stop(self) -> list[int]:
        """Stop them; return the avail index of each, where they can be started again."""


class VhostTransport:
    """The vhost face.  It has no interrupt for its configuration, and can stop and go on."""

    broken = False

    def __init__(self, nic: Nic) -> None:
        """Raises: DriverError, for a NIC without a vhost face."""
        if nic.vhost is None:
            raise DriverError(f"{nic.name}: has no vhost face for a virtio-net driver")
        self._face: VhostFace = nic.vhost
        self._n_queues = 0
        self.offered = self._face.get_features()
        self.kick: Callable[[int], None] = self._face.kick
        self.read_config: Callable[[int, int], bytes] = self._face.read_config

    def negotiate(self, features: Features) -> None:
        """Tell the driver's choice."""
        self._face.set_features(features)

    def start(self, queues: Sequence[QueueAddresses], handlers: Handlers) -> None:
        """Start the queues."""
        self._n_queues = len(queues)
        for index, (queue, handler) in enumerate(zip(queues, handlers.queues, strict=True)):
            self._face.start_queue(index, queue, handler)
        for index in range(len(queues)):
            self._face.enable_queue(index, True)

    def stop(self) -> list[int]:
        """Stop them; they may be started again where they were."""
        return [self._face.stop_queue(index) for index in range(self._n_queues)]
