"""From the guest: descriptors of each kind, and the frames and requests that they make."""

from __future__ import annotations

import struct
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.segmentation import NEEDS_CSUM, Packet, checksum, completed, header
from vnic.features import NONE
from vnic.offload import segments
from vnic_e1000.testing.hostile import (
    DATA,
    EOP,
    IC,
    IFCS,
    IXSM,
    RS,
    TCTL_EN,
    TXSM,
    VLE,
    HostileGuest,
)
from vnic_e1000.testing.offload import context, describe

PLAIN = bytes(12)
END = EOP | IFCS | RS
VME = 1 << 30
TXDW, TXQE = 1, 2
BY_SIZE = ("PTC64", "PTC127", "PTC255", "PTC511", "PTC1023", "PTC1522")
SIZES = (64, 127, 255, 511, 1023)


def data(n: int, seed: int = 1) -> bytes:
    return bytes((i * 7 + seed) & 0xFF for i in range(n))


def place(guest: HostileGuest, content: bytes, *cuts: int) -> list[tuple[int, int]]:
    """Put bytes into buffers of these lengths and one for the rest; (gpa, length) of each."""
    parts, at = [], 0
    for cut in [*cuts, len(content) - sum(cuts)]:
        parts.append((guest.buffer(content[at : at + cut]), cut))
        at += cut
    return parts


def legacy(guest: HostileGuest, content: bytes, *cuts: int, last: int = END) -> list[Any]:
    parts = place(guest, content, *cuts)
    return [(gpa, n | (last if i == len(parts) - 1 else IFCS)) for i, (gpa, n) in enumerate(parts)]


def extended(
    guest: HostileGuest, content: bytes, *cuts: int, first: int = 0, every: int = 0, last: int = END
) -> list[tuple[int, int]]:
    parts = place(guest, content, *cuts)
    descs = []
    for i, (gpa, n) in enumerate(parts):
        word = n | DATA | IFCS | every
        word |= first if i == 0 else 0
        word |= last if i == len(parts) - 1 else 0
        descs.append((gpa, word))
    return descs


# ---- plain frames --------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [(), (1,), (5, 9), (14,), (100, 1, 1, 1)])
@pytest.mark.parametrize("kind", [legacy, extended])
def test_a_frame_in_several_buffers_is_one_frame(
    bench: Any, kind: Callable[..., Any], cuts: tuple[int, ...]
) -> None:
    content = data(200)
    assert bench.send(*kind(bench.guest, content, *cuts)) == [(content, PLAIN)]
    assert bench.guest.read("TDH") == len(cuts) + 1


def test_descriptors_that_ask_for_it_are_written_back_and_no_others(bench: Any) -> None:
    guest = bench.guest
    bench.send(
        *legacy(guest, data(60), last=EOP | IFCS),
        *legacy(guest, data(60)),
        *legacy(guest, data(60), last=EOP | IFCS | 1 << 28),
    )
    assert [guest.tx_status(i) for i in range(3)] == [0, 1, 1]
    assert guest.read("ICR") & (TXDW | TXQE) == TXDW | TXQE


def test_a_frame_whose_end_is_missing_waits_for_it(bench: Any) -> None:
    guest = bench.guest
    parts = legacy(guest, data(200), 100)
    assert bench.send(parts[0]) == []
    assert guest.read("TDH") == 0
    assert bench.send(parts[1]) == [(data(200), PLAIN)]


def test_descriptors_with_no_data_are_passed_over(bench: Any) -> None:
    guest = bench.guest
    parts = legacy(guest, data(100), 50)
    out = bench.send((0, 20 | IFCS), parts[0], (guest.buffer(8), IFCS), parts[1])
    assert out == [(data(100), PLAIN)]


def test_short_frames_are_padded_when_the_driver_wants_it(bench: Any) -> None:
    assert bench.send(*legacy(bench.guest, data(20))) == [(data(20).ljust(60, b"\0"), PLAIN)]
    bench.guest.write("TCTL", TCTL_EN)
    assert bench.send(*legacy(bench.guest, data(20))) == [(data(20), PLAIN)]


