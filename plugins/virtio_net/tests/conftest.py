"""What the tests of hostile guests and of registers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.bench import Bench
from kit.stage import Stage
from kit.wire import Guards, open_wire, running, settle
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import HostileGuest


@pytest.fixture
def stage() -> Iterator[Stage]:
    with running() as loop:
        host = SoftwareHost(loop, 1 << 22)
        guards = Guards.around(host)
        nic, wire = open_wire(host)
        beside = SoftwareHost(loop, 1 << 20)
        other, other_wire = open_wire(beside, name="wire1")
        neighbour = HostileGuest(other, beside, size=4)
        settle(loop)
        yield Stage(loop, host, guards, nic, wire, neighbour, other_wire)
        settle(loop)
        nic.close()
        other.close()
        guards.check()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with running() as loop:
        bench = Bench.on(loop)
        yield bench
        bench.settle()
        bench.nic.close()
        bench.guards.check()
