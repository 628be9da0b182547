"""Anything that a driver can do: nothing raises, spins, or writes where it must not."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.segmentation import completed, header
from vnic_e1000.registers import BAR_SIZE, OFFSETS, REGISTERS, Access

MAC = b"\x52\x54\x00\x12\x34\x56"
SIZE = 16
IN_FIXTURE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

offsets = st.one_of(
    st.sampled_from(
        [r.offset + i * r.stride for r in REGISTERS if r.name != "PBM" for i in range(min(r.n, 17))]
    ),
    st.integers(0, BAR_SIZE // 4 - 1).map(lambda i: 4 * i),
)
words = st.one_of(
    st.integers(0, 0xFFFF_FFFF),
    st.sampled_from([0, 1, 8, 0x80, 0x100, 0xFFFF, 0x10000, 0x8000_0000, 0xFFFF_FFFF]),
    st.integers(0, 31).map(lambda i: 1 << i),
)
steps = st.one_of(
    st.tuples(st.just("write"), offsets, words),
    st.tuples(st.just("read"), offsets, st.sampled_from([1, 2, 4])),
    st.tuples(st.just("io"), st.integers(0, 63), words),
    st.tuples(st.just("tail"), st.sampled_from([0x2818, 0x3818]), st.integers(0, SIZE)),
    st.tuples(st.just("frame"), st.integers(0, 3000), st.sampled_from([MAC, b"\xff" * 6])),
    st.tuples(st.just("up"), st.booleans(), st.just(0)),
    st.tuples(st.just("pass"), st.integers(0, 1000), st.just(0)),
)
# Addresses near enough to real memory to be interesting: its edges, and what is outside.
places = st.integers(0, 40)
descs = st.lists(
    st.tuples(places, st.integers(0, 3000), st.integers(0, 0xFFF_FFFF_FFFF)), max_size=SIZE
)


def address(bench: Any, place: int, buffer: int) -> int:
    regions = bench.host.memory.regions
    known = [0, buffer, buffer + 1, 0xFEBC_0000, 0xFFFF_FFFF_FFFF_FFF0]
    for region in regions:
        known += [region.gpa, region.gpa + region.size - 1, region.gpa + region.size - 100]
    return int(known[place % len(known)])


@settings(deadline=None, max_examples=150, suppress_health_check=IN_FIXTURE)
@given(st.lists(steps, max_size=60), descs, descs)
def test_no_sequence_of_registers_and_descriptors_is_too_much(
    make_bench: Callable[..., Any],
    steps: list[tuple[str, Any, Any]],
    sent: list[tuple[int, int, int]],
    posted: list[tuple[int, int, int]],
) -> None:
    bench = make_bench(size=SIZE)
    guest = bench.guest
    buffer = guest.buffer(4096)
    for i, (place, length, high) in enumerate(sent):
        guest.tx_desc(i, address(bench, place, buffer), length | high << 20)
    for i, (place, _, _) in enumerate(posted):
        guest.rx_desc(i, address(bench, place, buffer))
    for what, a, b in steps:
        if what == "write" or what == "tail":
            guest.write(a, b)
        elif what == "read":
            guest.pci.read_bar(0, a, b)
        elif what == "io":
            guest.pci.write_bar(2, a & ~3, 4, b)
            guest.pci.read_bar(2, a & ~3, 4)
        elif what == "frame":
            bench.wire.deliver(b + bytes(a))
        elif what == "up":
            bench.wire.link.up() if a else bench.wire.link.down("random")
        else:
            bench.clock.now_s += a * 1e-6
        bench.settle()
    bench.wire.link.up()
    bench.settle()
    # Whatever the receive ring was said to be, the pages in it may be anything now; ours are not.
    guest.write("CTRL", 1 << 26)
    guest.size = SIZE
    bench.check_alive()


# ---- registers against a twin --------------------------------------------------------------------

OF_THEIR_OWN = {"CTRL", "EECD", "EERD", "MDIC", "PBA", "IMS", "RDTR", "TDH", "PBM"}
"""Registers in which a driver doesn't find what it wrote: each has its own tests."""

STORED = {
    r.offset + i * r.stride: r
    for r in REGISTERS
    if r.access is Access.RW and r.name not in OF_THEIR_OWN
    for i in range(r.n)
}

accesses = st.one_of(
    st.tuples(
        st.just("write"), st.sampled_from([*STORED]), st.sampled_from([1, 2, 4, 4, 4]), words
    ),
    st.tuples(st.just("io"), st.sampled_from([*STORED]), st.just(4), words),
    st.tuples(st.just("reset"), st.just(0), st.just(4), st.just(0)),
)