def test_an_fcs_that_the_driver_supplies_is_no_part_of_the_frame(bench: Any) -> None:
    content = data(100)
    assert bench.send(*legacy(bench.guest, content + b"FCS!", last=EOP | RS)) == [(content, PLAIN)]
    assert bench.send(*legacy(bench.guest, content + b"FCS!", 102, last=EOP | RS)) == [
        (content, PLAIN)
    ]


def test_a_full_link_leaves_the_rest_in_the_ring_in_order(bench: Any) -> None:
    guest = bench.guest
    bench.wire.takes = 1
    frames = [data(60, i) for i in range(4)]
    for i, frame in enumerate(frames):
        guest.tx_desc(i, guest.buffer(frame), len(frame) | END)
    guest.write("TDT", 4)
    bench.settle()
    assert guest.read("TDH") == 1
    for _ in range(3):
        bench.wire.link.writable()
        bench.settle()
    assert [frame for frame, _ in bench.wire.sent] == frames
    assert guest.read("TDH") == 4


def test_the_transmitter_can_be_off(bench: Any) -> None:
    bench.guest.write("TCTL", 0)
    assert bench.send(*legacy(bench.guest, data(60))) == []
    bench.guest.write("TCTL", TCTL_EN)
    bench.settle()
    assert len(bench.wire.sent) == 1


def test_a_context_alone_is_taken(bench: Any) -> None:
    low, high = context(tucss=14, tucso=20)
    assert bench.send((low, high | RS)) == []
    assert bench.guest.read("TDH") == 1
    assert bench.guest.tx_status(0) == 1


# ---- checksums -----------------------------------------------------------------------------------


def test_a_legacy_descriptor_asks_for_a_checksum(bench: Any) -> None:
    content = data(100)
    ((gpa, word),) = legacy(bench.guest, content, last=END | IC)
    out = bench.send((gpa, word | 50 << 16 | 34 << 40))
    assert out == [(content, header(NEEDS_CSUM, csum_start=34, csum_offset=16))]


def test_a_context_asks_for_a_checksum_and_stays_in_force(bench: Any) -> None:
    content = data(100)
    asked = header(NEEDS_CSUM, csum_start=34, csum_offset=16)
    out = bench.send(
        context(tucss=34, tucso=50),
        *extended(bench.guest, content, 60, first=TXSM),
        *extended(bench.guest, content, first=TXSM),
        *extended(bench.guest, content),
    )
    assert out == [(content, asked), (content, asked), (content, PLAIN)]


@pytest.mark.parametrize("takes", [1, 2, None])
def test_a_context_stays_in_force_behind_frames_that_ask_for_nothing(
    bench: Any, takes: int | None
) -> None:
    guest, content = bench.guest, data(100)
    asked = header(NEEDS_CSUM, csum_start=34, csum_offset=16)
    bench.wire.takes = takes
    plain = legacy(guest, content)
    bench.send(
        *plain, context(tucss=34, tucso=50), *extended(guest, content, first=TXSM), *plain, *plain
    )
    for _ in range(3):
        bench.wire.link.writable()
        bench.settle()
    assert [sent for _, sent in bench.wire.sent] == [PLAIN, asked, PLAIN, PLAIN]
    assert bench.send(*extended(guest, content, first=TXSM)) == [(content, asked)]


def test_both_contexts_are_kept_apart(bench: Any) -> None:
    packet = Packet(payload=data(300), gso_size=100)
    segmented, low, high, rest = describe(packet.frame(), packet.header)
    content = data(100)
    out = bench.send(
        (low, high),
        context(tucss=34, tucso=50),
        *extended(bench.guest, segmented, every=rest),
        *extended(bench.guest, content, first=TXSM),
    )
    assert out[0][1] == packet.header
    assert out[1] == (content, header(NEEDS_CSUM, csum_start=34, csum_offset=16))


