"""Receive rings against twins: where frames lie, and which are received."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from kit.e1000 import (
    ALL,
    DD,
    EOP,
    GROUP,
    IXSM,
    MAC,
    OTHER,
    SECRC,
    SIZES,
    TCPCS,
    VFE,
    VP,
    frame,
    tagged,
)
from kit.segmentation import Packet
from kit.wire import running, sockets
from vnic.burst import Room
from vnic.loop import Loop
from vnic.testing import SoftwareHost
from vnic_e1000.ring_kernel import RxRing, Stats
from vnic_e1000.testing.hostile import RCTL_BAM, RCTL_EN, RCTL_LPE, RCTL_MPE, RCTL_SBP, RCTL_UPE

# ---- buffers against a twin ----------------------------------------------------------------------


@st.composite
def offers(draw: st.DrawFn) -> tuple[bytes, bytes, list[bytes]]:
    """A frame, its header, and the frames that would have come over a wire."""
    seed = draw(st.integers(0, 255))
    if draw(st.booleans()):
        packet = Packet(
            ipv6=draw(st.booleans()),
            udp=draw(st.booleans()),
            n_tags=draw(st.integers(0, 1)),
            payload=bytes(i * 7 + seed & 0xFF for i in range(draw(st.integers(1, 1000)))),
            gso_size=draw(st.integers(150, 1000)),
        )
        return packet.frame(), packet.header, packet.segments()
    n = draw(st.integers(14, 1500))
    data = frame(n=n, fill=bytes([seed]))
    if n >= 18 and draw(st.booleans()):
        data = tagged(draw(st.integers(0, 0xFFFF)), n=n)
    return data, bytes(12), [data]


def twin_stores(
    frames: list[bytes], holes: set[int], size: int, strip: bool, secrc: bool
) -> list[tuple[bytes, int, int]]:
    """What is in the buffers, and each descriptor's status and special field."""
    out: list[tuple[bytes, int, int]] = []
    for data in frames:
        status, special = DD, 0
        if strip and data[12:14] == b"\x81\x00":
            status, special = DD | VP, int.from_bytes(data[14:16], "big")
            data = data[:12] + data[16:]
        left = data.ljust(60, b"\0") + (b"" if secrc else bytes(4))
        while left:
            part = b"" if len(out) in holes else left[:size]
            left = left[len(part) :]
            out.append((part, status if left else status | EOP, special))
    return out


@settings(deadline=None, max_examples=150)
@given(
    offered=st.lists(offers(), min_size=1, max_size=3),
    holes=st.sets(st.integers(0, 60), max_size=40),
    size=st.sampled_from([256, 512, 2048]),
    strip=st.booleans(),
    secrc=st.booleans(),
    by_descriptor=st.booleans(),
)
def test_frames_lie_in_the_buffers_as_a_twin_would_put_them(
    offered: list[tuple[bytes, bytes, list[bytes]]],
    holes: set[int],
    size: int,
    strip: bool,
    secrc: bool,
    by_descriptor: bool,
) -> None:
    with running() as loop, sockets() as (feed, fd):
        host = SoftwareHost(loop, 1 << 20)
        ring = RxRing(host.memory, Stats())
        ring_gpa = host.alloc(16 * 128)
        view = host.memory.view(ring_gpa, 16 * 128).cast("Q")
        gpas = [host.alloc(size + 64) for _ in range(128)]
        for i, gpa in enumerate(gpas):
            view[2 * i] = 0 if i in holes else gpa
            host.memory.view(gpa, size + 64)[:] = b"\xee" * (size + 64)
        ring.place(ring_gpa, 16 * 128)
        ring.tail = 127
        ring.configure(RCTL_EN | RCTL_UPE | SIZES[size] | secrc * SECRC, 0, 0x8100, strip)
        room = Room(ring.capsule, ring)
        room.open()
        for data, hdr, _ in offered:
            if by_descriptor:
                feed.send(hdr + data)
            else:
                assert room.put_frame(data, hdr)
        if by_descriptor:
            assert room.readv(fd) == (len(offered), 0)
        assert room.close() == len(offered)
        ring.sync()
        frames = [segment for _, _, segments in offered for segment in segments]
        expected = twin_stores(frames, holes, size, strip, secrc)
        assert ring.head == len(expected)
        for i, (part, status, special) in enumerate(expected):
            word = view[2 * i + 1]
            assert (word & 0xFFFF, word >> 32 & 0xFF & ~(IXSM | TCPCS), word >> 48) == (
                len(part),
                status,
                special,
            )
            assert bytes(host.memory.view(gpas[i], len(part))) == part
            assert bytes(host.memory.view(gpas[i] + size, 64)) == b"\xee" * 64
        assert view[2 * len(expected) + 1] == 0


