"""To the guest: filters, buffers, VLAN tags, checksum bits, and what is counted."""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import pytest
from kit.e1000 import (
    ALL,
    DATA_VALID,
    DD,
    EOP,
    GROUP,
    IPCS,
    IPE,
    IXSM,
    MAC,
    OTHER,
    PIF,
    SECRC,
    SIZES,
    TCPCS,
    VFE,
    VME,
    VP,
    frame,
    tagged,
)
from kit.segmentation import NEEDS_CSUM, Packet, completed, header
from kit.wire import Wire
from vnic import hookimpl
from vnic.burst import Room
from vnic.features import GUEST_OFFLOADS, OFFLOADS, Features
from vnic.memory import Memory
from vnic_e1000.ring_kernel import RxRing, Stats
from vnic_e1000.testing.hostile import RCTL_BAM, RCTL_EN, RCTL_LPE, RCTL_MPE, RCTL_SBP, RCTL_UPE


class EagerWire(Wire):
    """Delivers as soon as it may."""

    @hookimpl
    def recv_enable(self) -> None:
        self.link.readable()


def word(bench: Any, i: int = 0) -> tuple[int, int, int, int]:
    """Length, status, errors, special."""
    value = bench.guest.rx_word(i)
    return value & 0xFFFF, value >> 32 & 0xFF, value >> 40 & 0xFF, value >> 48


# ---- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rctl", "dst", "accepted"),
    [
        (0, MAC, True),
        (0, OTHER, False),
        (RCTL_UPE, OTHER, True),
        (0, GROUP, False),
        (RCTL_MPE, GROUP, True),
        (RCTL_UPE, GROUP, False),
        (RCTL_MPE, OTHER, False),
        (0, ALL, False),
        (RCTL_BAM, ALL, True),
        (RCTL_MPE, ALL, True),
        (RCTL_BAM, GROUP, False),
    ],
)
def test_an_address_is_received_as_the_filters_say(
    bench: Any, rctl: int, dst: bytes, accepted: bool
) -> None:
    bench.guest.start(rctl)
    bench.guest.post(2048)
    bench.receive(frame(dst))
    assert (bench.guest.rx_word(0) != 0) is accepted
    assert bench.counter("rx_drop_filtered") == (not accepted)
    assert bench.guest.read("TPR") == 1


@pytest.mark.parametrize("i", range(16))
def test_each_of_sixteen_exact_addresses_is_received_while_it_is_valid(bench: Any, i: int) -> None:
    bench.guest.start(0)
    bench.guest.post(2048, 2048)
    low, high = struct.unpack("<IH", OTHER)
    bench.guest.write(0x5400 + 8 * i, low)
    bench.guest.write(0x5404 + 8 * i, high)
    bench.receive(frame(OTHER))
    assert bench.guest.rx_word(0) == 0
    bench.guest.write(0x5404 + 8 * i, high | 1 << 31 | 1 << 16)  # a source address
    bench.receive(frame(OTHER))
    assert bench.guest.rx_word(0) == 0
    bench.guest.write(0x5404 + 8 * i, high | 1 << 31)
    bench.receive(frame(OTHER))
    assert bench.guest.rx_word(0) != 0


@pytest.mark.parametrize(("offset", "shift"), [(0, 36), (1, 35), (2, 34), (3, 32)])
def test_the_multicast_hash_takes_four_choices_of_bits(bench: Any, offset: int, shift: int) -> None:
    bench.guest.start(offset << 12)
    bench.guest.post(2048, 2048)
    bench.receive(frame(GROUP))
    assert bench.guest.rx_word(0) == 0
    bit = int.from_bytes(GROUP, "little") >> shift & 0xFFF
    bench.guest.write("MTA", 1 << (bit & 31), bit >> 5)
    bench.receive(frame(GROUP))
    assert word(bench)[1] & PIF
    bench.receive(frame(OTHER))  # unicast is no matter of the hash
    assert bench.guest.rx_word(1) == 0


def test_an_exact_address_is_no_matter_of_doubt(bench: Any) -> None:
    bench.guest.post(2048)
    bench.receive(frame())
    assert not word(bench)[1] & PIF


# ---- VLANs ---------------------------------------------------------------------------------------


def test_a_tag_is_moved_into_the_descriptor(bench: Any) -> None:
    bench.guest.write("CTRL", VME | 1 << 6)
    (gpa,) = bench.guest.post(2048)
    bench.receive(tagged(0x6123))
    length, status, _, special = word(bench)
    assert (length, special) == (100 - 4 + 4, 0x6123)
    assert status & VP
    assert bench.guest.bytes_at(gpa, 18) == MAC + OTHER + b"\x12\x34vvvv"
    assert bench.guest.read("GORCL") == 104


