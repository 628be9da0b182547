"""Frames through a real tap, both ways, whole and byte for byte."""

from __future__ import annotations

import errno
import os
import random
from types import SimpleNamespace
from typing import Any

import pytest
from vnic import Features
from vnic.burst import Burst
from vnic.features import GUEST_OFFLOADS, HOST_OFFLOADS, NONE
from vnic_tap import COUNTERS, Tap

SIZES = (14, 15, 60, 61, 64, 65, 127, 128, 590, 1499, 1500, 1513, 1514)
ALL = [(4, 6), (6, 6), (4, 17), (6, 17)]
IDS = ["TCP4", "TCP6", "UDP4", "UDP6"]
GUEST_BIT = {
    (4, 6): Features.GUEST_TSO4,
    (6, 6): Features.GUEST_TSO6,
    (4, 17): Features.GUEST_USO4 | Features.GUEST_USO6,
    (6, 17): Features.GUEST_USO4 | Features.GUEST_USO6,
}


def frame(n: int, seed: int = 0) -> bytes:
    """A frame of an EtherType for experiments, so that nobody answers it."""
    addresses = bytes.fromhex("02aabbccdd01 02aabbccdd02 88b5")
    return addresses + random.Random(n * 1000 + seed).randbytes(n - 14)


def skip_without(nic: Any, bits: Features) -> None:
    if bits & ~nic.link.capabilities:
        pytest.skip("this kernel's tap has no USO (Linux 6.2 has)")