def test_options_count_in_the_first_descriptor_of_a_frame(bench: Any) -> None:
    out = bench.send(
        context(tucss=34, tucso=50), *extended(bench.guest, data(100), 60, last=END | TXSM)
    )
    assert out == [(data(100), PLAIN)]


def test_an_ip_checksum_is_inserted_by_the_device_itself(bench: Any) -> None:
    packet = Packet(payload=data(100), options=bytes(8))
    frame = bytearray(packet.summed())
    frame[24:26] = bytes(2)
    out = bench.send(
        context(ipcss=14, ipcso=24, ipcse=14 + 27, tucss=42, tucso=58),
        *extended(bench.guest, bytes(frame), 11, 8, first=IXSM | TXSM),
    )
    assert out == [(packet.summed(), header(NEEDS_CSUM, csum_start=42, csum_offset=16))]


@pytest.mark.parametrize("cuts", [(), (13, 1, 37)])
def test_a_checksum_that_ends_early_is_done_by_the_device(
    bench: Any, cuts: tuple[int, ...]
) -> None:
    content = data(101)
    out = bench.send(
        context(tucss=35, tucso=50, tucse=80), *extended(bench.guest, content, *cuts, first=TXSM)
    )
    assert out == [(completed(content[:81], 35, 15) + content[81:], PLAIN)]


def test_a_checksum_that_goes_in_front_of_what_it_covers_is_done_by_the_device(bench: Any) -> None:
    content = data(101)
    out = bench.send(context(tucss=60, tucso=20), *extended(bench.guest, content, first=TXSM))
    value = checksum(content[60:]).to_bytes(2, "big")
    assert out == [(content[:20] + value + content[22:], PLAIN)]


# ---- VLAN ----------------------------------------------------------------------------------------


def tag(frame: bytes, tci: int, kind: int = 0x8100) -> bytes:
    return frame[:12] + struct.pack(">HH", kind, tci) + frame[12:]


@pytest.mark.parametrize("cuts", [(), (3,), (12,), (6, 6, 2)])
@pytest.mark.parametrize("kind", [legacy, extended])
def test_a_tag_is_inserted_as_the_last_descriptor_says(
    bench: Any, kind: Callable[..., Any], cuts: tuple[int, ...]
) -> None:
    bench.guest.write("CTRL", VME | 1 << 6)
    descs = kind(bench.guest, data(100), *cuts, last=END | VLE)
    descs[0] = (descs[0][0], descs[0][1] | 0x111 << 48)
    descs[-1] = (descs[-1][0], descs[-1][1] & (1 << 48) - 1 | 0xA123 << 48)
    assert bench.send(*descs) == [(tag(data(100), 0xA123), PLAIN)]


def test_without_vlan_mode_no_tag_is_inserted(bench: Any) -> None:
    assert bench.send(*legacy(bench.guest, data(100), last=END | VLE | 5 << 48)) == [
        (data(100), PLAIN)
    ]


def test_tags_are_of_the_type_that_vet_says(bench: Any) -> None:
    bench.guest.write("CTRL", VME | 1 << 6)
    bench.guest.write("VET", 0x88A8)
    out = bench.send(*legacy(bench.guest, data(100), last=END | VLE | 5 << 48))
    assert out == [(tag(data(100), 5, 0x88A8), PLAIN)]


def test_a_tag_moves_the_checksum(bench: Any) -> None:
    bench.guest.write("CTRL", VME | 1 << 6)
    out = bench.send(
        context(tucss=34, tucso=50),
        *extended(bench.guest, data(100), first=TXSM, last=END | VLE | 5 << 48),
    )
    assert out == [(tag(data(100), 5), header(NEEDS_CSUM, csum_start=38, csum_offset=16))]


def test_the_first_descriptor_tags_a_frame_to_be_segmented(bench: Any) -> None:
    bench.guest.write("CTRL", VME | 1 << 6)
    packet = Packet(payload=data(300), gso_size=100)
    segmented, low, high, rest = describe(packet.frame(), packet.header)
    descs = extended(bench.guest, segmented, 20, every=rest, first=VLE | 9 << 48)
    ((frame, asked),) = bench.send((low, high), *descs)
    expected = attrs.evolve(packet, n_tags=1)
    assert asked == expected.header
    assert segments(frame, asked) == [tag(s, 9) for s in packet.segments()]


