"""A backend that delivers from within ``recv_enable``, and so fills the ring there."""

from __future__ import annotations

from kit.wire import Wire, open_wire, running, settle
from vnic import hookimpl
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import Driver, Shape


class EagerWire(Wire):
    """Delivers as soon as it may."""

    @hookimpl
    def recv_enable(self) -> None:
        self.link.readable()


def test_a_ring_that_fills_as_the_wire_is_enabled_is_filled_again() -> None:
    with running() as loop:
        host = SoftwareHost(loop)
        nic, wire = open_wire(host, EagerWire())
        driver = Driver(nic, host, rx=Shape(2))
        settle(loop)
        wire.deliver(*[driver.mac + bytes([i]) * 60 for i in range(9)])
        received = []
        for _ in range(9):
            settle(loop)
            received += [frame[6] for frame, _ in driver.recv()]
        driver.stop()
        nic.close()
    assert received == list(range(9))