def test_without_vlan_mode_a_tag_stays(bench: Any) -> None:
    (gpa,) = bench.guest.post(2048)
    bench.receive(tagged(5))
    length, status, _, special = word(bench)
    assert (length, status & VP, special) == (104, 0, 0)
    assert bench.guest.bytes_at(gpa, 100) == tagged(5)


def test_what_is_a_tag_is_for_vet_to_say(bench: Any) -> None:
    bench.guest.write("CTRL", VME | 1 << 6)
    bench.guest.write("VET", 0x88A8)
    bench.guest.post(2048, 2048)
    bench.receive(tagged(5), tagged(6).replace(b"\x81\x00", b"\x88\xa8"))
    assert word(bench, 0)[3] == 0
    assert word(bench, 1)[3] == 6


def test_vlans_that_are_not_in_the_table_are_filtered(bench: Any) -> None:
    bench.guest.start(RCTL_UPE | VFE)
    bench.guest.post(2048, 2048, 2048)
    bench.guest.write("VFTA", 1 << (100 & 31), 100 >> 5)
    bench.receive(tagged(99), tagged(100), tagged(4000), tagged(0xE064), frame())
    assert [bench.guest.rx_word(i) & 0xFFFF for i in range(4)] == [104, 104, 104, 0]
    assert bench.counter("rx_drop_filtered") == 2


def test_a_short_frame_without_its_tag_is_padded(bench: Any) -> None:
    bench.guest.write("CTRL", VME | 1 << 6)
    (gpa,) = bench.guest.post(2048)
    bench.receive(tagged(5, n=60))
    assert word(bench)[0] == 64
    assert bench.guest.bytes_at(gpa + 56, 8) == bytes(8)


def test_a_frame_to_be_segmented_loses_its_tag_in_each_segment(bench: Any) -> None:
    bench.guest.write("CTRL", VME | 1 << 6)
    packet = Packet(payload=bytes(range(250)) * 8, gso_size=1000, n_tags=1)
    gpas = bench.guest.post(2048, 2048, 2048)
    bench.receive(packet.frame(), header=packet.header)
    for i, segment in enumerate(packet.segments()):
        length, status, _, special = word(bench, i)
        assert status & (VP | EOP | DD) == VP | EOP | DD
        assert special == 1
        stripped = segment[:12] + segment[16:]
        assert length == len(stripped) + 4
        assert bench.guest.bytes_at(gpas[i], len(stripped)) == stripped
    assert bench.guest.rx_word(2) == 0


# ---- buffers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_buffers_have_the_size_that_is_asked_for(bench: Any, size: int) -> None:
    bench.guest.start(RCTL_UPE | RCTL_LPE | SIZES[size])
    gpas = bench.guest.post(*[16384] * 7)
    for gpa in gpas:
        bench.host.memory.view(gpa, 16384)[:] = b"\xee" * 16384
    data = os.urandom(min(5 * size - 10, 16000))
    sent = MAC + data[6:]
    bench.receive(sent)
    got, i = b"", 0
    while True:
        length, status, _, _ = word(bench, i)
        assert status & DD
        got += bench.guest.bytes_at(gpas[i], length)
        beyond = min(size, 16384 - 100)
        assert bench.guest.bytes_at(gpas[i] + beyond, 100) == b"\xee" * 100
        if status & EOP:
            break
        assert length == size
        i += 1
    assert got == sent + bytes(4)
    assert i == (len(sent) + 3) // size


@pytest.mark.parametrize("secrc", [False, True])
def test_the_fcs_is_received_unless_it_is_to_be_stripped(bench: Any, secrc: bool) -> None:
    bench.guest.start(RCTL_UPE | (SECRC if secrc else 0))
    (gpa,) = bench.guest.post(2048)
    bench.host.memory.view(gpa, 200)[:] = b"\xee" * 200
    bench.receive(frame())
    assert word(bench)[0] == (100 if secrc else 104)
    assert bench.guest.bytes_at(gpa + 100, 4) == (b"\xee" * 4 if secrc else bytes(4))
    assert bench.guest.read("GORCL") == 104