# ---- segmentation --------------------------------------------------------------------------------

packets = st.builds(
    Packet,
    ipv6=st.booleans(),
    udp=st.booleans(),
    n_tags=st.integers(0, 1),
    options=st.sampled_from([b"", bytes(8), bytes(40)]),
    tcp_options=st.sampled_from([b"", bytes(12), bytes(40)]),
    tcp_flags=st.sampled_from([0x10, 0x18, 0x11, 0x90]),
    payload=st.integers(20, 9000).map(data),
    gso_size=st.integers(60, 9000),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(packet=packets, cuts=st.lists(st.integers(1, 70), max_size=3))
def test_segmentation_is_asked_of_the_link_with_all_that_drivers_leave_out(
    make_bench: Callable[..., Any], packet: Packet, cuts: list[int]
) -> None:
    bench = make_bench()
    content, low, high, rest = describe(packet.frame(), packet.header)
    cuts = cuts if sum(cuts) < len(content) else []
    ((frame, asked),) = bench.send((low, high), *extended(bench.guest, content, *cuts, every=rest))
    expected = bytearray(packet.frame())
    at = packet.l4 + (6 if packet.udp else 16)
    if not packet.ipv6:
        expected[packet.l3 + 10 : packet.l3 + 12] = bytes(2)
        ip = checksum(bytes(expected[packet.l3 : packet.l4]))
        expected[packet.l3 + 10 : packet.l3 + 12] = ip.to_bytes(2, "big")
    start, n = (packet.l3 + 8, 32) if packet.ipv6 else (packet.l3 + 12, 8)
    pseudo = bytes(expected[start : start + n]) + struct.pack(
        ">HH", 17 if packet.udp else 6, len(expected) - packet.l4
    )
    value = int.from_bytes(pseudo, "big") % 0xFFFF
    got = int.from_bytes(frame[at : at + 2], "big") % 0xFFFF
    expected[at : at + 2] = frame[at : at + 2]
    assert (frame, got) == (bytes(expected), value)
    if len(packet.payload) > packet.gso_size:
        assert asked == packet.header
        assert segments(frame, asked) == packet.segments()
    else:
        offset = 6 if packet.udp else 16
        assert asked == header(NEEDS_CSUM, csum_start=packet.l4, csum_offset=offset)
        assert segments(frame, asked) == packet.segments()
    on_wire = [len(segment) + 4 for segment in packet.segments()]
    assert bench.guest.read("TSCTC") == 1
    assert bench.guest.read("GPTC") == len(on_wire)
    assert bench.guest.read("GOTCL") == sum(on_wire)
    by_size = Counter(BY_SIZE[bisect_left(SIZES, length)] for length in on_wire)
    assert Counter({name: bench.guest.read(name) for name in BY_SIZE}) == by_size


@pytest.mark.parametrize("n", [1, 2, 5])
def test_padding_is_never_taken_for_payload_to_be_segmented(bench: Any, n: int) -> None:
    packet = Packet(payload=data(n), gso_size=2)
    content, low, high, rest = describe(packet.frame(), packet.header)
    ((frame, asked),) = bench.send((low, high), *extended(bench.guest, content, every=rest))
    wanted = packet.segments()
    if len(wanted) == 1:
        wanted = [wanted[0].ljust(60, b"\0")]
    assert [segment[54:] for segment in segments(frame, asked)] == [s[54:] for s in wanted]
    assert bench.guest.read("GPTC") == len(wanted)
    assert bench.guest.read("PTC64") == len(wanted)


def test_a_link_without_offload_is_given_segments(make_bench: Callable[..., Any]) -> None:
    from kit.wire import Wire

    bench = make_bench(wire=Wire(NONE))
    packet = Packet(payload=data(3000), gso_size=1000)
    content, low, high, rest = describe(packet.frame(), packet.header)
    out = bench.send((low, high), *extended(bench.guest, content, every=rest))
    assert out == [(segment, PLAIN) for segment in packet.segments()]


def test_what_differs_from_the_announced_length_is_counted_as_failed(bench: Any) -> None:
    packet = Packet(payload=data(300), gso_size=100)
    content, low, high, rest = describe(packet.frame(), packet.header)
    less = high & ~0xFFFFF | 150
    ((frame, _),) = bench.send((low, less), *extended(bench.guest, content, every=rest))
    assert len(frame) == len(content) - 150
    assert (bench.guest.read("TSCTFC"), bench.guest.read("TSCTC")) == (1, 0)
    more = high & ~0xFFFFF | 400
    ((frame, _),) = bench.send((low, more), *extended(bench.guest, content, every=rest))
    assert len(frame) == len(content)
    assert (bench.guest.read("TSCTFC"), bench.guest.read("TSCTC")) == (1, 0)


def test_the_longest_ip_packet_is_sent_and_a_longer_one_is_not(bench: Any) -> None:
    gpa = bench.guest.buffer(70000)
    for extra, n_sent in ((0, 1), (1, 0)):
        packet = Packet(payload=bytes(65535 - 40 + extra), gso_size=1448)
        content, low, high, rest = describe(packet.frame(), packet.header)
        bench.host.memory.view(gpa, len(content))[:] = content
        out = bench.send((low, high), (gpa, len(content) | DATA | END | rest))
        assert len(out) == n_sent
    assert bench.counter("tx_drop_too_long") == 1


# ---- loopback ------------------------------------------------------------------------------------


def phy_control(bench: Any, value: int) -> None:
    bench.guest.write("MDIC", 1 << 26 | 1 << 21 | value)


@pytest.mark.parametrize("how", ["MAC", "PHY"])
def test_in_loopback_what_is_sent_is_received_and_nothing_else(bench: Any, how: str) -> None:
    guest = bench.guest
    if how == "MAC":
        guest.write("RCTL", guest.read("RCTL") | 1 << 6)
    else:
        phy_control(bench, 0x4140)
    gpas = guest.post(2048, 2048)
    bench.receive(b"\xff" * 6 + data(60))
    content = b"\xff" * 6 + data(94)
    assert bench.send(*legacy(guest, content)) == []
    assert guest.bytes_at(gpas[0], 100) == content
    assert guest.rx_word(0) & 0xFFFF == 104
    assert guest.rx_word(1) == 0
    assert guest.read("ICR") & 0x81 == 0x81
    guest.write("RCTL", guest.read("RCTL") & ~0xC0)
    phy_control(bench, 0x1140)
    bench.settle()
    assert len(bench.send(*legacy(guest, content))) == 1
    bench.receive(b"\xff" * 6 + data(60))
    assert guest.rx_word(1) != 0


def test_in_loopback_a_full_receiver_misses_frames_and_the_transmitter_goes_on(bench: Any) -> None:
    guest = bench.guest
    guest.write("RCTL", guest.read("RCTL") | 1 << 6)
    guest.post(2048)
    for i in range(5):
        guest.read("ICR")
        bench.send(*legacy(guest, b"\xff" * 6 + data(60)))
        assert bool(guest.read("ICR") & 1 << 6) is (i > 0)
    assert guest.read("TDH") == 5
    assert guest.read("MPC") == 4
    assert guest.read("GPRC") == 1


def test_segments_are_looped_back_too(bench: Any) -> None:
    guest = bench.guest
    guest.write("RCTL", guest.read("RCTL") | 1 << 6)
    gpas = guest.post(2048, 2048, 2048)
    packet = Packet(payload=data(2500), gso_size=1000)
    content, low, high, rest = describe(packet.frame(), packet.header)
    bench.send((low, high), *extended(guest, content, every=rest))
    for gpa, segment in zip(gpas, packet.segments(), strict=True):
        assert guest.bytes_at(gpa, len(segment)) == segment
