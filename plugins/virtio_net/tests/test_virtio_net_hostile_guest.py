"""The hostile guest, and its ring by hand."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kit.virtio_twin import MODERN, PLAIN, TX, Twin
from vnic.loop import Loop
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import HostileGuest, Ring
from vnic_virtio_net.testing.hostile import INDIRECT, NEXT, WRITE


@pytest.fixture
def host() -> Iterator[SoftwareHost]:
    host = SoftwareHost(Loop(), 1 << 20)
    yield host
    host.loop.close()


def test_a_ring_by_hand_has_each_word_where_the_specification_puts_it(host: SoftwareHost) -> None:
    ring = Ring(host, 4)
    ring.desc(1, 0x1122334455667788, 0xAABBCCDD, 0x0102, 0x0304)
    view = host.memory.view
    assert bytes(view(ring.desc_gpa + 16, 16)).hex() == "8877665544332211ddccbbaa02010403"
    ring.publish(3, 0xFFFF)
    ring.avail_flags, ring.used_event = 1, 9
    assert bytes(view(ring.avail_gpa, 14)).hex() == "010002000300ffff000000000900"
    view(ring.used_gpa, 38)[:] = bytes.fromhex(
        "0100020007000000080000000900000000100000" + "00" * 16 + "0500"
    )
    assert (ring.used_flags, ring.used_idx, ring.avail_event) == (1, 2, 5)
    assert ring.used() == [(7, 8), (9, 4096)]
    assert ring.used() == []


def test_a_hostile_guest_can_also_behave(host: SoftwareHost) -> None:
    twin = Twin(host, MODERN)
    nic: Any = SimpleNamespace(vhost=twin, name="twin")
    guest = HostileGuest(nic, host, size=8)
    gpa = guest.buffer(PLAIN + b"frame")
    guest.tx.publish(guest.tx.chain(2, [(gpa, 12), (gpa + 12, 5)]))
    table = guest.tx.table((gpa, 12, NEXT, 1), (gpa + 12, 3, 0, 0))
    guest.tx.desc(5, table, 32, INDIRECT)
    guest.tx.publish(5)
    guest.rx.desc(0, guest.buffer(64), 64, WRITE)
    guest.rx.publish(0)
    guest.kick(TX)
    twin.transmit()
    assert twin.kicks == [0, 1]
    assert [frame for frame, _ in twin.sent] == [b"frame", b"fra"]
    assert sorted(guest.tx.used()) == [(2, 0), (5, 0)]
    assert twin.deliver(b"back")
    assert guest.rx.used() == [(0, 16)]
    assert guest.interrupts == [1, 1]