@pytest.mark.parametrize("n", [14, 42, 59, 60])
def test_short_frames_are_padded_to_what_ethernet_wants(bench: Any, n: int) -> None:
    (gpa,) = bench.guest.post(2048)
    bench.host.memory.view(gpa, 200)[:] = b"\xee" * 200
    bench.receive(frame(n=n))
    assert word(bench)[0] == 64
    assert bench.guest.bytes_at(gpa, 65) == frame(n=n).ljust(64, b"\0") + b"\xee"


def test_a_null_buffer_is_passed_over(bench: Any) -> None:
    guest = bench.guest
    gpas = guest.post(2048, 2048, 2048)
    guest.rx_desc(1, 0)
    bench.receive(frame(), frame(fill=b"e"))
    assert word(bench, 0)[:2] == (104, DD | EOP | IXSM)
    assert word(bench, 1)[0] == 0
    assert word(bench, 1)[1] & (DD | EOP) == DD
    assert word(bench, 2)[:2] == (104, DD | EOP | IXSM)
    assert guest.bytes_at(gpas[2], 100) == frame(fill=b"e")
    assert bench.counter("rx_bad_buffers") == 1


def test_without_room_frames_wait_and_are_told_of(bench: Any) -> None:
    guest = bench.guest
    guest.post(2048, 2048)
    bench.receive(*[frame(fill=bytes([i])) for i in range(5)])
    assert guest.read("RNBC") == 1
    assert guest.read("RDH") == 2
    gpas = [guest.buffer(2048) for _ in range(3)]
    for i, gpa in enumerate(gpas):
        guest.rx_desc(2 + i, gpa)
    guest.write("RDT", 5)
    bench.settle()
    for i, gpa in enumerate(gpas):
        assert guest.bytes_at(gpa, 100) == frame(fill=bytes([2 + i]))


def test_a_ring_that_fills_as_the_wire_is_enabled_is_filled_again(make_bench: Any) -> None:
    bench = make_bench(wire=EagerWire())
    guest = bench.guest
    guest.start()
    guest.post(2048, 2048)
    bench.receive(*[frame(fill=bytes([i])) for i in range(6)])
    for tail in (4, 6):
        for i in (tail - 2, tail - 1):
            guest.rx_desc(i, guest.buffer(2048))
        guest.write("RDT", tail)
        bench.settle()
        assert guest.read("RDH") == tail


@pytest.mark.parametrize(("rdmts", "few"), [(0, 4), (1, 2), (2, 1)])
def test_few_free_descriptors_are_told_of_once(bench: Any, rdmts: int, few: int) -> None:
    guest = bench.guest
    guest.start(RCTL_UPE | rdmts << 8)
    guest.post(*[2048] * 7)
    guest.read("ICR")
    for left in range(6, -1, -1):
        bench.receive(frame())
        assert bool(guest.read("ICR") & 1 << 4) is (left == few), left


@pytest.mark.parametrize(
    ("rctl", "n", "accepted"),
    [
        (0, 1518, True),
        (0, 1519, False),
        (RCTL_LPE, 1519, True),
        (RCTL_LPE, 16380, True),
        (RCTL_LPE, 16381, False),
        (RCTL_SBP, 1519, True),
        (RCTL_SBP, 20000, True),
    ],
)
def test_long_frames_are_received_as_the_driver_wants(
    bench: Any, rctl: int, n: int, accepted: bool
) -> None:
    bench.guest.start(RCTL_UPE | rctl | SIZES[16384])
    bench.guest.post(16384, 16384, 16384)
    bench.receive(frame(n=n))
    assert (bench.guest.rx_word(0) != 0) is accepted
    assert bench.guest.read("ROC") == (not accepted)


def test_a_long_frame_to_be_segmented_is_judged_by_its_segments(bench: Any) -> None:
    packet = Packet(payload=bytes(5000), gso_size=1460)
    bench.guest.post(*[2048] * 5)
    bench.receive(packet.frame(), header=packet.header)
    assert [bench.guest.rx_word(i) & 0xFFFF for i in range(5)] == [
        *[len(segment) + 4 for segment in packet.segments()],
        0,
    ]
    assert bench.guest.read("ROC") == 0


# ---- checksums -----------------------------------------------------------------------------------


def test_checksums_are_spoken_of_only_when_the_driver_asks(bench: Any) -> None:
    bench.guest.post(2048, 2048, 2048)
    packet = Packet(payload=bytes(100)).summed()
    bench.receive(packet, header=header(DATA_VALID))
    bench.guest.write("RXCSUM", 1 << 9)
    bench.receive(packet, header=header(DATA_VALID))
    bench.receive(packet)
    status = [word(bench, i)[1] & (IXSM | TCPCS | IPCS) for i in range(3)]
    assert status == [IXSM, TCPCS, IXSM]