# ---- filters against a twin ----------------------------------------------------------------------

addresses = st.sampled_from([MAC, OTHER, GROUP, b"\x33\x33\0\0\0\1", ALL, b"\x02\0\0\0\0\0"])


def twin_accepts(
    data: bytes, rctl: int, exact: list[bytes], table: set[int], vlans: set[int]
) -> bool:
    """The manual's flow chart, a question at a time."""
    longest = 16384 if rctl & RCTL_LPE else 1522
    if max(len(data), 60) + 4 > longest and not rctl & RCTL_SBP:
        return False
    if len(data) >= 18 and data[12:14] == b"\x81\x00" and rctl & VFE:
        tci = int.from_bytes(data[14:16], "big")
        if tci & 0xFFF not in vlans:
            return False
        if rctl & 1 << 19 and bool(tci & 1 << 12) != bool(rctl & 1 << 20):
            return False
    dst = data[:6]
    if dst in exact:
        return True
    if not dst[0] & 1:
        return bool(rctl & RCTL_UPE)
    if rctl & RCTL_MPE or (dst == ALL and rctl & RCTL_BAM):
        return True
    shift = (36, 35, 34, 32)[rctl >> 12 & 3]
    return int.from_bytes(dst, "little") >> shift & 0xFFF in table


@settings(deadline=None, max_examples=300)
@given(
    rctl=st.integers(0, 0xFFFF_FFFF).map(lambda v: v & 0x06DF_B3FE & ~0xC0),
    dst=addresses,
    exact=st.lists(addresses, max_size=3),
    hashed=st.lists(addresses, max_size=3),
    vlans=st.sets(st.integers(0, 4095), max_size=3),
    tci=st.none() | st.integers(0, 0xFFFF),
    n=st.sampled_from([14, 18, 60, 1518, 1519, 9000, 16380, 16381]),
)
def test_what_is_received_is_what_a_twin_would_receive(
    rctl: int,
    dst: bytes,
    exact: list[bytes],
    hashed: list[bytes],
    vlans: set[int],
    tci: int | None,
    n: int,
) -> None:
    loop = Loop()
    host = SoftwareHost(loop, 1 << 20)
    ring = RxRing(host.memory, Stats())
    ring_gpa = host.alloc(16 * 128)
    view = host.memory.view(ring_gpa, 16 * 128).cast("Q")
    buffer = host.alloc(16384)
    for i in range(128):
        view[2 * i] = buffer
    ring.place(ring_gpa, 16 * 128)
    ring.tail = 127
    ring.configure(rctl, 0, 0x8100, False)
    ring.set_exact(exact)
    shift = (36, 35, 34, 32)[rctl >> 12 & 3]
    table = {int.from_bytes(a, "little") >> shift & 0xFFF for a in hashed}
    words: dict[int, int] = {}
    for bit in table:
        words[bit >> 5] = words.get(bit >> 5, 0) | 1 << (bit & 31)
    for i, value in words.items():
        ring.set_multicast(i, value)
    words = {}
    if tci is not None and vlans:
        tci = tci & 0xF000 | (sorted(vlans)[0] if tci & 1 else tci & 0xFFF)
    for vid in vlans:
        words[vid >> 5] = words.get(vid >> 5, 0) | 1 << (vid & 31)
    for i, value in words.items():
        ring.set_vlans(i, value)
    data = frame(dst, n) if tci is None or n < 18 else tagged(tci, dst, n)
    room = Room(ring.capsule, ring)
    room.open()
    assert room.put_frame(data)
    delivered = room.close()
    assert bool(delivered) is twin_accepts(data, rctl, exact, table, vlans)
    loop.close()
