"""The software guest: what its stack answers, what it refuses, and that nothing upsets it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vnic.testing.guest import Guest
from vnic.testing.packets import (
    BROADCAST,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    IPPROTO_UDP,
    Arp,
    Echo,
    Frame,
    Ipv4,
    PacketError,
    Udp,
    checksum,
)
from vnic.testing.stack import Stack

MAC_A, MAC_B = b"\x02\0\0\0\0\x0a", b"\x02\0\0\0\0\x0b"
A, B, C = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2"), IPv4Address("10.0.0.3")

addresses = st.ip_addresses(v=4)
ports = st.integers(0, 65535)
payloads = st.binary(max_size=1400)


@pytest.fixture
def a() -> Stack:
    return Stack(MAC_A, A)


@pytest.fixture
def b() -> Stack:
    return Stack(MAC_B, B)


def exchange(*stacks: Stack) -> list[Frame]:
    """Carry all frames between the stacks until none is left; return them in order."""
    carried = []
    while any(stack.outgoing for stack in stacks):
        for stack in stacks:
            while stack.outgoing:
                frame = stack.outgoing.popleft()
                carried.append(Frame.decode(frame))
                for other in stacks:
                    if other is not stack:
                        other.receive(frame)
    return carried


def from_b(udp: bytes, dst: IPv4Address = A) -> bytes:
    packet = Ipv4(src=B, dst=dst, protocol=IPPROTO_UDP, payload=udp)
    return Frame(MAC_A, MAC_B, ETHERTYPE_IPV4, packet.encode()).encode()


# ---- packets


@given(st.binary(max_size=99))
def test_a_checksum_is_the_ones_complement_of_the_sum_of_words(data: bytes) -> None:
    total = 0
    padded = data + b"\0" * (len(data) % 2)
    for (word,) in struct.iter_unpack("!H", padded):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    assert checksum(data) == total ^ 0xFFFF


@given(payloads, ports, ports, addresses, addresses)
def test_a_datagram_is_read_as_it_was_written(
    payload: bytes, src_port: int, dst_port: int, src: IPv4Address, dst: IPv4Address
) -> None:
    udp = Udp(src_port=src_port, dst_port=dst_port, payload=payload)
    packet = Ipv4(src=src, dst=dst, protocol=IPPROTO_UDP, payload=udp.encode(src, dst))
    frame = Frame(MAC_A, MAC_B, ETHERTYPE_IPV4, packet.encode())
    read = Ipv4.decode(Frame.decode(frame.encode()).payload)
    assert read == packet
    assert Udp.decode(read.payload, read.src, read.dst) == udp


@given(st.sampled_from([Echo.REQUEST, Echo.REPLY]), ports, ports, payloads, st.data())
def test_an_echo_with_a_flipped_bit_is_refused(
    kind: int, identifier: int, sequence: int, payload: bytes, data: st.DataObject
) -> None:
    echo = Echo(kind=kind, identifier=identifier, sequence=sequence, payload=payload)
    encoded = bytearray(echo.encode())
    assert Echo.decode(bytes(encoded)) == echo
    bit = data.draw(st.integers(0, 8 * len(encoded) - 1))
    encoded[bit // 8] ^= 1 << bit % 8
    with pytest.raises(PacketError):
        Echo.decode(bytes(encoded))


# ---- ARP


def test_a_request_for_our_address_is_answered_and_its_sender_remembered(a: Stack) -> None:
    request = Arp(operation=Arp.REQUEST, sender_mac=MAC_B, sender_ip=B, target_ip=A)
    a.receive(Frame(BROADCAST, MAC_B, ETHERTYPE_ARP, request.encode()).encode())
    (answer,) = exchange(a)
    assert (answer.dst, answer.src) == (MAC_B, MAC_A)
    assert Arp.decode(answer.payload) == Arp(
        operation=Arp.REPLY, sender_mac=MAC_A, sender_ip=A, target_mac=MAC_B, target_ip=B
    )
    assert a.neighbours == {B: MAC_B}


def test_a_request_for_another_address_is_none_of_our_business(a: Stack) -> None:
    request = Arp(operation=Arp.REQUEST, sender_mac=MAC_B, sender_ip=B, target_ip=C)
    a.receive(Frame(BROADCAST, MAC_B, ETHERTYPE_ARP, request.encode()).encode())
    assert not a.outgoing
    assert not a.neighbours


def test_packets_wait_for_the_address_and_then_go_in_order(a: Stack, b: Stack) -> None:
    for n in range(3):
        a.udp_send(B, 9, bytes([n]), 8)
    exchange(a, b)
    assert [datagram.data for datagram in b.datagrams] == [b"\0", b"\1", b"\2"]


def test_what_waits_for_an_address_that_nobody_has_is_bounded_and_counted(a: Stack) -> None:
    for _ in range(100):
        a.udp_send(C, 9, b"", 8)
    assert a.counts["drop_unresolved"] == 36
    assert len(a.outgoing) == 100  # a request each


# ---- ICMP


def test_a_ping_comes_back_with_its_own_bytes(a: Stack, b: Stack) -> None:
    ping = a.ping(B, b"0123456789")
    assert ping.reply is None
    exchange(a, b)
    assert ping.answered
    assert ping.reply == b"0123456789"


def test_a_reply_that_nobody_asked_for_is_counted_and_changes_nothing(a: Stack, b: Stack) -> None:
    ping = a.ping(B, b"x")
    exchange(a, b)
    b._send(A, 1, Echo(kind=Echo.REPLY, identifier=1, sequence=1, payload=b"y").encode())
    exchange(a, b)
    assert a.counts["drop_unasked"] == 1
    assert ping.reply == b"x"


def test_what_the_mtu_cannot_carry_is_refused_with_the_longest_that_it_can(a: Stack) -> None:
    a.ping(B, bytes(1472))
    with pytest.raises(ValueError, match="send at most 1472"):
        a.ping(B, bytes(1473))
    with pytest.raises(ValueError, match="send at most 1472"):
        a.udp_send(B, 9, bytes(1473), 8)


# ---- UDP


def test_a_datagram_arrives_with_where_it_came_from(a: Stack, b: Stack) -> None:
    a.udp_send(B, 53, b"question", 1024)
    exchange(a, b)
    (datagram,) = b.datagrams
    assert attrs.astuple(datagram) == (A, 1024, 53, b"question")


def test_a_datagram_with_a_wrong_checksum_is_dropped_and_counted(a: Stack) -> None:
    udp = bytearray(Udp(src_port=1, dst_port=2, payload=b"data").encode(B, A))
    udp[-1] ^= 1
    a.receive(from_b(bytes(udp)))
    assert not a.datagrams
    assert a.counts["drop_malformed"] == 1


def test_a_datagram_without_a_checksum_is_taken(a: Stack) -> None:
    a.receive(from_b(struct.pack("!HHHH", 1, 2, 12, 0) + b"data"))
    assert [datagram.data for datagram in a.datagrams] == [b"data"]


NEEDS_CSUM = struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 6, 1)


def partial(payload: bytes) -> bytes:
    """A datagram from B to A whose checksum is its pseudo header's sum alone."""
    n = 8 + len(payload)
    pseudo = struct.pack("!4s4sBBH", B.packed, A.packed, 0, IPPROTO_UDP, n)
    return struct.pack("!HHHH", 1, 2, n, checksum(pseudo) ^ 0xFFFF) + payload


