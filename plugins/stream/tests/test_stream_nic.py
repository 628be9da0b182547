"""Two whole NICs, joined by sockets: a guest's ring at either end."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from vnic.features import OFFLOADS, Features
from vnic.loop import Loop
from vnic.nic import Nic, open_spec
from vnic.testing import SoftwareHost
from vnic.testing.bench import to_be_cut

virtio_net = pytest.importorskip("vnic_virtio_net.testing")

RANDOM = random.Random(5)
FRAMES = [
    bytes.fromhex("02aabbccdd01 02aabbccdd02 88b5") + RANDOM.randbytes(RANDOM.randrange(1500))
    for _ in range(2000)
]


@attrs.frozen
class Machine:
    """A software guest's driver and its NIC."""

    nic: Nic
    driver: Any


@attrs.frozen
class Joined:
    """Two machines on one loop, whose NICs are joined."""

    loop: Loop
    a: Machine
    b: Machine

    def cross(self, source: Machine, target: Machine, frames: list[bytes]) -> list[bytes]:
        """Send frames from one to the other, as fast as the ring takes them; return what came."""
        sent, got = 0, []
        for _ in range(2000):
            sent += source.driver.send(frames[sent : sent + 256])
            self.loop.dispatch(0.01)
            got += [frame for frame, _ in target.driver.recv()]
            if len(got) >= len(frames):
                break
        return got


SPECS = {
    "unix": ("virtio-net,stream:{0}/a,listen=on", "virtio-net,stream:{0}/a"),
    "dgram": ("virtio-net,dgram:{0}/a,peer={0}/b", "virtio-net,dgram:{0}/b,peer={0}/a"),
    "fd": ("virtio-net,stream:fd={1}", "virtio-net,stream:fd={2}"),
}


@pytest.fixture(params=SPECS)
def joined(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Joined]:
    loop = Loop()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        machines = []
        for spec in SPECS[request.param]:
            host = SoftwareHost(loop)
            nic = open_spec(spec.format(tmp_path, ours.fileno(), theirs.fileno()), host)
            driver = virtio_net.Driver(
                nic,
                host,
                features=virtio_net.DRIVER_FEATURES | OFFLOADS,
                rx=virtio_net.Shape(64),
                tx=virtio_net.Shape(64),
            )
            machines.append(Machine(nic, driver))
        joined = Joined(loop, *machines)
        while not all(machine.nic.link.is_up for machine in machines):
            loop.dispatch(0.1)
        yield joined
        for machine in machines:
            machine.nic.close()
        loop.close()


def test_every_byte_crosses_in_order_both_ways_through_small_rings(joined: Joined) -> None:
    assert joined.cross(joined.a, joined.b, FRAMES) == FRAMES
    assert joined.cross(joined.b, joined.a, FRAMES) == FRAMES
    for machine in (joined.a, joined.b):
        machine.driver.check()
        assert not {name for name, n in machine.nic.counters().items() if "drop" in name and n}


def test_a_guest_may_leave_checksum_and_segmentation_to_the_link(joined: Joined) -> None:
    assert Features.HOST_TSO4 in joined.a.driver.features
    frame, header = to_be_cut()
    assert joined.a.driver.send([frame], [header]) == 1
    got: list[tuple[bytes, bytes]] = []
    for _ in range(100):
        joined.loop.dispatch(0.01)
        got += joined.b.driver.recv()
        if len(got) == 3:
            break
    assert b"".join(segment[54:] for segment, _ in got) == frame[54:]
    assert [len(segment) for segment, _ in got] == [1054, 1054, 554]
    assert not any(header[0] for _, header in got)


def test_the_carrier_of_one_goes_with_the_other(joined: Joined) -> None:
    joined.b.nic.close()
    joined.a.driver.send(FRAMES[:1])  # datagrams meet nobody; a stream's end is seen without
    for _ in range(100):
        joined.loop.dispatch(0.01)
        if not joined.a.nic.link.is_up:
            break
    assert not joined.a.driver.link_up
    assert joined.a.driver.send(FRAMES[:5]) == 5
    joined.loop.dispatch(0.01)
    joined.loop.dispatch(0.01)
    assert joined.a.driver.n_outstanding == 0  # dropped and counted, not kept
    drops = {name: n for name, n in joined.a.nic.counters().items() if name.startswith("tx_drop")}
    assert sum(drops.values()) == 6
    assert drops["tx_drop_link_down"] >= 5
