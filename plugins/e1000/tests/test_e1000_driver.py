"""The device between two of its drivers, over a switch and over a wire."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from kit.segmentation import NEEDS_CSUM, Packet, completed, header
from kit.wire import Wire, settle
from vnic.config import parse_nic
from vnic.features import Features
from vnic.hookspecs import hookimpl
from vnic.link import Link
from vnic.loop import Loop
from vnic.nic import Nic
from vnic.testing import DriverError, SoftwareHost
from vnic.testing.guest import Guest
from vnic_e1000 import Plugin
from vnic_e1000.testing import CAPABLE, Driver

PLAIN = bytes(12)


class End(Wire):
    """One end of a wire: what is sent is pending at the other."""

    peer: End

    @hookimpl
    def send(self, burst: Any) -> int:
        peer = self.peer
        if len(peer.pending) > 300:
            return 0
        peer.pending += [(bytes(burst[i]), burst.header(i)) for i in range(len(burst))]
        peer.link.readable()
        return len(burst)

    @hookimpl
    def recv(self, room: Any) -> int:
        n = Wire.recv(self, room)
        if n:
            self.peer.link.writable()
        return n


@attrs.define
class Pair:
    """Two NICs in one loop, each with a host of its own."""

    loop: Loop
    nics: list[Nic]
    hosts: list[SoftwareHost]

    @classmethod
    def make(cls) -> Pair:
        pair = cls(Loop(), [], [])
        ends = [End(), End()]
        ends[0].peer, ends[1].peer = ends[1], ends[0]
        for end, name in zip(ends, "ab", strict=True):
            link = Link(name, pair.loop)
            link.open([(end, "wire", None)])
            host = SoftwareHost(pair.loop, 16 << 20)
            nic = Nic(parse_nic(f"e1000,{name}"), Plugin(), Plugin.Options(), link)
            nic.attach(host)
            pair.nics.append(nic)
            pair.hosts.append(host)
        return pair

    def drivers(self, **options: Any) -> list[Driver]:
        made = [
            Driver(nic, host, **options) for nic, host in zip(self.nics, self.hosts, strict=True)
        ]
        self.settle()
        return made

    def settle(self) -> None:
        settle(self.loop)


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair.make()
    yield pair
    for nic in pair.nics:
        nic.close()
    pair.loop.close()
    assert [host.failures for host in pair.hosts] == [[], []]


def frames(dst: bytes, src: bytes, n: int, length: int = 100) -> list[bytes]:
    head = dst + src + b"\x12\x34"
    return [(head + i.to_bytes(4, "big")).ljust(length, bytes([i % 251])) for i in range(n)]


@pytest.mark.parametrize("length", [60, 61, 1514])
@pytest.mark.parametrize("cut", [1 << 16, 14, 700])
def test_what_one_sends_the_other_receives(pair: Pair, length: int, cut: int) -> None:
    a, b = pair.drivers(cut=max(cut, length // 4))
    assert (a.link_up, b.link_up) == (True, True)
    for _ in range(6):
        sent = frames(b.mac, a.mac, 40, length)
        assert a.send(sent) == 40
        pair.settle()
        assert b.recv() == [(frame, PLAIN) for frame in sent]
        pair.settle()
        assert a.n_outstanding == 0
        a.check()
        b.check()


@pytest.mark.parametrize("buffer_len", [256, 2048, 16384])
def test_jumbo_frames_go_through_whole(pair: Pair, buffer_len: int) -> None:
    a, b = pair.drivers(mtu=9000, buffer_len=buffer_len)
    sent = frames(b.mac, a.mac, 5, 9014)
    assert a.send(sent) == 5
    pair.settle()
    assert b.recv() == [(frame, PLAIN) for frame in sent]


def test_a_receiver_that_is_slow_loses_nothing(pair: Pair) -> None:
    a, b = pair.drivers(rx_size=16, tx_size=64)
    sent = frames(b.mac, a.mac, 500)
    at, got = 0, []
    for _ in range(1000):
        at += a.send(sent[at : at + 50])
        pair.settle()
        got += [frame for frame, _ in b.recv(3)]
        pair.settle()
        if len(got) == 500:
            break
    assert got == sent
    a.check()
    b.check()


def test_bulk_frames_arrive_and_are_counted(pair: Pair) -> None:
    a, b = pair.drivers()
    a.prepare_bulk(frames(b.mac, a.mac, 7, 60))
    sent = 0
    while sent < 3000:
        sent += a.send_bulk(100)
        pair.settle()
        while b.recv_bulk(64):
            pair.settle()
    assert (b.n_received, b.n_received_bytes) == (sent, 60 * sent)
    assert a.n_outstanding == 0
    a.send(frames(b.mac, a.mac, 1))
    with pytest.raises(RuntimeError, match="undoes"):
        a.send_bulk(1)


def test_offloads_go_through_as_descriptors_and_come_out_as_segments(pair: Pair) -> None:
    a, b = pair.drivers(features=CAPABLE, rx_size=256)
    rng = random.Random(3)
    for ipv6, udp, n_tags in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1)]:
        packet = Packet(
            ipv6=bool(ipv6), udp=bool(udp), n_tags=n_tags, payload=rng.randbytes(20000),
            gso_size=1400,
        )  # fmt: skip
        frame = b.mac + a.mac + packet.frame()[12:]
        assert a.send([frame], [packet.header]) == 1
        pair.settle()
        expected = [b.mac + a.mac + s[12:] for s in packet.segments()]
        got = b.recv()
        assert [frame for frame, _ in got] == expected
        assert {hdr[0] for _, hdr in got} == {2}
    content = frames(b.mac, a.mac, 1)[0]
    a.send([content], [header(NEEDS_CSUM, csum_start=34, csum_offset=16)])
    pair.settle()
    ((got, hdr),) = b.recv()
    assert got == completed(content, 34, 16)
    assert hdr[0] == 2
    assert Features.CSUM in a.features


def test_tags_are_stripped_for_a_driver_that_wants_it(pair: Pair) -> None:
    a, b = pair.drivers(vlans=True)
    content = b.mac + a.mac + b"\x81\x00\x20\x07\x12\x34" + bytes(60)
    a.send([content])
    pair.settle()
    assert b.recv()[0][0] == content[:12] + content[16:]
    assert b.rx.tags == [0x2007]


def test_a_driver_is_told_of_the_carrier(pair: Pair) -> None:
    a, _ = pair.drivers()
    a.recv()
    pair.settle()
    pair.nics[0].link._set_up(False, "test")
    pair.settle()
    assert not a.link_up
    assert a.causes & 4


def test_ping_and_udp_between_two_machines(pair: Pair) -> None:
    drivers = pair.drivers()
    left, right = Guest(drivers[0], "10.0.0.1", "left"), Guest(drivers[1], "10.0.0.2", "right")
    ping = left.ping("10.0.0.2", b"are you there?")
    right.udp_send("10.0.0.1", 7, b"hello")
    for _ in range(10):
        pair.settle()
        left.poll()
        right.poll()
    assert ping.answered
    assert [datagram.data for datagram in left.datagrams] == [b"hello"]


def test_a_stopped_device_receives_nothing(pair: Pair) -> None:
    a, b = pair.drivers()
    b.stop()
    b.stop()
    a.send(frames(b.mac, a.mac, 3))
    pair.settle()
    assert b.n_received == 0
    assert pair.nics[1].counters()["rx_discarded"] == 3


def test_a_nic_without_a_pci_face_is_refused() -> None:
    from kit.wire import open_wire

    loop = Loop()
    host = SoftwareHost(loop, 1 << 20)
    nic, _ = open_wire(host)
    if nic.pci is None:
        with pytest.raises(DriverError, match="PCI face"):
            Driver(nic, host)
    else:
        with pytest.raises(DriverError, match="no e1000"):
            Driver(nic, host)
    nic.close()
    loop.close()
