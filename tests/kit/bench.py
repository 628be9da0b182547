"""A bench for a virtio-net PCI function: its registers, worked by hand."""

from __future__ import annotations

from typing import Final

import attrs
from vnic.features import Features
from vnic.loop import Loop
from vnic.nic import Nic
from vnic.pci import Function
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import Ring, VirtioPciDevice
from vnic_virtio_net.testing.hostile import RX, TX, WRITE
from vnic_virtio_net.testing.pci import DRIVER_OK, NO_VECTOR

from kit.wire import PLAIN, Guards, Wire, open_wire, settle

FRAME: Final = b"\xff" * 6 + b"\x02\0\0\0\0\x09\x08\x00" + bytes(46)


@attrs.define
class Bench:
    """A device, seen by nobody's driver: register by register."""

    loop: Loop
    host: SoftwareHost
    guards: Guards
    nic: Nic
    wire: Wire
    device: VirtioPciDevice
    rings: tuple[Ring, Ring]

    @classmethod
    def on(cls, loop: Loop) -> Bench:
        """Make one, at rest."""
        host = SoftwareHost(loop, 1 << 20)
        guards = Guards.around(host)
        nic, wire = open_wire(host)
        assert nic.pci is not None
        rings = (Ring(host, 8), Ring(host, 8))
        return cls(loop, host, guards, nic, wire, VirtioPciDevice(nic.pci), rings)

    @property
    def function(self) -> Function:
        """The function itself."""
        return self.device.function

    def negotiate(self, features: Features = Features.VERSION_1) -> None:
        """Reset the device, and come as far as FEATURES_OK."""
        self.device.reset()
        assert self.device.choose(features)

    def start(self, features: Features = Features.VERSION_1, *, messages: bool = True) -> None:
        """Negotiate, and start both queues: configuration has vector 0, queues 1 and 2."""
        self.negotiate(features)
        if messages:
            self.device.enable_messages()
            self.device.set("config_msix_vector", 0)
        for index, ring in enumerate(self.rings):
            vector = index + 1 if messages else NO_VECTOR
            self.device.set_up_queue(index, ring.addresses, vector)
        assert self.device.add_status(DRIVER_OK) & DRIVER_OK
        self.settle()

    def settle(self) -> None:
        """Run the loop until it would sleep."""
        settle(self.loop)

    def notify(self, index: int) -> None:
        """Tell the device of new buffers, and let it do its work."""
        bar, offset = self.device.notify_address(index)
        self.function.write_bar(bar, offset, 2, index)
        self.settle()

    def send(self) -> None:
        """Post a frame, and notify."""
        gpa = self.host.alloc(72)
        self.host.memory.view(gpa, 72)[:] = PLAIN + FRAME
        self.rings[TX].desc(0, gpa, 72)
        self.rings[TX].publish(0)
        self.notify(TX)

    def post(self) -> None:
        """Post a receive buffer, and notify."""
        self.rings[RX].desc(0, self.host.alloc(256), 256, WRITE)
        self.rings[RX].publish(0)
        self.notify(RX)

    @property
    def runs(self) -> bool:
        """Whether frames flow: both ways, or not at all."""
        sent = len(self.wire.sent)
        self.send()
        self.post()
        self.wire.deliver(FRAME)
        self.settle()
        self.wire.pending.clear()
        out, in_ = len(self.wire.sent) > sent, bool(self.rings[RX].used())
        assert out == in_
        return out
