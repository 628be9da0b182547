"""virtio-net headers of the stand-in's ports, equal and not, and the module's faults with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import attrs
import pytest
from kit.segmentation import (
    DATA_VALID,
    ECN,
    NEEDS_CSUM,
    TCPV4,
    UDP_L4,
    UFO,
    Packet,
    completed,
    header,
)
from vnic_netmap.abi import NetmapReq, NmreqValeAttach, NmreqValeDetach, NrFlag
from vnic_netmap.testing import Client, StandIn, control, frame

LENGTHS = (0, 10, 12)
HEADER = bytes(range(1, 13))
MSS_4 = 1514 - 54
"""What a segment carries whose headers are Ethernet, IPv4, TCP."""

Pair = Callable[[int, int], tuple[Client, Client]]


@pytest.fixture
def pair(stand_in: StandIn) -> Iterator[Pair]:
    """Open two ports with headers of these lengths; the first is the sender."""
    with ExitStack() as stack:

        def open_pair(from_len: int, to_len: int) -> tuple[Client, Client]:
            clients = []
            for i, n in ((1, from_len), (2, to_len)):
                client = stack.enter_context(
                    Client(stand_in, f"vale0:{i}", flags=NrFlag.ACCEPT_VNET_HDR)
                )
                if n:
                    client.set_header(n)
                clients.append(client)
            return clients[0], clients[1]

        yield open_pair


def cut(data: bytes, n: int = 2048) -> list[bytes]:
    """Cut into slots."""
    return [data[i : i + n] for i in range(0, len(data), n)]


# ---- equal lengths -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", LENGTHS)
def test_between_equal_lengths_bytes_pass_untouched(pair: Pair, n: int) -> None:
    one, two = pair(n, n)
    sent = [HEADER[:n] + frame(0, 1, length) for length in (14, 60, 1514, 2036)]
    one.send(*sent)
    assert two.receive() == sent


@pytest.mark.parametrize("n", [10, 12])
def test_between_equal_lengths_large_frames_pass_whole(pair: Pair, n: int) -> None:
    one, two = pair(n, n)
    packet = Packet(payload=bytes(9000))
    sent = packet.header.ljust(n, b"\0")[:n] + packet.frame()
    one.send(cut(sent))
    assert two.receive_fragments() == [cut(sent)]


# ---- where the header has to be ------------------------------------------------------------------


@pytest.mark.parametrize("n", [10, 12])
def test_behind_the_header_are_14_bytes_of_the_frame_or_it_starts_in_the_second_slot(
    pair: Pair, n: int
) -> None:
    one, two = pair(n, n)
    whole = frame(0, 1)
    good = [
        [HEADER[:n] + whole],
        [HEADER[:n] + whole[:14], whole[14:]],
        [HEADER[:n], whole],
        [HEADER[:n], whole[:14], whole[14:]],
    ]
    bad = [
        [HEADER[:n] + whole[:13], whole[13:]],
        [HEADER[:n], whole[:13], whole[13:]],
        [HEADER[: n - 1], HEADER[n - 1 : n] + whole],
        [HEADER[:n]],
    ]
    one.send(*bad, *good)
    assert two.receive_fragments() == good


# ---- other lengths -------------------------------------------------------------------------------


def test_from_0_to_12_and_10_a_zero_header_is_put_in_front(stand_in: StandIn, pair: Pair) -> None:
    one, two = pair(0, 12)
    with Client(stand_in, "vale0:3") as three:
        three.set_header(10)
        one.send(frame(0, 1), [frame(0, 1, 100), b"more"])
        for client, n in ((two, 12), (three, 10)):
            assert client.receive_fragments() == [
                [bytes(n) + frame(0, 1)],
                [bytes(n) + frame(0, 1, 100), b"more"],
            ]


def test_between_12_and_10_the_first_10_bytes_are_copied(pair: Pair) -> None:
    one, two = pair(12, 10)
    one.send(HEADER + frame(0, 1), [HEADER, frame(0, 1)])
    assert two.receive_fragments() == [[HEADER[:10] + frame(0, 1)], [HEADER[:10], frame(0, 1)]]
    two.send(HEADER[:10] + frame(0, 2))
    assert one.receive() == [HEADER[:10] + b"\0\0" + frame(0, 2)]


def test_between_12_and_10_large_frames_pass_whole(pair: Pair) -> None:
    one, two = pair(12, 10)
    packet = Packet(payload=bytes(8000))
    one.send(cut(packet.header + packet.frame()))
    assert two.receive() == [packet.header[:10] + packet.frame()]


@pytest.mark.parametrize("n", [10, 12])
def test_without_a_request_the_header_is_taken_off(pair: Pair, n: int) -> None:
    one, two = pair(n, 0)
    one.send(
        bytes(n) + frame(0, 1),
        header(DATA_VALID)[:n] + frame(0, 1),
        [bytes(n), frame(0, 1), b"more"],
    )
    assert two.receive_fragments() == [[frame(0, 1)], [frame(0, 1)], [frame(0, 1), b"more"]]


@pytest.mark.parametrize("n", [10, 12])
@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("payload", [b"", b"odd", bytes(range(200)) * 5])
def test_to_0_a_checksum_is_filled_in(
    pair: Pair, n: int, udp: bool, ipv6: bool, payload: bytes
) -> None:
    one, two = pair(n, 0)
    packet = Packet(udp=udp, ipv6=ipv6, payload=payload)
    data, offset = packet.frame(), 6 if udp else 16
    asks = header(NEEDS_CSUM, csum_start=packet.l4, csum_offset=offset)[:n]
    one.send(asks + data)
    assert two.receive() == [completed(data, packet.l4, offset)]


def test_to_0_a_checksum_over_slots_of_even_lengths_is_right(pair: Pair) -> None:
    one, two = pair(12, 0)
    packet = Packet(payload=bytes(range(256)) * 20)
    data = packet.frame()
    asks = header(NEEDS_CSUM, csum_start=packet.l4, csum_offset=16)
    one.send([asks, *cut(data, 1000)], [asks + data[:60], *cut(data[60:], 2048)])
    assert two.receive() == [completed(data, packet.l4, 16)] * 2


def test_a_request_for_a_checksum_beyond_the_first_slot_does_nothing(pair: Pair) -> None:
    one, two = pair(12, 0)
    one.send(header(NEEDS_CSUM, csum_start=1000, csum_offset=16) + frame(0, 1))
    assert two.receive() == [frame(0, 1)]


@pytest.mark.parametrize("n", [10, 12])
@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("n_tags", [0, 1, 2])
@pytest.mark.parametrize("tcp_options", [b"", bytes(12)])
def test_to_0_large_tcp_frames_are_cut_to_1514_bytes_whatever_gso_size_says(
    pair: Pair, n: int, ipv6: bool, n_tags: int, tcp_options: bytes
) -> None:
    one, two = pair(n, 0)
    packet = Packet(
        ipv6=ipv6,
        n_tags=n_tags,
        tcp_options=tcp_options,
        payload=bytes(range(250)) * 40,
        gso_size=600,
        tcp_flags=0x19,
    )
    one.send(cut(packet.header[:n] + packet.frame()))
    hdr_len = packet.l4 + 20 + len(tcp_options)
    as_cut = attrs.evolve(packet, gso_size=1514 - hdr_len)
    got = two.receive()
    assert got == as_cut.segments()
    assert {len(one) for one in got[:-1]} == {1514}


def test_to_0_headers_of_a_large_frame_may_be_in_the_second_slot(pair: Pair) -> None:
    one, two = pair(12, 0)
    packet = Packet(payload=bytes(8000), gso_size=MSS_4)
    one.send([packet.header, *cut(packet.frame())])
    assert two.receive() == packet.segments()


def test_to_0_ecn_is_no_obstacle(pair: Pair) -> None:
    one, two = pair(12, 0)
    packet = Packet(payload=bytes(4000), gso_size=MSS_4)
    asks = bytearray(packet.header)
    asks[1] |= ECN
    one.send(cut(bytes(asks) + packet.frame()))
    assert two.receive() == packet.segments()


@pytest.mark.parametrize("ipv6", [False, True])
def test_to_0_ufo_gives_separate_datagrams(pair: Pair, ipv6: bool) -> None:
    one, two = pair(12, 0)
    packet = Packet(udp=True, ipv6=ipv6, payload=bytes(range(250)) * 20)
    one.send(cut(header(NEEDS_CSUM, UFO, gso_size=700) + packet.frame()))
    as_cut = attrs.evolve(packet, gso_size=1514 - packet.l4 - 8)
    assert two.receive() == as_cut.segments()


@pytest.mark.parametrize(
    "asks",
    [
        header(NEEDS_CSUM, UDP_L4, gso_size=1000),
        header(NEEDS_CSUM, 2, gso_size=1000),
        header(4),
        header(NEEDS_CSUM | 0x80),
    ],
)
def test_to_0_uso_or_an_unknown_flag_is_dropped(pair: Pair, asks: bytes) -> None:
    one, two = pair(12, 0)
    one.send(asks + Packet(udp=True, payload=bytes(1500)).frame(), bytes(12) + frame(0, 1))
    assert two.receive() == [frame(0, 1)]


@pytest.mark.parametrize("n", range(12, 66))
def test_to_0_a_large_frame_whose_headers_are_not_whole_in_a_slot_is_dropped(
    pair: Pair, n: int
) -> None:
    one, two = pair(12, 0)
    packet = Packet(payload=bytes(1000))
    whole = packet.header + packet.frame()
    one.send([whole[:n], whole[n:]] if n > 12 else [whole[: 12 + 20], whole[12 + 20 :]])
    assert two.receive() == []


def test_to_0_a_large_frame_of_another_protocol_is_dropped(pair: Pair) -> None:
    one, two = pair(12, 0)
    one.send(header(NEEDS_CSUM, TCPV4, gso_size=1000) + frame(0, 1, 1000))
    assert two.receive() == []


def test_segments_for_which_there_are_not_enough_slots_are_lost_together(stand_in: StandIn) -> None:
    with Client(stand_in, "vale0:1") as one, Client(stand_in, "vale0:2", nr_rx_slots=8) as two:
        one.set_header(12)
        packet = Packet(payload=bytes(8 * MSS_4), gso_size=MSS_4)
        small = attrs.evolve(packet, payload=bytes(7 * MSS_4))
        one.send(cut(packet.header + packet.frame()))
        assert two.receive() == []
        one.send(cut(small.header + small.frame()))
        assert two.receive() == small.segments()


def test_a_nic_on_the_switch_gets_and_gives_frames_without_a_header(stand_in: StandIn) -> None:
    nic = stand_in.add_nic("eth0")
    with Client(stand_in, "vale0:1") as one:
        control(stand_in, one.fd, NetmapReq.VALE_ATTACH, "vale0:eth0", NmreqValeAttach())
        one.set_header(12)
        packet = Packet(payload=bytes(4000), gso_size=500)
        one.send(cut(packet.header + packet.frame()))
        assert list(nic.to_wire) == attrs.evolve(packet, gso_size=MSS_4).segments()
        nic.from_wire(frame(0, 9))
        assert one.receive() == [bytes(12) + frame(0, 9)]
        control(stand_in, one.fd, NetmapReq.VALE_DETACH, "vale0:eth0", NmreqValeDetach())


# ---- faults of the module ------------------------------------------------------------------------


def test_fault_a_checksum_over_slots_that_split_at_an_odd_length_is_wrong(pair: Pair) -> None:
    one, two = pair(12, 0)
    packet = Packet(payload=bytes(range(1, 200)))
    data = packet.frame()
    asks = header(NEEDS_CSUM, csum_start=packet.l4, csum_offset=16)
    one.send([asks + data[:101], data[101:]])
    (got,) = two.receive()
    right = completed(data, packet.l4, 16)
    at = packet.l4 + 16
    assert got[at : at + 2] != right[at : at + 2]
    assert got[:at] + got[at + 2 :] == right[:at] + right[at + 2 :]


def test_fault_from_0_to_12_a_frame_of_2040_bytes_gives_a_slot_of_2052(pair: Pair) -> None:
    one, two = pair(0, 12)
    ring = two.rx[0]
    at = ring.tail
    one.send(frame(0, 1, 2040))
    two.rxsync()
    assert ring.slot(at)[1] == 2052
    assert bytes(ring.buffer(at, 2052)) == bytes(12) + frame(0, 1, 2040)


def test_fault_to_set_12_and_then_0_leaves_the_segment_size_wrong(pair: Pair) -> None:
    one, two = pair(12, 0)
    fine = Packet(payload=bytes(8000), gso_size=MSS_4)
    one.send(cut(fine.header + fine.frame()))
    assert two.receive() == fine.segments()
    two.set_header(12)
    two.set_header(0)
    one.send(cut(fine.header + fine.frame()))
    assert two.receive() == []  # 8000 bytes vanish
    small = attrs.evolve(fine, payload=bytes(3000), gso_size=2048 - 54)
    one.send(cut(small.header + small.frame()))
    assert two.receive() == small.segments()  # longer than any MTU
