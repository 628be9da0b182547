"""Checksum and segmentation in software, against a slow twin in plain Python."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.segmentation import (
    CWR,
    DATA_VALID,
    ECN,
    FIN,
    NEEDS_CSUM,
    PSH,
    TCPV4,
    TCPV6,
    UDP_L4,
    UFO,
    Packet,
    completed,
    header,
)
from vnic.offload import segments


def data(n: int, seed: int = 1) -> bytes:
    return (bytes((i * 7 + seed) & 0xFF for i in range(251)) * (n // 251 + 1))[:n]


@st.composite
def packets(draw: st.DrawFn, most: int = 9000) -> Packet:
    ipv6 = draw(st.booleans())
    size = draw(st.integers(1, most))
    return Packet(
        ipv6=ipv6,
        udp=draw(st.booleans()),
        n_tags=draw(st.integers(0, 2)),
        options=bytes(draw(st.integers(0, 4)) * 8) if ipv6 else bytes(draw(st.integers(0, 10)) * 4),
        tcp_options=data(4 * draw(st.integers(0, 10))),
        tcp_flags=draw(st.integers(0, 0xFFF)),
        payload=data(size, draw(st.integers(0, 255))),
        seq=draw(st.integers(0, 2**32 - 1)),
        ip_id=draw(st.integers(0, 0xFFFF)),
        gso_size=draw(st.one_of(st.integers(max(1, size // 60), size + 1), st.just(0xFFFF))),
    )


@settings(deadline=None, max_examples=150)
@given(packets())
def test_segments_are_those_of_the_twin(packet: Packet) -> None:
    assert segments(packet.frame(), packet.header) == packet.segments()


@pytest.mark.parametrize("ipv6", [False, True])
@pytest.mark.parametrize("udp", [False, True])
def test_the_longest_frame_is_cut(ipv6: bool, udp: bool) -> None:
    packet = Packet(ipv6=ipv6, udp=udp, payload=data(65_400), gso_size=1448)
    assert segments(packet.frame(), packet.header) == packet.segments()


def test_fin_and_psh_are_the_last_segments_and_cwr_the_first_ones() -> None:
    packet = Packet(tcp_flags=0x10 | FIN | PSH | CWR, payload=data(2500))
    flags = [segment[14 + 20 + 13] for segment in segments(packet.frame(), packet.header)]
    assert flags == [0x10 | CWR, 0x10, 0x10 | FIN | PSH]


def test_sequence_number_and_ip_id_wrap() -> None:
    packet = Packet(payload=data(5000), seq=2**32 - 1, ip_id=0xFFFF)
    out = segments(packet.frame(), packet.header)
    assert [int.from_bytes(s[18:20], "big") for s in out] == [0xFFFF, 0, 1, 2, 3]
    assert [int.from_bytes(s[38:42], "big") for s in out] == [2**32 - 1, 999, 1999, 2999, 3999]


@settings(deadline=None, max_examples=100)
@given(st.binary(min_size=2, max_size=300), st.data())
def test_a_checksum_is_completed_as_the_twin_does(frame: bytes, draw: st.DataObject) -> None:
    start = draw.draw(st.integers(0, len(frame) - 2))
    offset = draw.draw(st.integers(0, len(frame) - 2 - start))
    asked = header(NEEDS_CSUM, csum_start=start, csum_offset=offset)
    assert segments(frame, asked) == [completed(frame, start, offset)]


@pytest.mark.parametrize("flags", [0, DATA_VALID, 0xF0])
def test_a_frame_that_asks_for_nothing_comes_back(flags: int) -> None:
    assert segments(data(60), header(flags)) == [data(60)]


# ---- what makes no sense -------------------------------------------------------------------------

GOOD = Packet(payload=data(3000))


@pytest.mark.parametrize(  # C8
    "wrong",
    [
        header(NEEDS_CSUM, TCPV4, 54, 0, 34, 16),  # gso_size 0
        header(0, TCPV4, 54, 1000, 34, 16),  # a checksum goes nowhere
        header(NEEDS_CSUM, UFO, 54, 1000, 34, 16),
        header(NEEDS_CSUM, 0x7F, 54, 1000, 34, 16),
        header(NEEDS_CSUM, ECN, 54, 1000, 34, 16),
        header(NEEDS_CSUM, TCPV4, 0xFFFF, 1000, 34, 16),  # hdr_len
        header(NEEDS_CSUM, TCPV4, 54, 1000, 0xFFFF, 16),
        header(NEEDS_CSUM, TCPV4, 54, 1000, 34, 0xFFFF),
        header(NEEDS_CSUM, TCPV4, 54, 1000, 3053, 0),  # one byte of the field is outside
        header(NEEDS_CSUM, TCPV4, 54, 1000, 33, 16),  # no IP header is 19 bytes long
        header(NEEDS_CSUM, TCPV4, 54, 1000, 0, 16),
        header(NEEDS_CSUM, TCPV6, 54, 1000, 34, 16),
        header(NEEDS_CSUM)[:11],
        header(NEEDS_CSUM) + b"\0",
        b"",
    ],
)
def test_a_header_that_makes_no_sense_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match=r"virtio-net header|headers of a"):
        segments(GOOD.frame(), wrong)


@pytest.mark.parametrize("n", [1, 2, 14, 33, 34, 53, 54])
def test_a_frame_that_ends_within_its_headers_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=r"virtio-net header|headers of a"):
        segments(GOOD.frame()[:n], GOOD.header)


def test_a_tcp_header_of_less_than_twenty_bytes_is_refused() -> None:
    frame = bytearray(GOOD.frame())
    frame[14 + 20 + 12] = 0x40
    with pytest.raises(ValueError, match="headers of a"):
        segments(frame, GOOD.header)


def test_tags_without_end_are_refused() -> None:
    frame = bytes(12) + b"\x81\0\0\1" * 500
    with pytest.raises(ValueError, match="headers of a"):
        segments(frame, GOOD.header)


@pytest.mark.parametrize("ipv6", [False, True])
def test_a_segment_longer_than_ip_can_say_is_refused(ipv6: bool) -> None:
    packet = Packet(ipv6=ipv6, payload=data(65_535 - (20 if ipv6 else 40)), gso_size=65_535)
    assert len(segments(packet.frame(), packet.header)) == 1
    packet = attrs.evolve(packet, payload=packet.payload + b"!")
    with pytest.raises(ValueError, match="headers of a"):
        segments(packet.frame(), packet.header)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.binary(min_size=12, max_size=12), st.data())
def test_any_bytes_are_refused_or_cut_within_bounds(
    junk: bytes, hdr: bytes, draw: st.DataObject
) -> None:
    """Random bytes, alone or written over a good packet and its header."""
    frame = bytearray(junk)
    if draw.draw(st.booleans()):
        packet = draw.draw(packets(most=500))
        frame, good = bytearray(packet.frame()), bytearray(packet.header)
        at = draw.draw(st.integers(0, 80))
        frame[at : at + 4] = junk[:4]
        at = draw.draw(st.integers(0, 11))
        good[at : at + 1] = hdr[:1]
        hdr = bytes(good)
    try:
        out = segments(frame, hdr)
    except ValueError:
        return
    if hdr[1] & ~ECN not in (TCPV4, TCPV6, UDP_L4):
        assert [len(segment) for segment in out] == [len(frame)]
        return
    assert len(out[-1]) <= len(out[0])
    assert {len(segment) for segment in out[:-1]} <= {len(out[0])}
    if len(out) == 1:
        assert len(out[0]) == len(frame)
    else:
        headers_len = len(out[0]) - int.from_bytes(hdr[4:6], "little")
        assert 42 <= headers_len <= 512
        assert b"".join(s[headers_len:] for s in out) == bytes(frame[headers_len:])
