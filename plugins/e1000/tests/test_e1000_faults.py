"""Faults that other models of this NIC had: what a hostile driver does, and what comes of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
from kit.segmentation import Packet
from vnic.burst import Burst
from vnic.memory import Memory
from vnic_e1000.ring_kernel import Stats, TxRing
from vnic_e1000.testing.hostile import (
    DATA,
    EOP,
    IC,
    IFCS,
    IXSM,
    RCTL_EN,
    RCTL_UPE,
    RS,
    TSE,
    TXSM,
    VLE,
)
from vnic_e1000.testing.offload import TUCMD_IP, TUCMD_TCP, context, describe

MAC = b"\x52\x54\x00\x12\x34\x56"
END = EOP | IFCS | RS
VME = 1 << 30
SEGMENT = TSE | TUCMD_IP | TUCMD_TCP


def data(n: int) -> bytes:
    return bytes(i & 0xFF for i in range(n))


@pytest.mark.parametrize("hdrlen", [0, 1, 11, 12, 13, 53, 54, 239, 240, 241, 255])
@pytest.mark.parametrize("n", [14, 53, 54, 60, 300])
def test_any_header_length_is_checked_against_the_frame(bench: Any, hdrlen: int, n: int) -> None:
    # A1
    bench.guest.write("CTRL", VME | 1 << 6)
    packet = Packet(payload=data(246), gso_size=100)
    content, *_ = describe(packet.frame(), packet.header)
    words = context(
        ipcss=14, ipcso=24, ipcse=33, tucss=34, tucso=50, paylen=max(0, n - hdrlen),
        command=SEGMENT, hdrlen=hdrlen, mss=100,
    )  # fmt: skip
    gpa = bench.guest.buffer(content[:n])
    out = bench.send(words, (gpa, n | DATA | END | TSE | IXSM | TXSM | VLE))
    assert len(out) == (hdrlen == 54 < n)
    bench.check_alive()


def test_any_checksum_offset_changes_no_byte_outside_the_frame(bench: Any) -> None:
    # A2
    guest = bench.guest
    before = data(80)
    gpa = guest.buffer(before)
    offsets = [0, 1, 12, 13, 14, 40, 58, 59, 60, 78, 79, 80, 81, 254, 255]
    for n, offset, start in itertools.product((14, 60, 80), offsets, (0, 14, 79, 255)):
        for descs in (
            [(gpa, n | END | IC | offset << 16 | start << 40)],
            [
                context(ipcss=start, ipcso=offset, ipcse=offset, tucss=start, tucso=offset),
                (gpa, n | DATA | END | IXSM | TXSM),
            ],
            [
                context(ipcss=start, ipcso=255 - offset, tucss=start, tucso=offset, tucse=70),
                (gpa, n | DATA | END | IXSM | TXSM),
            ],
            [
                context(
                    ipcss=14, ipcso=offset, tucss=start, tucso=offset, paylen=10, hdrlen=54,
                    mss=10, command=SEGMENT,
                ),
                (gpa, n | DATA | END | TSE | IXSM | TXSM),
            ],
            [
                context(
                    ipcss=14, ipcso=offset, tucss=start, tucso=offset, paylen=10, hdrlen=42,
                    mss=10, command=TSE | TUCMD_IP,
                ),
                (gpa, n | DATA | END | TSE | IXSM | TXSM),
            ],
        ):  # fmt: skip
            for frame, _ in bench.send(*descs):
                assert len(frame) == max(n, 60)
            assert guest.bytes_at(gpa, 80) == before
    bench.check_alive()


def test_a_context_in_the_middle_of_a_frame_is_for_the_next_one(bench: Any) -> None:
    # A3
    packet = Packet(payload=data(3000), gso_size=1000)
    content, low, high, rest = describe(packet.frame(), packet.header)
    small = context(
        ipcss=14,
        ipcso=24,
        ipcse=33,
        tucss=34,
        tucso=50,
        paylen=1,
        command=SEGMENT,
        hdrlen=54,
        mss=1,
    )
    gpa = bench.guest.buffer(content)
    half = len(content) // 2
    out = bench.send(
        (low, high),
        (gpa, half | rest),
        small,
        (gpa + half, len(content) - half | rest | EOP | RS),
    )
    assert [asked for _, asked in out] == [packet.header]
    bench.check_alive()


@pytest.mark.parametrize(
    "fields",
    [
        {"mss": 0},
        {"hdrlen": 0},
        {"paylen": 0xFFFFF},
        {"paylen": 0},
        {"mss": 0, "hdrlen": 0, "paylen": 0xFFFFF},
        {"mss": 1},
        {"mss": 0xFFFF},
        {"tucss": 255},
        {"ipcss": 0},
    ],
)
def test_a_doorbell_costs_no_more_than_the_ring_is_long(
    make_bench: Callable[..., Any], fields: dict[str, int]
) -> None:
    # A4
    bench = make_bench(size=4096)
    guest = bench.guest
    packet = Packet(payload=data(200), gso_size=100)
    content, *_ = describe(packet.frame(), packet.header)
    usual = {
        "ipcss": 14, "ipcso": 24, "ipcse": 33, "tucss": 34, "tucso": 50, "paylen": 200,
        "hdrlen": 54, "mss": 100, "command": SEGMENT,
    }  # fmt: skip
    words = context(**(usual | fields))
    gpa = guest.buffer(content)
    guest.tx_desc(0, *words)
    for i in range(1, 4093, 3):
        guest.tx_desc(i, gpa, 0 | DATA | TSE)
        guest.tx_desc(i + 1, *words)
        guest.tx_desc(i + 2, gpa, len(content) | DATA | END | TSE | TXSM)
    began = time.thread_time()
    guest.write("TDT", 4093)
    bench.settle()
    assert time.thread_time() - began < 2
    assert guest.read("TDH") == 4093
    bench.check_alive()


@pytest.mark.parametrize("length", [0, 16, 127, 128, 256, 0xFFF80])
@pytest.mark.parametrize("head", [0, 7, 8, 16, 0x1234, 0xFFFF])
@pytest.mark.parametrize("tail", [0, 8, 9, 0xFFFF])
def test_head_and_tail_may_lie_anywhere(bench: Any, length: int, head: int, tail: int) -> None:
    # A5
    guest = bench.guest
    for prefix in ("TD", "RD"):
        guest.write(f"{prefix}LEN", length)
        guest.write(f"{prefix}H", head)
        guest.write(f"{prefix}T", tail)
    bench.receive(MAC + bytes(54))
    bench.settle()
    for name in ("TDH", "TDT", "RDH", "RDT"):
        guest.read(name)
    bench.check_alive()


@pytest.mark.parametrize("n", range(0, 60, 3))
def test_a_short_frame_is_padded_in_loopback_or_dropped(bench: Any, n: int) -> None:
    # A6
    guest = bench.guest
    guest.write("MDIC", 1 << 26 | 1 << 21 | 0x4140)
    guest.write("TCTL", 2)
    (gpa,) = guest.post(2048)
    bench.host.memory.view(gpa, 64)[:] = b"\xee" * 64
    bench.send((guest.buffer(b"\xff" * 60), n | END))
    if n < 14:
        assert guest.rx_word(0) == 0
    else:
        assert guest.rx_word(0) & 0xFFFF == 64
        assert guest.bytes_at(gpa, 64) == (b"\xff" * n).ljust(64, b"\0")
    bench.check_alive()


@pytest.mark.parametrize("where", ["buffers", "rings"])
def test_addresses_of_the_devices_own_registers_are_no_memory(bench: Any, where: str) -> None:
    # A7
    guest = bench.guest
    bar = 0xFEBC_0000
    guest.pci.write_config(0x10, bar.to_bytes(4, "little"))
    if where == "buffers":
        for i in range(8):
            guest.rx_desc(i, bar + 0x3818)
        guest.write("RDT", 7)
        out = bench.send((bar + 0x100, 60 | END), (guest.buffer(60), 60 | END))
        assert len(out) == 1
        assert bench.counter("tx_drop_bad_buffer") == 1
        assert guest.tx_status(0) == 1
    else:
        for prefix in ("TD", "RD"):
            guest.write(f"{prefix}BAL", bar)
            guest.write(f"{prefix}T", 5)
    guest.write("RCTL", RCTL_EN | RCTL_UPE | 1 << 6)
    bench.receive(MAC + bytes(54))
    bench.settle()
    bench.check_alive()


@pytest.mark.parametrize("n", [1523, 9000, 16385, 65535, 70000])
def test_a_frame_that_is_too_long_is_dropped_and_counted(bench: Any, n: int) -> None:
    # A8
    guest = bench.guest
    guest.post(*[2048] * 7)
    room = bench.wire
    taken: list[bool] = []

    def offer(r: Any) -> int:
        if taken:
            return 0
        taken.append(r.put_frame(MAC + bytes(n - 6)))
        return 1

    room.on_recv = offer
    room.link.readable()
    bench.settle()
    assert taken == [True]
    assert guest.rx_word(0) == 0
    assert guest.read("ROC") == (n <= 65562)
    room.on_recv = None
    bench.check_alive()


def test_a_ring_of_null_buffers_ends_nothing(bench: Any) -> None:
    # A9
    guest = bench.guest
    for i in range(8):
        guest.rx_desc(i, 0)
    guest.write("RDT", 5)
    bench.receive(*[MAC + bytes(54)] * 20)
    assert guest.read("RNBC") == 1
    guest.write("RDT", 7)
    bench.settle()
    assert guest.read("GPRC") == 0
    bench.check_alive()


@pytest.mark.parametrize("order", [*itertools.permutations(["TDBAL", "TDBAH", "TDLEN", "TDT"])])
def test_the_transmit_ring_is_where_it_was_said_last(bench: Any, order: tuple[str, ...]) -> None:
    # A10
    guest = bench.guest
    guest.write("CTRL", 1 << 26)
    guest.write("CTRL", 1 << 6)
    guest.write("TCTL", 2)
    frame = data(100)
    guest.tx_desc(0, guest.buffer(frame), 100 | END)
    values = {
        "TDBAL": guest.tx_gpa & 0xFFFF_FFFF,
        "TDBAH": guest.tx_gpa >> 32,
        "TDLEN": 16 * guest.size,
        "TDT": 1,
    }
    for name in order:
        guest.write(name, values[name])
        bench.settle()
    assert [frame for frame, _ in bench.wire.sent] == [frame]


def test_ring_registers_may_be_written_while_the_receiver_is_on(bench: Any) -> None:
    # A11
    guest = bench.guest
    guest.post(2048, 2048)
    for name, value in itertools.product(
        ("RDBAH", "RDBAL", "RDLEN", "RDH", "RDT", "TDLEN", "TDT"), (0, 1, 16, 0x80, 0xFFFF_FFFF)
    ):
        guest.write(name, value)
        bench.receive(MAC + bytes(54))
    bench.check_alive()


def test_a_head_that_is_told_before_the_ring_has_a_length_is_kept(bench: Any) -> None:
    guest = bench.guest
    guest.write("RDLEN", 0)
    guest.write("RDH", 5)
    bench.receive(MAC + bytes(54))  # for which there is no ring
    assert guest.read("RDH") == 5
    guest.rx_desc(5, guest.buffer(2048))
    guest.write("RDLEN", 128)
    guest.write("RDT", 6)
    bench.receive(MAC + bytes(54))
    assert guest.rx_word(5) >> 32 & 3 == 3
    assert guest.read("RDH") == 6


def test_the_sixteenth_address_is_one_like_the_others(bench: Any) -> None:
    # A11
    guest = bench.guest
    guest.write(0x5400 + 8 * 15, 0xFFFF_FFFF)
    guest.write(0x5404 + 8 * 15, 0xFFFF_FFFF)
    guest.write(0x5400 + 8 * 16, 0xFFFF_FFFF)
    bench.check_alive()


@pytest.mark.parametrize("cuts", [(1,), (59,), (100, 30)])
@pytest.mark.parametrize("kinds", list(itertools.product((0, DATA), repeat=3)))
def test_descriptors_of_different_kinds_may_make_up_a_frame(
    bench: Any, cuts: tuple[int, ...], kinds: tuple[int, ...]
) -> None:
    # A11
    guest = bench.guest
    frame = data(200)
    gpa, at, descs = guest.buffer(frame), 0, []
    lengths = [*cuts, 200 - sum(cuts)]
    for i, n in enumerate(lengths):
        descs.append((gpa + at, n | kinds[i] | (END if i == len(lengths) - 1 else 0)))
        at += n
    assert bench.send(*descs) == [(frame, bytes(12))]
    bench.check_alive()


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5])
def test_a_last_descriptor_shorter_than_an_fcs_is_no_trouble(bench: Any, n: int) -> None:
    # A11
    guest = bench.guest
    gpa = guest.buffer(data(200))
    out = bench.send((gpa, 100), (gpa + 100, n | EOP | RS))
    assert out == [(data(100 + n)[: 96 + n], bytes(12))]
    assert bench.send((gpa, n | EOP | RS)) == []
    bench.check_alive()


@pytest.mark.parametrize("n_buffers", [1, 2, 3])
def test_a_frame_that_fills_its_buffers_says_so(bench: Any, n_buffers: int) -> None:
    # A12
    guest = bench.guest
    guest.start(RCTL_UPE | 3 << 16)
    guest.post(*[256] * 7)
    bench.receive(MAC + bytes(256 * n_buffers - 6 - 4))
    lengths = [guest.rx_word(i) & 0xFFFF for i in range(n_buffers + 1)]
    assert lengths == [*[256] * n_buffers, 0]
    assert guest.rx_word(n_buffers - 1) >> 32 & 3 == 3


def test_with_nothing_pending_receiving_returns_at_once(bench: Any) -> None:
    # A13
    bench.guest.post(2048)
    for _ in range(100):
        bench.wire.link.readable()
    bench.settle()
    assert bench.guest.rx_word(0) == 0


@pytest.mark.parametrize("n", [14, 33, 34, 35, 49, 50, 51])
def test_a_checksum_that_the_frame_is_too_short_for_drops_it(bench: Any, n: int) -> None:
    # A14
    gpa = bench.guest.buffer(data(60))
    out = bench.send(context(tucss=34, tucso=50), (gpa, n | DATA | END | TXSM))
    assert out == []
    assert bench.counter("tx_drop_bad_context") == 1
    ((frame, asked),) = bench.send((gpa, n | END | IC | 50 << 16 | 34 << 40))
    assert (frame, asked) == (data(n).ljust(60, b"\0"), bytes(12))  # the manual: none is inserted
    bench.check_alive()


def test_a_frame_of_more_descriptors_than_the_ring_has_is_given_up(bench: Any) -> None:
    guest = bench.guest
    gpa = guest.buffer(60)
    for i in range(8):
        guest.tx_desc(i, gpa, 60 | IFCS | RS)
    guest.write("TDT", 7)
    bench.settle()
    assert guest.read("TDH") == 7
    assert bench.counter("tx_drop_too_long") == 1
    bench.check_alive()


def test_a_frame_of_more_segments_than_any_may_have_is_dropped(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench(size=4096)
    guest = bench.guest
    gpa = guest.buffer(60)
    for i in range(1999):
        guest.tx_desc(i, gpa, 8 | IFCS | (END if i == 1998 else 0))
    guest.tx_desc(1999, gpa, 60 | END)
    guest.write("TDT", 2000)
    bench.settle()
    assert len(bench.wire.sent) == 1
    assert bench.counter("tx_drop_too_long") == 1
    bench.check_alive()


@pytest.mark.parametrize("n_bytes", [0, 128])
def test_frames_of_a_ring_that_has_moved_are_not_completed_in_another(n_bytes: int) -> None:
    # No host may write registers in the middle of a burst; one that does shall not hang for it.
    memory = Memory()
    memory.add(0, 8192, buffer=bytearray(8192))
    words = memory.view(0, 512).cast("Q")
    for i in range(20):
        words[2 * i], words[2 * i + 1] = 4096, 60 | END
    ring, burst = TxRing(memory, Stats()), Burst()
    ring.place(0, 512)
    ring.tail = 20
    assert ring.parse(burst) == 20
    ring.place(0, n_bytes)
    assert ring.complete(burst, 20) == 0
    assert ring.head == 0
    assert words[1] == 60 | END
    ring.place(0, 512)
    assert ring.parse(burst) == 20
    assert ring.complete(burst, 20) == 5
    assert ring.head == 20