@pytest.mark.root
class TestRealTap:
    def test_frames_from_the_guest_come_out_of_the_tap_in_order(self, world: Any) -> None:
        nic, wire = world.nic(), world.wire()
        frames = [frame(n) for n in SIZES]
        assert nic.link.send(Burst.of(frames)) == len(frames)
        assert wire.recv_frames(len(frames)) == frames

    def test_frames_for_the_guest_come_in_order(self, world: Any) -> None:
        nic, wire = world.nic(), world.wire()
        frames = [frame(n) for n in SIZES]
        for data in frames:
            wire.send(data)
        nic.run_until(lambda: len(nic.room.frames) == len(frames))
        assert nic.room.frames == frames
        assert not any(map(any, nic.room.headers))

    def test_a_full_burst_is_taken_in_one_call(self, world: Any) -> None:
        nic, wire = world.nic(), world.wire()
        frames = [frame(60, i) for i in range(256)]
        assert nic.link.send(Burst.of(frames)) == 256
        assert wire.recv_frames(256) == frames

    def test_one_recv_takes_at_most_256_and_the_level_brings_the_rest(self, world: Any) -> None:
        nic, wire = world.nic(), world.wire()
        frames = [frame(60, i) for i in range(400)]
        for data in frames:
            wire.send(data)
        nic.run_until(lambda: len(nic.room.frames) == 400)
        assert nic.received_at_once == [256, 144]
        assert nic.room.frames == frames

    def test_a_guest_without_room_leaves_frames_in_the_tap(self, world: Any) -> None:
        nic, wire = world.nic(), world.wire()
        nic.room.n_max = 3
        frames = [frame(60, i) for i in range(5)]
        for data in frames:
            wire.send(data)
        nic.run_until(lambda: nic.room.full)
        n_calls = nic.n_readable
        nic.settle()
        assert nic.n_readable == n_calls
        nic.room.n_max, nic.room.full = 10, False
        nic.link.recv_enable()
        nic.run_until(lambda: len(nic.room.frames) == 5)
        assert nic.room.frames == frames

    def test_without_a_receiver_frames_are_thrown_away_and_counted(self, world: Any) -> None:
        nic, wire = world.nic(), world.wire()
        nic.link.recv_discard()
        for i in range(300):
            wire.send(frame(60, i))
        nic.run_until(lambda: nic.link.counters().get("rx_discarded") == 300)
        nic.link.recv_enable()
        wire.send(frame(61))
        nic.run_until(lambda: nic.room.frames)
        assert nic.room.frames == [frame(61)]

    def test_a_frame_of_9000_bytes_needs_no_more_than_the_mtu(self, world: Any) -> None:
        nic, wire = world.nic(mtu=9000), world.wire()
        assert nic.link.send(Burst.of([frame(9014)])) == 1
        wire.send(frame(9014, 1))
        assert wire.recv_frames(1) == [frame(9014)]
        nic.run_until(lambda: nic.room.frames)
        assert nic.room.frames == [frame(9014, 1)]

    @pytest.mark.parametrize("kind", ALL, ids=IDS)
    def test_a_segmentation_frame_from_the_guest_passes_whole(
        self, world: Any, packet: Any, kind: tuple[int, int]
    ) -> None:
        nic, wire = world.nic(), world.wire()
        skip_without(nic, GUEST_BIT[kind])
        sent = packet(*kind, random.Random(1).randbytes(60_000), gso_size=1400)
        assert nic.link.send(Burst.of([sent.frame()], [sent.header()])) == 1
        data, header = wire.recv()
        assert data == sent.frame()
        assert header[1] == sent.header()[1]
        assert header[4:10] == sent.header()[4:10]  # gso_size, csum_start, csum_offset

    @pytest.mark.parametrize("kind", ALL, ids=IDS)
    def test_a_segmentation_frame_for_the_guest_passes_whole_when_agreed(
        self, world: Any, packet: Any, kind: tuple[int, int]
    ) -> None:
        nic, wire = world.nic(features=GUEST_OFFLOADS), world.wire()
        skip_without(nic, GUEST_BIT[kind])
        sent = packet(*kind, random.Random(2).randbytes(60_000), gso_size=1400)
        wire.send(sent.frame(), sent.header())
        nic.run_until(lambda: nic.room.frames)
        assert nic.room.frames == [sent.frame()]
        assert nic.room.headers[0][1] == sent.header()[1]
        assert nic.room.headers[0][4:10] == sent.header()[4:10]

    @pytest.mark.parametrize("kind", ALL, ids=IDS)
    @pytest.mark.parametrize("agreed", ["nothing", "all but this"])
    def test_what_was_not_agreed_is_done_by_the_kernel(
        self, world: Any, packet: Any, kind: tuple[int, int], agreed: str
    ) -> None:
        features = NONE if agreed == "nothing" else GUEST_OFFLOADS & ~GUEST_BIT[kind]
        nic, wire = world.nic(features=features), world.wire()
        skip_without(nic, GUEST_BIT[kind])
        sent = packet(*kind, random.Random(3).randbytes(30_000), gso_size=1400)
        wire.send(sent.frame(), sent.header())
        nic.run_until(lambda: len(nic.room.frames) == 22)
        assert all(header[1] == 0 for header in nic.room.headers)
        if agreed == "nothing":
            assert not any(header[0] & 1 for header in nic.room.headers)
            assert b"".join(map(sent.payload_of, nic.room.frames)) == sent.payload
        else:
            n = sent.headers_len
            assert b"".join(data[n:] for data in nic.room.frames) == sent.payload

    def test_a_checksum_is_left_to_a_guest_that_takes_it(self, world: Any, packet: Any) -> None:
        nic, wire = world.nic(features=Features.GUEST_CSUM), world.wire()
        sent = packet(4, 17, b"still to be summed")
        wire.send(sent.frame(), sent.header())
        nic.run_until(lambda: nic.room.frames)
        assert nic.room.frames == [sent.frame()]
        assert nic.room.headers[0] == sent.header()

    def test_features_change_while_frames_flow(self, world: Any, packet: Any) -> None:
        nic, wire = world.nic(), world.wire()
        sent = packet(4, 6, bytes(4200), gso_size=1400)
        for features, n in ((NONE, 3), (GUEST_OFFLOADS, 1), (NONE, 3)):
            nic.link.set_features(features)
            nic.room.frames.clear()
            wire.send(sent.frame(), sent.header())
            nic.run_until(lambda n=n: len(nic.room.frames) == n)

    def test_this_kernel_offers_checksum_and_tcp_segmentation(self, world: Any) -> None:
        uso = Features.GUEST_USO4 | Features.GUEST_USO6 | Features.HOST_USO
        expected = (GUEST_OFFLOADS | HOST_OFFLOADS) & ~uso
        assert expected in world.nic().link.capabilities

    def test_offload_off_offers_nothing_and_frames_pass(self, world: Any) -> None:
        nic, wire = world.nic(offload=False), world.wire()
        assert nic.link.capabilities == NONE
        assert nic.link.send(Burst.of([frame(60)])) == 1
        assert wire.recv_frames(1) == [frame(60)]

    def test_while_the_interface_is_down_frames_are_dropped_and_counted(
        self, world: Any
    ) -> None:  # F4
        nic, wire = world.nic(), world.wire()
        world.netns.down("tap0")
        assert nic.link.send(Burst.of([frame(60), frame(61)])) == 2
        assert nic.link.counters()["tx_drop_EIO"] == 2
        assert nic.link.is_up
        world.netns.up("tap0")
        wire = world.wire()
        assert nic.link.send(Burst.of([frame(62)])) == 1
        assert wire.recv_frames(1) == [frame(62)]

    def test_a_header_that_lies_drops_its_frame_and_no_other(self, world: Any) -> None:  # F4
        nic, wire = world.nic(), world.wire()
        beyond = bytes([1, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0, 0, 0])
        unknown = bytes([0, 0x77, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0])
        burst = Burst.of(
            [frame(60), frame(61), frame(62), frame(63), b"short"],
            [None, beyond, None, unknown, None],
        )
        assert nic.link.send(burst) == 5
        assert wire.recv_frames(2) == [frame(60), frame(62)]
        assert nic.link.counters()["tx_drop_EINVAL"] == 3

    def test_a_full_tap_leaves_the_rest_in_order_and_offers_room_again(
        self, world: Any, tc: Any
    ) -> None:
        # Frames count against the send buffer until they leave a slow queue behind the tap.
        nic = world.nic(sndbuf=65536)
        world.netns.add_veth("slow", "end")
        world.netns.up("slow")
        world.netns.up("end")
        wire = world.wire("end")
        rate = ("rate", "200mbit", "burst", "4k", "latency", "10s")
        tc("qdisc", "add", "dev", "slow", "root", "tbf", *rate)
        tc("qdisc", "add", "dev", "tap0", "ingress")
        match = ("protocol", "all", "u32", "match", "u32", "0", "0")
        action = ("action", "mirred", "egress", "redirect", "dev", "slow")
        tc("filter", "add", "dev", "tap0", "parent", "ffff:", *match, *action)
        frames = [frame(1514, i) for i in range(200)]
        n_sent = 0
        while n_sent < len(frames):
            rest = frames[n_sent:]
            taken = nic.link.send(Burst.of(rest))
            n_sent += taken
            if taken < len(rest):
                n_writable = nic.n_writable
                nic.run_until(lambda n=n_writable: nic.n_writable > n)
        assert nic.link.counters()["tx_full"] > 0
        assert wire.recv_frames(len(frames)) == frames
        assert not [name for name in nic.link.counters() if name.startswith("tx_drop")]
        n_writable = nic.n_writable
        nic.settle()
        assert nic.n_writable == n_writable  # nothing waits, so nobody is told