@given(payloads)
def test_a_checksum_that_was_left_to_the_receiver_is_made_and_verified(payload: bytes) -> None:
    a = Stack(MAC_A, A)
    a.receive(from_b(partial(payload)), NEEDS_CSUM)
    assert [datagram.data for datagram in a.datagrams] == [payload]
    assert a.counts["completed"] == 1


def test_a_partial_checksum_of_other_addresses_is_found_out(a: Stack) -> None:
    udp = bytearray(partial(b"data"))
    udp[6] ^= 1
    a.receive(from_b(bytes(udp)), NEEDS_CSUM)
    assert not a.datagrams
    assert a.counts["drop_malformed"] == 1


def test_a_checksum_to_be_made_beyond_the_frame_drops_it(a: Stack) -> None:
    a.receive(from_b(partial(b"data")), struct.pack("<BBHHHHH", 1, 0, 0, 0, 58, 1, 1))
    assert a.counts["drop_malformed"] == 1


def test_several_datagrams_in_one_frame_are_several_datagrams(a: Stack) -> None:
    header = struct.pack("<BBHHHHH", 1, 5, 42, 4, 34, 6, 1)
    a.receive(from_b(partial(b"aaaabbbbcc")), header)
    assert [datagram.data for datagram in a.datagrams] == [b"aaaa", b"bbbb", b"cc"]


