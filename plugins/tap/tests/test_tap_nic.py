"""A whole NIC on a tap: a guest's ring at one end, the host's wire at the other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from vnic.features import OFFLOADS, Features
from vnic.loop import Loop
from vnic.nic import Nic, open_spec
from vnic.testing import SoftwareHost

virtio_net = pytest.importorskip("vnic_virtio_net.testing")

pytestmark = pytest.mark.root

RANDOM = random.Random(5)
FRAMES = [
    bytes.fromhex("02aabbccdd01 02aabbccdd02 88b5") + RANDOM.randbytes(RANDOM.randrange(1500))
    for _ in range(500)
]


@attrs.frozen
class Machine:
    """A software guest's driver, its NIC and the loop that serves it."""

    loop: Loop
    nic: Nic
    driver: Any

    def recv(self, n: int) -> list[tuple[bytes, bytes]]:
        """Return the next ``n`` frames for the guest."""
        frames: list[tuple[bytes, bytes]] = []
        for _ in range(1000):
            frames += self.driver.recv()
            if len(frames) >= n:
                break
            self.loop.dispatch(0.01)
        assert len(frames) == n
        return frames


@pytest.fixture
def machine(world: Any) -> Iterator[Callable[..., Machine]]:
    made: list[Machine] = []

    def make(features: Features, spec: str = "virtio-net,tap0", **options: Any) -> Machine:
        loop = Loop()
        host = SoftwareHost(loop)
        nic = world.netns.call(open_spec, spec, host)
        driver = virtio_net.Driver(
            nic, host, features=virtio_net.DRIVER_FEATURES | features, **options
        )
        loop.dispatch()
        made.append(Machine(loop, nic, driver))
        return made[-1]

    yield make
    for machine in made:
        machine.nic.close()
        machine.loop.close()


def test_a_guest_sends_and_the_wire_has_every_byte_in_order(world: Any, machine: Any) -> None:
    guest, wire = machine(Features(0)), world.wire()
    got: list[bytes] = []
    for start in range(0, len(FRAMES), 100):
        some = FRAMES[start : start + 100]
        assert guest.driver.send(some) == len(some)
        guest.loop.dispatch()
        got += wire.recv_frames(len(some))
    assert got == FRAMES


def test_a_guest_receives_every_byte_in_order(world: Any, machine: Any) -> None:
    guest, wire = machine(Features(0)), world.wire()
    for data in FRAMES:
        wire.send(data)
    assert [data for data, _ in guest.recv(len(FRAMES))] == FRAMES
    guest.driver.check()


@pytest.mark.parametrize("mergeable", [True, False], ids=["mergeable", "long buffers"])
def test_a_segmentation_frame_goes_from_ring_to_wire_and_back_whole(
    world: Any, machine: Any, packet: Any, mergeable: bool
) -> None:
    features = OFFLOADS if mergeable else OFFLOADS & ~Features.MRG_RXBUF
    guest, wire = machine(features, rx=virtio_net.Shape(256)), world.wire()
    sent = packet(4, 6, random.Random(6).randbytes(64_000), gso_size=1448)
    for _ in range(20):
        assert guest.driver.send([sent.frame()], [sent.header()]) == 1
        guest.loop.dispatch()
        assert wire.recv()[0] == sent.frame()
        wire.send(sent.frame(), sent.header())
        ((data, header),) = guest.recv(1)
        assert data == sent.frame()
        assert header[1] == sent.header()[1]
        assert header[4:10] == sent.header()[4:10]
    guest.driver.check()


def test_a_guest_without_offloads_gets_what_the_kernel_cut_for_it(
    world: Any, machine: Any, packet: Any
) -> None:
    guest, wire = machine(Features(0)), world.wire()
    sent = packet(4, 6, random.Random(7).randbytes(14_000), gso_size=1400)
    wire.send(sent.frame(), sent.header())
    frames = guest.recv(10)
    assert b"".join(sent.payload_of(data) for data, _ in frames) == sent.payload
    assert "rx_segmented" not in {name for name, n in guest.nic.counters().items() if n}


def test_more_than_the_guest_has_room_for_waits_in_the_tap(world: Any, machine: Any) -> None:
    guest, wire = machine(Features(0), rx=virtio_net.Shape(16)), world.wire()
    for data in FRAMES:
        wire.send(data)
    for _ in range(20):
        guest.loop.dispatch()
    assert [data for data, _ in guest.recv(len(FRAMES))] == FRAMES
    guest.driver.check()


def test_a_deleted_interface_takes_the_guests_carrier(world: Any, machine: Any) -> None:  # F5
    guest = machine(Features(0))
    assert guest.driver.link_up
    world.netns.delete("tap0")
    for _ in range(100):
        if not guest.driver.link_up:
            break
        guest.loop.dispatch(0.05)
    assert not guest.driver.link_up
    assert guest.driver.send(FRAMES[:5]) == 5
    guest.loop.dispatch()
    assert guest.driver.n_outstanding == 0  # taken and counted, not kept for ever
    assert guest.nic.counters()["tx_drop_link_down"] == 5


def test_one_mtu_is_the_interfaces_and_the_guests(world: Any, machine: Any) -> None:
    guest = machine(Features(0), "virtio-net,tap0,mtu=9000")
    assert guest.driver.mtu == 9000
    assert "mtu 9000" in world.ip("link", "show", "tap0")