def test_a_checksum_that_is_completed_here_is_known_to_be_right(bench: Any) -> None:
    bench.guest.write("RXCSUM", 1 << 9)
    (gpa,) = bench.guest.post(2048)
    data = frame()
    bench.receive(data, header=header(NEEDS_CSUM, csum_start=34, csum_offset=16))
    assert bench.guest.bytes_at(gpa, 100) == completed(data, 34, 16)
    assert word(bench)[1] & (IXSM | TCPCS) == TCPCS


@pytest.mark.parametrize("n_tags", [0, 1])
def test_ip_checksums_are_looked_at(bench: Any, n_tags: int) -> None:
    bench.guest.write("RXCSUM", 1 << 8)
    bench.guest.post(2048, 2048, 2048)
    packet = Packet(payload=bytes(100), n_tags=n_tags, options=bytes(40))
    good = packet.summed()
    bad = bytearray(good)
    bad[packet.l3 + 8] ^= 1
    bench.receive(good, bytes(bad), Packet(ipv6=True, payload=bytes(100)).summed())
    assert [word(bench, i)[1] & (IXSM | IPCS) for i in range(3)] == [IPCS, IPCS, IXSM]
    assert [word(bench, i)[2] for i in range(3)] == [0, IPE, 0]


# ---- from a descriptor ---------------------------------------------------------------------------


def test_frames_are_read_from_a_descriptor_into_the_ring(bench: Any) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        bench.guest.start(RCTL_BAM)
        bench.guest.write("CTRL", VME | 1 << 6)
        gpas = bench.guest.post(*[2048] * 7)
        packet = Packet(payload=bytes(2100), gso_size=1000)
        wanted = MAC + packet.frame()[6:]
        for data, asked in (
            (frame(n=42), bytes(12)),
            (frame(OTHER), bytes(12)),
            (tagged(7), bytes(12)),
            (frame(n=1510), header(DATA_VALID)),
            (wanted, packet.header),
        ):
            theirs.send(asked + data)
        bench.wire.fd = ours.fileno()
        bench.receive()
        lengths = [word(bench, i)[0] for i in range(7)]
        last = [len(segment) + 4 for segment in packet.segments()]
        assert lengths == [64, 100, 1514, *last, 0]
        assert bench.guest.bytes_at(gpas[0], 64) == frame(n=42).ljust(64, b"\0")
        assert word(bench, 1)[3] == 7
        assert bench.counter("rx_drop_filtered") == 1
        bench.wire.fd = -1


def test_a_tagged_frame_that_waits_for_room_is_delivered_as_it_came(bench: Any) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        bench.guest.write("CTRL", VME | 1 << 6)
        gpas = bench.guest.post(*[2048] * 7)
        bench.guest.write("RDT", 0)
        packet = Packet(payload=bytes(range(250)) * 8, gso_size=1000, n_tags=1)
        theirs.send(packet.header + packet.frame())
        bench.wire.fd = ours.fileno()
        for tail in (1, 1, 7):  # two of its segments have no room at first
            bench.guest.write("RDT", tail)
            bench.receive()
        bench.wire.fd = -1
    for i, segment in enumerate(packet.segments()):
        stripped = segment[:12] + segment[16:]
        assert bench.guest.bytes_at(gpas[i], len(stripped)) == stripped
    assert bench.counter("rx_drop_bad_header") == 0


# ---- rings ---------------------------------------------------------------------------------------


def test_a_ring_over_no_memory_has_no_room() -> None:
    ring = RxRing(Memory(), Stats())
    ring.place(0x1000, 128)
    ring.tail = 5
    ring.configure(RCTL_EN | RCTL_UPE, 0, 0x8100, False)
    room = Room(ring.capsule, ring)
    room.open()
    assert not room.put_frame(frame())
    assert room.full
    assert room.close() == 0
    assert not ring.is_mapped


def test_frames_come_uncut_only_to_a_ring_that_has_room_for_all_segments_of_one(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Features] = []
    monkeypatch.setattr(bench.nic.link, "set_features", asked.append)
    bench.guest.write("RDLEN", 16 * 128)
    bench.guest.write("RDLEN", 16 * 128)
    bench.guest.write("RDLEN", 16 * 120)
    uncut, cut = asked
    assert uncut == OFFLOADS
    assert {*uncut} - {*cut} == {*GUEST_OFFLOADS} - {Features.GUEST_CSUM}