def test_datagrams_that_nobody_reads_are_bounded_and_counted(a: Stack) -> None:
    header = struct.pack("<BBHHHHH", 1, 5, 42, 1, 34, 6, 1)
    for _ in range(5):
        a.receive(from_b(partial(bytes(1000))), header)
    assert len(a.datagrams) == 4096
    assert a.counts["drop_unread"] == 5000 - 4096


# ---- anything


@given(st.binary(max_size=200), st.binary(max_size=14))
def test_any_bytes_are_handled_or_counted(frame: bytes, header: bytes) -> None:
    a = Stack(MAC_A, A)
    a.receive(frame, header)
    assert sum(a.counts.values()) == 1


@given(
    st.sampled_from([ETHERTYPE_ARP, ETHERTYPE_IPV4]),
    st.binary(max_size=200),
    st.binary(min_size=12, max_size=12),
)
def test_any_packet_is_handled_or_counted(ethertype: int, payload: bytes, header: bytes) -> None:
    a = Stack(MAC_A, A)
    a.receive(Frame(MAC_A, MAC_B, ethertype, payload).encode(), header)
    assert sum(a.counts.values()) >= 1


@given(st.integers(0, 8 * 60 - 1), st.binary(min_size=12, max_size=12))
def test_a_frame_with_a_flipped_bit_upsets_nobody(bit: int, header: bytes) -> None:
    a, b = Stack(MAC_A, A), Stack(MAC_B, B)
    b.neighbours[A] = MAC_A
    b.ping(A, b"payload")
    frame = bytearray(b.outgoing.popleft())
    frame[bit // 8] ^= 1 << bit % 8
    a.receive(bytes(frame), header)
    for answer in a.outgoing:
        b.receive(answer)


# ---- with a driver


class FakeDriver:
    """As much of a driver as a guest uses: a ring of two frames, and what has arrived."""

    mac = MAC_A
    mtu = 1500

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.arrived: list[tuple[bytes, bytes]] = []
        self.room = 2

    def send(self, frames: Sequence[bytes]) -> int:
        n = min(self.room, len(frames))
        self.sent += list(frames)[:n]
        self.room -= n
        return n

    def recv(self, limit: int) -> list[tuple[bytes, bytes]]:
        arrived, self.arrived = self.arrived[:limit], self.arrived[limit:]
        return arrived


def test_what_a_full_ring_does_not_take_is_sent_by_a_later_poll_in_order() -> None:
    driver = FakeDriver()
    guest = Guest(driver, "10.0.0.1", "guest")  # type: ignore[arg-type]
    guest.stack.neighbours[B] = MAC_B
    for n in range(4):
        guest.udp_send("10.0.0.2", 9, bytes([n]))
    assert len(driver.sent) == 2
    driver.room = 9
    assert guest.poll() == 0
    ports_and_data = [Ipv4.decode(Frame.decode(frame).payload).payload for frame in driver.sent]
    assert [Udp.decode(udp, A, B).payload for udp in ports_and_data] == [b"\0", b"\1", b"\2", b"\3"]


def test_a_poll_answers_what_has_arrived() -> None:
    driver = FakeDriver()
    guest = Guest(driver, "10.0.0.1", "guest")  # type: ignore[arg-type]
    request = Arp(operation=Arp.REQUEST, sender_mac=MAC_B, sender_ip=B, target_ip=A)
    driver.arrived = [
        (Frame(BROADCAST, MAC_B, ETHERTYPE_ARP, request.encode()).encode(), bytes(12))
    ]
    assert guest.poll() == 1
    (answer,) = driver.sent
    assert Frame.decode(answer).dst == MAC_B