@settings(deadline=None, max_examples=150, suppress_health_check=IN_FIXTURE)
@given(st.lists(accesses, max_size=40))
def test_registers_hold_what_a_twins_do(
    bench: Any, accesses: list[tuple[str, int, int, int]]
) -> None:
    pci, guest = bench.guest.pci, bench.guest
    guest.write("CTRL", 1 << 26)
    at_reset = {offset: r.reset for offset, r in STORED.items()}
    at_reset |= {offset: guest.read(offset) for offset in (OFFSETS["RAL"], OFFSETS["RAH"])}
    twin = dict(at_reset)
    for what, offset, n, value in accesses:
        if what == "reset":
            guest.write("CTRL", 1 << 26)
            twin = dict(at_reset)
            continue
        if what == "write":
            pci.write_bar(0, offset, n, value & (1 << 8 * n) - 1)
        else:
            pci.write_bar(2, 0, 4, offset)
            pci.write_bar(2, 4, 4, value)
        if n == 4:
            mask = STORED[offset].mask
            twin[offset] = twin[offset] & ~mask | value & mask
        assert guest.read(offset) == twin[offset]
    assert {offset: guest.read(offset) for offset in STORED} == twin


# ---- descriptors against a twin ------------------------------------------------------------------


@attrs.define
class Twin:
    """The transmitter in plain Python: a frame at a time, from the manual."""

    memory: Callable[[int, int], bytes]
    pad: bool = True
    vlans: bool = False
    csum: tuple[int, int] = (0, 0)
    out: list[tuple[bytes, bytes]] = attrs.Factory(list)

    def run(self, descs: list[tuple[int, int]]) -> None:
        """Send what is whole; nothing is segmented here."""
        parts: list[bytes] = []
        first, csum = None, self.csum
        for low, high in descs:
            command = high >> 24 & 0xFF
            kind = high >> 20 & 0xF if command & 0x20 else -1
            if kind == 0:
                self.csum = (low, high)
                continue
            if kind > 1:
                continue
            if first is None:
                first, csum = high, self.csum
            length = high & (0xFFFF if kind < 0 else 0xFFFFF)
            if low and length:
                parts.append(self.memory(low, length))
            if command & 1:
                frame = self.frame(b"".join(parts), first, high, csum)
                if frame is not None:
                    self.out.append(frame)
                parts, first = [], None

    def frame(
        self, data: bytes, first: int, last: int, csum: tuple[int, int]
    ) -> tuple[bytes, bytes] | None:
        command = last >> 24 & 0xFF
        if not command & 2:
            data = data[:-4]
        if len(data) < 14:
            return None
        asked = None
        if first >> 29 & 1:
            result = self.extended(data, first, csum)
            if result is None:
                return None
            data, asked = result
        elif command & 0x24 == 0x04:
            start, into = last >> 40 & 0xFF, last >> 16 & 0xFF
            if start < len(data) and into + 2 <= len(data):
                data, asked = self.sum(data, start, 0, into)
        if self.vlans and command & 0x40:
            data = data[:12] + struct.pack(">HH", 0x8100, last >> 48) + data[12:]
            asked = asked and (asked[0] + 4, asked[1])
        if self.pad:
            data = data.ljust(60, b"\0")
        hdr = header(1, csum_start=asked[0], csum_offset=asked[1]) if asked else bytes(12)
        return data, hdr

    def extended(
        self, data: bytes, first: int, csum: tuple[int, int]
    ) -> tuple[bytes, tuple[int, int] | None] | None:
        low = csum[0]
        ipcss, ipcso, ipcse = low & 0xFF, low >> 8 & 0xFF, low >> 16 & 0xFFFF
        tucss, tucso, tucse = low >> 32 & 0xFF, low >> 40 & 0xFF, low >> 48
        ip_end = ipcse + 1 if ipcse else len(data)
        if first >> 40 & 1 and (ipcss >= ip_end or ip_end > len(data) or ipcso + 2 > len(data)):
            return None
        if first >> 41 & 1 and (
            tucss >= len(data)
            or tucso + 2 > len(data)
            or (tucse and not tucss <= tucse < len(data))
        ):
            return None
        if first >> 40 & 1:
            at = data[:ip_end]
            value = completed(at + bytes(300), ipcss, ipcso - ipcss)[ipcso : ipcso + 2]
            if value == b"\xff\xff" and not any(_folded(data[ipcss:ip_end])):
                value = b"\0\0"
            data = data[:ipcso] + _sum(data[ipcss:ip_end]) + data[ipcso + 2 :]
        if first >> 41 & 1:
            return self.sum(data, tucss, tucse, tucso)
        return data, None

    def sum(
        self, data: bytes, start: int, end: int, into: int
    ) -> tuple[bytes, tuple[int, int] | None]:
        if not end and into >= start:
            return data, (start, into - start)
        value = _sum(data[start : end + 1 if end else len(data)])
        return data[:into] + value + data[into + 2 :], None