# ---- errors that a real tap gives seldom -------------------------------------------------------


class RefusingBurst:
    """A burst of three, of which the kernel refuses two."""

    def __init__(self, error: int) -> None:
        self.error = error

    def __len__(self) -> int:
        return 3

    def writev(self, fd: int) -> tuple[int, int, int]:
        return 3, 2, self.error


class FailingRoom:
    """A room that read one frame before a read failed."""

    def __init__(self, error: int) -> None:
        self.error = error

    def readv(self, fd: int, limit: int = 256, header: bool = True) -> tuple[int, int]:
        return 1, self.error


def open_plugin() -> tuple[Tap, dict[str, int]]:
    """A plugin in the state after ``init``, on a descriptor that is no tap."""
    counts: dict[str, int] = {}
    plugin: Any = Tap()
    plugin._name = "tap0"
    plugin._device = SimpleNamespace(fd=-1, close=lambda: None)
    plugin._watch = SimpleNamespace(set=lambda **_: None, close=lambda: None)
    plugin._link = SimpleNamespace(
        count=lambda name, n=1: counts.update({name: counts.get(name, 0) + n})
    )
    return plugin, counts


@pytest.mark.parametrize(
    "name", ["EIO", "EINVAL", "ENOBUFS", "ENOMEM", "EFAULT", "EPERM", "EMSGSIZE", "EBADFD"]
)
def test_a_frame_that_the_kernel_refuses_is_taken_and_counted(name: str) -> None:  # F4
    plugin, counts = open_plugin()
    assert plugin.send(RefusingBurst(getattr(errno, name))) == 3  # type: ignore[arg-type]
    (counter,) = counts
    assert counts[counter] == 2
    assert counter in COUNTERS
    assert counter in (f"tx_drop_{name}", "tx_drop_other")


@pytest.mark.parametrize("name", ["EINVAL", "EFAULT", "ENOMEM"])
def test_a_read_that_fails_is_counted_and_what_came_before_it_stays(name: str) -> None:  # F4
    plugin, counts = open_plugin()
    assert plugin.recv(FailingRoom(getattr(errno, name))) == 1  # type: ignore[arg-type]
    (counter,) = counts
    assert counts[counter] == 1
    assert counter in (f"rx_drop_{name}", "rx_drop_other")


def test_a_drop_is_logged_once_however_many_there_are(caplog: pytest.LogCaptureFixture) -> None:
    plugin, _ = open_plugin()
    for _ in range(100):
        plugin.send(RefusingBurst(errno.EIO))  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == [
        "tap0: tx_drop_EIO: frames from the guest while the interface was down"
    ]


def test_an_older_kernel_is_asked_again_without_uso(monkeypatch: pytest.MonkeyPatch) -> None:
    from vnic_tap import device

    in_force = []

    def ioctl(fd: int, request: int, bits: int) -> None:
        if bits & (device.TUN_F_USO4 | device.TUN_F_USO6):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        in_force.append(bits)

    monkeypatch.setattr(device.fcntl, "ioctl", ioctl)
    found = device.Device("tap0", -1).capabilities()
    assert Features.HOST_TSO6 | Features.GUEST_ECN in found
    assert not found & (Features.HOST_USO | Features.GUEST_USO4 | Features.GUEST_USO6)
    assert in_force[-1] == 0
