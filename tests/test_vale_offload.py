"""Ports of one embedded vale whose guests take different offloads: each gets what it can take.

One guest sends frames that ask for segmentation and checksums to guests of all kinds.  Where one
takes what a frame asks for, the frame arrives whole; where it does not, the segments are those of
the twin in plain Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.segmentation import (
    ECN,
    NEEDS_CSUM,
    TCPV4,
    TCPV6,
    UDP_L4,
    Packet,
    completed,
    header,
    ones_sum,
    pseudo_header,
)
from kit.wire import running, settle
from vnic.features import GUEST_OFFLOADS, HOST_OFFLOADS, NONE, Features, names
from vnic.loop import Loop
from vnic.nic import Nic, open_spec
from vnic.offload import segments
from vnic.testing import SoftwareHost
from vnic_e1000.testing import Driver as E1000Driver
from vnic_virtio_net.testing import DRIVER_FEATURES, Shape
from vnic_virtio_net.testing import Driver as VirtioDriver

CSUM = Features.GUEST_CSUM
TSO4, TSO6, GUEST_ECN = Features.GUEST_TSO4, Features.GUEST_TSO6, Features.GUEST_ECN
USO = Features.GUEST_USO4 | Features.GUEST_USO6

RECEIVERS: Final = [
    ("virtio-net", NONE),
    ("virtio-net", CSUM),
    ("virtio-net", CSUM | TSO4),
    ("virtio-net", CSUM | TSO6),
    ("virtio-net", CSUM | USO),
    ("virtio-net", CSUM | Features.GUEST_USO6),
    ("virtio-net", CSUM | TSO4 | TSO6),
    ("virtio-net", CSUM | TSO4 | GUEST_ECN),
    ("virtio-net", GUEST_OFFLOADS),
    ("virtio-net without MRG_RXBUF", NONE),
    ("e1000", NONE),
    ("e1000", CSUM),
]
SENDERS: Final = [("virtio-net", HOST_OFFLOADS), ("e1000", HOST_OFFLOADS)]

ALL: Final = b"\xff" * 6


def describe(i: int) -> str:
    frontend, offloads = RECEIVERS[i]
    return f"{frontend} {names(offloads)}"


@attrs.frozen
class Asked:
    """A frame, what it asks for, and what comes of it for a guest that takes nothing."""

    frame: bytes
    header: bytes
    plain: list[bytes]

    def between(self, sender: Any, dst: bytes) -> Asked:
        """The same from that guest, as far as it can ask, to that address."""
        ends, header = dst + sender.mac, bytearray(self.header)
        if Features.HOST_ECN not in sender.features:
            header[1] &= ~ECN
        plain = [ends + frame[12:] for frame in self.plain]
        return Asked(ends + self.frame[12:], bytes(header), plain)


def needs(header: bytes) -> Features:
    """What a guest has to take for a frame with this header, by the specification's words."""
    gso_type = header[1]
    if not gso_type:
        return CSUM if header[0] & NEEDS_CSUM else NONE
    kinds = {TCPV4: TSO4, TCPV6: TSO6, UDP_L4: USO}
    return CSUM | kinds[gso_type & ~ECN] | (GUEST_ECN if gso_type & ECN else NONE)


def to_be_cut(packet: Packet, ecn: bool) -> Asked:
    first = bytes(i * 11 & 0xFF for i in range(packet.gso_size))
    packet = attrs.evolve(packet, payload=first + packet.payload)
    asked = bytearray(packet.header)
    if ecn and not packet.udp:
        asked[1] |= ECN
    return Asked(packet.frame(), bytes(asked), packet.segments())


def to_be_summed(packet: Packet) -> Asked:
    frame, offset = bytearray(packet.frame()), 6 if packet.udp else 16
    at = packet.l4 + offset
    frame[at : at + 2] = ones_sum(pseudo_header(frame, packet)).to_bytes(2, "big")
    asked = header(NEEDS_CSUM, csum_start=packet.l4, csum_offset=offset)
    return Asked(bytes(frame), asked, [completed(bytes(frame), packet.l4, offset)])


def plain(packet: Packet) -> Asked:
    return Asked(packet.summed(), bytes(12), [packet.summed()])


def packets(longest: int) -> st.SearchStrategy[Packet]:
    payload = st.integers(1, longest).map(lambda n: bytes(i * 7 & 0xFF for i in range(n)))
    return st.builds(
        Packet,
        ipv6=st.booleans(),
        udp=st.booleans(),
        n_tags=st.integers(0, 1),
        tcp_options=st.sampled_from([b"", bytes.fromhex("0101080a0000000100000002")]),
        tcp_flags=st.sampled_from([0x10, 0x19, 0x90]),
        payload=payload,
        gso_size=st.integers(200, 1400),
    )