def _folded(data: bytes) -> bytes:
    return data


def _sum(data: bytes) -> bytes:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", total ^ 0xFFFF)


small = st.integers(0, 130)
contexts = st.tuples(small, small, st.sampled_from([0, 33, 60, 99, 300]), small, small, small).map(
    lambda f: (
        f[0] | f[1] << 8 | f[2] << 16 | f[3] << 32 | f[4] << 40 | (f[5] if f[5] % 2 else 0) << 48,
        1 << 29,
    )
)
commands = st.lists(st.sampled_from([1, 2, 8, 0x10, 0x40, 0x80]), max_size=6).map(
    lambda bits: sum({*bits})
)
plain_descs = st.tuples(
    st.integers(0, 130), commands, st.booleans(), small, small, st.integers(0, 0xFFFF)
).map(lambda f: (1, f[0] | f[3] << 16 | (f[1] | f[2] << 2) << 24 | f[4] << 40 | f[5] << 48))
data_descs = st.tuples(
    st.integers(0, 130), commands, st.integers(0, 3), st.integers(0, 0xFFFF)
).map(lambda f: (1, f[0] | 1 << 20 | (f[1] | 0x20) << 24 | f[2] << 40 | f[3] << 48))

# Whole frames that ask for nothing: the kernel has a shorter way for those.
quick_descs = st.tuples(
    st.integers(10, 130), st.sampled_from([0, 8]), st.sampled_from([0, 0x20 << 24 | 1 << 20])
).map(lambda f: (1, f[0] | (3 | f[1]) << 24 | f[2]))


@settings(deadline=None, max_examples=400, suppress_health_check=IN_FIXTURE)
@given(
    descs=st.lists(
        st.one_of(contexts, plain_descs, data_descs, data_descs, quick_descs), max_size=40
    ),
    vlans=st.booleans(),
    pad=st.booleans(),
    takes=st.none() | st.integers(1, 3),
    step=st.integers(1, 40),
)
def test_frames_are_what_a_twin_would_send(
    bench: Any,
    descs: list[tuple[int, int]],
    vlans: bool,
    pad: bool,
    takes: int | None,
    step: int,
) -> None:
    guest = bench.guest
    size = 64
    if not hasattr(guest, "big"):
        guest.big = bench.host.alloc(16 * size, 128)
        guest.noise = guest.buffer(bytes((i * i >> 3 ^ i) & 0xFF for i in range(400)))
    ring = bench.host.memory.view(guest.big, 16 * size).cast("Q")
    guest.write("CTRL", 1 << 26)
    guest.write("CTRL", 1 << 6 | vlans << 30)
    guest.write("TDBAL", guest.big & 0xFFFF_FFFF)
    guest.write("TDBAH", guest.big >> 32)
    guest.write("TDLEN", 16 * size)
    guest.write("TCTL", 2 | pad << 3)
    placed = [(guest.noise + i if low == 1 else low, high) for i, (low, high) in enumerate(descs)]
    for i, (low, high) in enumerate(placed):
        ring[2 * i], ring[2 * i + 1] = low, high
    bench.wire.sent.clear()
    bench.wire.takes = takes
    for tail in [*range(0, len(placed), step), len(placed)]:
        guest.write("TDT", tail)
        bench.settle()
        for _ in range(50):
            bench.wire.link.writable()
            bench.settle()
            if guest.read("TDH") == tail:
                break
    bench.wire.takes = None
    twin = Twin(guest.bytes_at, pad, vlans)
    twin.run(placed)
    assert bench.wire.sent == twin.out
    whole = max((i + 1 for i, (_, high) in enumerate(placed) if _ends(high)), default=0)
    assert guest.read("TDH") >= whole
    for i in range(whole):
        asked = placed[i][1] >> 24 & 0x18
        assert bool(ring[2 * i + 1] >> 32 & 1) is (bool(asked) or bool(placed[i][1] >> 32 & 1))


def _ends(high: int) -> bool:
    command = high >> 24 & 0xFF
    if command & 0x20 and high >> 20 & 0xF != 1:
        return False
    return bool(command & 1)


@pytest.mark.parametrize("seed", range(3))
def test_memory_may_go_away_under_the_device(bench: Any, seed: int) -> None:
    guest = bench.guest
    guest.post(*[2048] * 7)
    guest.tx_desc(0, guest.buffer(60), 60 | 0x0B << 24)
    region = bench.host.memory.regions[seed % 2]
    bench.host.memory.remove(region.gpa, region.size)
    bench.wire.deliver(MAC + bytes(54))
    guest.write("TDT", 1)
    bench.settle()
    bench.host.memory.clear()
    bench.wire.deliver(MAC + bytes(54))
    guest.write("RDT", 3)
    guest.write("TDT", 2)
    bench.settle()
    assert guest.read("STATUS") & 2
