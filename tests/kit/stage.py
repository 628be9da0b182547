"""A stage for guests that keep to no rule: guarded memory, and a neighbour who must not notice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
from vnic.features import Features
from vnic.loop import Loop
from vnic.nic import Nic
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import HostileGuest
from vnic_virtio_net.testing.hostile import RX, TX, WRITE

from kit.wire import PLAIN, Guards, Wire, open_wire, running, settle


@attrs.define
class Stage:
    """A NIC, and another one on the same loop whose guest behaves."""

    loop: Loop
    host: SoftwareHost
    guards: Guards
    nic: Nic
    wire: Wire
    neighbour: HostileGuest | None = None
    neighbour_wire: Wire | None = None

    def guest(self, features: Features = Features.VERSION_1, size: int = 8) -> HostileGuest:
        """Start a guest on the NIC, and let the device come to rest."""
        guest = HostileGuest(self.nic, self.host, features=features, size=size)
        settle(self.loop)
        return guest

    def settle(self) -> None:
        """Run the loop until it would sleep."""
        settle(self.loop)

    def post(self, guest: HostileGuest, *sizes: int) -> list[int]:
        """Post receive buffers from descriptor 0 on; return their gpas."""
        buffers = [guest.buffer(n) for n in sizes]
        for i, (gpa, n) in enumerate(zip(buffers, sizes, strict=True)):
            guest.rx.desc(i, gpa, n, WRITE)
        guest.rx.publish(*range(len(sizes)))
        return buffers

    def counter(self, name: str) -> int:
        """Return one of the NIC's counters."""
        return self.nic.counters().get(name, 0)

    def check_stopped(self, guest: HostileGuest, reason: str) -> None:
        """The device stopped, once, for this reason, for good; the neighbour's goes on."""
        self.settle()
        assert len(self.host.failures) == 1, self.host.failures
        assert re.search(reason, self.host.failures[0]), self.host.failures[0]
        used = [ring.used_idx for ring in guest.rings]
        flags = [(ring.used_flags, ring.avail_event) for ring in guest.rings]
        for index in (RX, TX):
            guest.start(index)
            guest.kick(index)
        self.wire.deliver(bytes(60))
        self.settle()
        assert [ring.used_idx for ring in guest.rings] == used
        assert [(ring.used_flags, ring.avail_event) for ring in guest.rings] == flags
        assert len(self.host.failures) == 1
        self.check_neighbour()

    def check_neighbour(self) -> None:
        """The neighbour's NIC carries a frame each way."""
        guest, wire = self.neighbour, self.neighbour_wire
        assert guest is not None
        assert wire is not None
        wire.sent.clear()
        guest.rx.used()
        guest.tx.used()
        guest.rx.desc(0, guest.buffer(100), 100, WRITE)
        guest.rx.publish(0)
        guest.tx.desc(0, guest.buffer(PLAIN + bytes(60)), 72)
        guest.tx.publish(0)
        guest.kick(TX)
        guest.kick(RX)
        wire.deliver(bytes(64))
        self.settle()
        assert guest.rx.used() == [(0, 76)]
        assert guest.tx.used() == [(0, 0)]
        assert wire.sent == [(bytes(60), PLAIN)]


@contextmanager
def staged() -> Iterator[Stage]:
    """Give a stage without a neighbour, for one example of many."""
    with running() as loop:
        host = SoftwareHost(loop, 1 << 22)
        guards = Guards.around(host)
        nic, wire = open_wire(host)
        yield Stage(loop, host, guards, nic, wire)
        settle(loop)
        nic.close()
        guards.check()