asks = (
    st.builds(to_be_cut, packets(4000), st.booleans())
    | st.builds(to_be_summed, packets(1400))
    | st.builds(plain, packets(1400))
)


class Lan:
    """A sender and all receivers, each a NIC with its guest's driver, on one embedded vale."""

    def __init__(self, loop: Loop, sender: tuple[str, Features], at_exit: ExitStack) -> None:
        self._loop, self._at_exit = loop, at_exit
        self._nics: list[Nic] = []
        self.sender = self._attach(0, *sender)
        self.receivers = [self._attach(1 + i, *each) for i, each in enumerate(RECEIVERS)]
        for driver in (self.sender, *self.receivers):
            driver.send([driver.mac + driver.mac + bytes(48)])  # so that the switch knows it
        settle(loop)
        self._known = self._drops()

    def _drops(self) -> dict[str, int]:
        counts = [nic.counters().items() for nic in self._nics]
        return {
            f"{i}: {name}": n for i, c in enumerate(counts) for name, n in c if "_drop_" in name
        }

    def dropped(self) -> dict[str, int]:
        """Frames that were dropped since all were known, by port and reason."""
        return {name: n for name, n in self._drops().items() if n != self._known.get(name, 0)}

    def _attach(self, port: int, frontend: str, offloads: Features) -> Any:
        host = SoftwareHost(self._loop, 4 << 20)
        name = frontend.split()[0]
        nic: Nic = open_spec(
            f"{name},vale7:{port},engine=embedded,mac=02:00:00:00:01:{port:02x}", host
        )
        self._at_exit.callback(nic.close)
        self._nics.append(nic)
        if name == "e1000":
            return E1000Driver(nic, host, features=offloads)
        features, rx = DRIVER_FEATURES | offloads, Shape()
        if name != frontend:
            features, rx = features & ~Features.MRG_RXBUF, Shape(cuts=(12, 1518))
        return VirtioDriver(nic, host, features=features, rx=rx)

    def send(self, burst: list[tuple[int, Asked]]) -> None:
        """Send all at once, each to a receiver, or to all where there is none of that number."""
        macs = [*(driver.mac for driver in self.receivers), ALL]
        sent = [asked.between(self.sender, macs[to]) for to, asked in burst]
        assert self.sender.send([a.frame for a in sent], [a.header for a in sent]) == len(sent)
        settle(self._loop)
        for driver in self.receivers:
            self._check(driver, [a for a in sent if a.frame[:6] in (driver.mac, ALL)])

    def _check(self, driver: Any, sent: list[Asked]) -> None:
        """All came, in order: whole where the guest takes what was asked for, else in segments."""
        got, taken = driver.recv(), driver.features & GUEST_OFFLOADS
        driver.check()
        whole = [a.header for a in sent if a.header[1] and needs(a.header) in taken]
        assert [had[1:6] for _, had in got if had[1]] == [asked[1:6] for asked in whole]
        assert all(needs(had) in taken for _, had in got)
        # An e1000 sends and shows no frame shorter than Ethernet's.
        shortest = 60 if E1000Driver in (type(driver), type(self.sender)) else 0
        pieces = [piece for frame, had in got for piece in segments(frame, had)]
        expected = [frame for asked in sent for frame in asked.plain]
        assert padded(pieces, shortest) == padded(expected, shortest)


def padded(frames: list[bytes], n: int) -> list[bytes]:
    return [frame.ljust(n, b"\0") for frame in frames]


@pytest.fixture(scope="module", params=SENDERS, ids=lambda sender: sender[0])
def lan(request: pytest.FixtureRequest) -> Iterator[Lan]:
    with running() as loop, ExitStack() as at_exit:
        lan = Lan(loop, request.param, at_exit)
        yield lan
        settle(loop)
        assert lan.dropped() == {}


@settings(deadline=None, max_examples=60)
@given(burst=st.lists(st.tuples(st.integers(0, len(RECEIVERS)), asks), min_size=1, max_size=8))
def test_each_guest_of_a_mixed_burst_gets_whole_what_it_takes_and_segments_of_the_rest(
    lan: Lan, burst: list[tuple[int, Asked]]
) -> None:
    lan.send(burst)


@settings(deadline=None, max_examples=20)
@given(burst=st.lists(asks, min_size=1, max_size=8))
@pytest.mark.parametrize("to", range(len(RECEIVERS)), ids=describe)
def test_a_burst_for_one_guest_is_for_its_offloads(lan: Lan, to: int, burst: list[Asked]) -> None:
    lan.send([(to, asked) for asked in burst])


@settings(deadline=None, max_examples=40)
@given(burst=st.lists(asks, min_size=1, max_size=8))
def test_a_flood_reaches_guests_that_take_offloads_and_guests_that_do_not(
    lan: Lan, burst: list[Asked]
) -> None:
    lan.send([(len(RECEIVERS), asked) for asked in burst])
