"""Rings that a guest has broken: the device stops and says why, and nothing else happens.

The comments name the rows of known faults of other implementations that a test answers.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from kit.stage import Stage
from kit.wire import PLAIN
from vnic.burst import Burst, Room
from vnic.features import Features
from vnic_virtio_net.testing import HostileGuest, Ring
from vnic_virtio_net.testing.hostile import INDIRECT, NEXT, RX, TX, WRITE

MODERN = Features.VERSION_1
MRG = MODERN | Features.MRG_RXBUF
TABLES = MODERN | Features.INDIRECT_DESC
SIZE = 8
REGION = 1 << 21
"""Bytes of each region of guest memory: [0, REGION), then a gap, then one from 4 GiB on."""

Build = Callable[[HostileGuest, Ring, int], int]
"""Lay out a chain whose descriptors carry this flag, and return its head."""


def loops_to_itself(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    ring.desc(0, guest.buffer(64), 64, flag | NEXT, 0)
    return 0


def loops_in_two_steps(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    ring.desc(3, guest.buffer(64), 64, flag | NEXT, 5)
    ring.desc(5, guest.buffer(64), 0, flag | NEXT, 3)
    return 3


def goes_on_beyond_the_table(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    ring.desc(0, guest.buffer(64), 64, flag | NEXT, SIZE)
    return 0


def goes_on_far_beyond_the_table(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    ring.desc(0, guest.buffer(64), 64, flag | NEXT, 0xFFFF)
    return 0


def head_beyond_the_table(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    return SIZE


def head_far_beyond_the_table(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    return 0xFFFF


def outside_memory(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B1
    ring.chain(0, [(guest.buffer(64), 64), (1 << 40, 64)], flag)
    return 0


def in_the_gap(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B11
    ring.desc(0, REGION, 64, flag)
    return 0


def one_byte_into_the_gap(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B11
    ring.desc(0, REGION - 63, 64, flag)
    return 0


def wraps_around(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B11
    ring.desc(0, 2**64 - 32, 64, flag)
    return 0


def as_long_as_can_be(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B4
    ring.desc(0, guest.buffer(64), 0xFFFF_FFFF, flag)
    return 0


def wrong_direction(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B1
    ring.chain(0, [(guest.buffer(64), 64)], flag)
    ring.desc(1, guest.buffer(64), 64, flag ^ WRITE)
    ring.desc(0, guest.buffer(64), 64, flag | NEXT, 1)
    return 0


def table_in_a_table(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    inner = ring.table((guest.buffer(64), 64, flag, 0))
    ring.desc(0, ring.table((inner, 16, INDIRECT, 0)), 16, INDIRECT)
    return 0


def table_and_next(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    ring.desc(0, ring.table((guest.buffer(64), 64, flag, 0)), 16, INDIRECT | NEXT, 1)
    ring.desc(1, guest.buffer(64), 64, flag)
    return 0


def table_of_half_a_descriptor(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    ring.desc(0, ring.table((guest.buffer(64), 64, flag, 0)), 24, INDIRECT)
    return 0


def table_of_nothing(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    ring.desc(0, ring.table((guest.buffer(64), 64, flag, 0)), 0, INDIRECT)
    return 0


def table_of_gigabytes(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    ring.desc(0, ring.table((guest.buffer(64), 64, flag, 0)), 0xFFFF_FFF0, INDIRECT)
    return 0


def table_outside_memory(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B1
    ring.desc(0, REGION - 8, 16, INDIRECT)
    return 0


def table_goes_on_beyond_itself(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    table = ring.table((guest.buffer(64), 64, flag | NEXT, 2), (guest.buffer(64), 64, flag, 0))
    ring.desc(0, table, 32, INDIRECT)
    return 0


def table_loops(guest: HostileGuest, ring: Ring, flag: int) -> int:  # B5
    table = ring.table((guest.buffer(64), 64, flag | NEXT, 1), (0, 0, flag | NEXT, 0))
    ring.desc(0, table, 32, INDIRECT)
    return 0


BROKEN: list[tuple[Build, str]] = [
    (loops_to_itself, r"chain at 0 has more than the ring's 8 descriptors: it loops"),
    (loops_in_two_steps, r"chain at 3 has more than the ring's 8 descriptors: it loops"),
    (goes_on_beyond_the_table, r"goes on at 8, of 8 descriptors"),
    (goes_on_far_beyond_the_table, r"goes on at 65535, of 8 descriptors"),
    (head_beyond_the_table, r"avail entry 8 is no descriptor of 8"),
    (head_far_beyond_the_table, r"avail entry 65535 is no descriptor of 8"),
    (outside_memory, r"buffer at 0x10000000000, 0x40 bytes, is not all in memory"),
    (in_the_gap, r"buffer at 0x200000, 0x40 bytes, is not all in memory"),
    (one_byte_into_the_gap, r"buffer at 0x1fffc1, 0x40 bytes, is not all in memory"),
    (wraps_around, r"buffer at 0xffffffffffffffe0, 0x40 bytes, is not all in memory"),
    (as_long_as_can_be, r"0xffffffff bytes, is not all in memory"),
    (wrong_direction, r"device-writable where it must be readable, or the reverse"),
    (table_in_a_table, r"holds an indirect descriptor"),
    (table_and_next, r"also has NEXT"),
    (table_of_half_a_descriptor, r"has 0x18 bytes: not a multiple of 16"),
    (table_of_nothing, r"has 0x0 bytes"),
    (table_of_gigabytes, r"has 0xfffffff0 bytes: not a multiple of 16, or too many"),
    (table_outside_memory, r"buffer at 0x1ffff8, 0x10 bytes, is not all in memory"),
    (table_goes_on_beyond_itself, r"goes on at 2, of 2 descriptors"),
    (table_loops, r"has more than the ring's 2 descriptors: it loops"),
]
broken = pytest.mark.parametrize(
    ("build", "reason"), BROKEN, ids=[build.__name__ for build, _ in BROKEN]
)


@broken
def test_a_broken_transmit_chain_stops_the_device(stage: Stage, build: Build, reason: str) -> None:
    guest = stage.guest(TABLES)
    guest.tx.publish(build(guest, guest.tx, 0))
    guest.kick(TX)
    stage.check_stopped(guest, reason)
    assert stage.wire.sent == []
    assert guest.tx.used() == []


@broken
@pytest.mark.parametrize("features", [TABLES, TABLES | Features.MRG_RXBUF])
def test_a_broken_receive_chain_stops_the_device(
    stage: Stage, build: Build, reason: str, features: Features
) -> None:
    guest = stage.guest(features)
    guest.rx.publish(build(guest, guest.rx, WRITE))
    stage.wire.deliver(bytes(200))
    stage.check_stopped(guest, reason)
    assert guest.rx.used() == []


@broken
def test_frames_before_a_broken_chain_are_sent(stage: Stage, build: Build, reason: str) -> None:
    guest = stage.guest(TABLES)
    guest.tx.desc(6, guest.buffer(PLAIN + b"x" * 60), 72)
    guest.tx.publish(6, 6, build(guest, guest.tx, 0), 6)
    guest.kick(TX)
    stage.check_stopped(guest, reason)
    assert [frame for frame, _ in stage.wire.sent] == [b"x" * 60] * 2
    assert guest.tx.used() == [(6, 0)] * 2


def test_an_indirect_table_that_was_not_negotiated_stops_the_device(stage: Stage) -> None:
    guest = stage.guest(MODERN)
    guest.tx.desc(0, guest.tx.table((guest.buffer(72), 72, 0, 0)), 16, INDIRECT)
    guest.tx.publish(0)
    guest.kick(TX)
    stage.check_stopped(guest, "the feature was not negotiated")


def test_a_buffer_in_read_only_memory_is_not_written_to(stage: Stage) -> None:  # B1
    guest = stage.guest()
    rom = b"\x5a" * 4096
    stage.host.memory.add(1 << 34, 4096, buffer=rom, writable=False)
    guest.rx.desc(0, 1 << 34, 4096, WRITE)
    guest.rx.publish(0)
    stage.wire.deliver(bytes(60))
    stage.check_stopped(guest, r"buffer at 0x400000000, .* not all in memory that allows it")
    assert rom == b"\x5a" * 4096


@pytest.mark.parametrize("n", [0, 1, 11])
def test_a_receive_buffer_that_holds_no_header_stops_the_device(stage: Stage, n: int) -> None:
    guest = stage.guest(MRG)  # B4
    stage.post(guest, n)
    stage.wire.deliver(bytes(60))
    stage.check_stopped(guest, f"receive buffer of {n} bytes can't hold the 12-byte")


# ---- indices -------------------------------------------------------------------------------------


@pytest.mark.parametrize("idx", [SIZE + 1, 0x8000, 0xFFFF])  # B6
@pytest.mark.parametrize("kicks", [True, False])
def test_a_transmit_index_that_jumps_stops_the_device(stage: Stage, idx: int, kicks: bool) -> None:
    guest = stage.guest()
    guest.tx.avail_idx = idx
    guest.kick(TX if kicks else RX)
    stage.check_stopped(guest, f"avail idx {idx} went back, or is more than the ring's 8 entries")


@pytest.mark.parametrize("idx", [SIZE + 1, 0x8000, 0xFFFF])  # B6
def test_a_receive_index_that_jumps_stops_the_device(stage: Stage, idx: int) -> None:
    guest = stage.guest()
    guest.rx.avail_idx = idx
    stage.wire.deliver(bytes(60))
    stage.check_stopped(guest, f"avail idx {idx} went back, or is more than the ring's 8 entries")


def test_an_index_that_goes_back_while_buffers_are_in_hand_stops_the_device(stage: Stage) -> None:
    guest = stage.guest(size=4)
    stage.post(guest, 100, 100, 100, 100)
    short, long = bytes(60), bytes(200)

    def recv(room: Room) -> int:
        n = room.put(Burst.of([short, short, long, long]))
        guest.rx.avail_idx = 2
        return n + room.put(Burst.of([short] * 10))

    stage.wire.on_recv = recv
    stage.wire.link.readable()
    stage.check_stopped(guest, "avail idx 2 went back")
    assert len(guest.rx.used()) == 4


def test_frames_that_wait_are_not_taken_again_when_they_are_published_again(stage: Stage) -> None:
    guest = stage.guest()  # B8
    stage.wire.takes = 0
    guest.tx.desc(0, guest.buffer(PLAIN + bytes(60)), 72)
    guest.tx.publish(*[0] * SIZE)
    guest.kick(TX)
    stage.settle()
    guest.tx.publish(0)
    stage.wire.takes = 3
    stage.wire.link.writable()
    stage.settle()
    assert len(stage.wire.sent) <= SIZE
    stage.wire.takes = None
    stage.wire.link.writable()
    stage.settle()
    assert len(stage.wire.sent) <= SIZE + 1


@pytest.mark.parametrize("features", [TABLES, TABLES | Features.EVENT_IDX])  # B15
def test_indices_wrap(stage: Stage, features: Features) -> None:
    guest = stage.guest(features)
    for index, ring in enumerate(guest.rings):
        guest.face.stop_queue(index)
        ring.avail_idx = ring.used_idx = ring.used_event = 0xFFFD
        guest.start(index, attrs.evolve(ring.addresses, base=0xFFFD))
    stage.settle()
    gpa = guest.buffer(PLAIN + bytes(60))
    buffers = [guest.buffer(100) for _ in range(SIZE)]
    for i in range(SIZE):
        guest.tx.desc(i, gpa, 72)
        guest.rx.desc(i, buffers[i], 100, WRITE)
    for i in range(3 * SIZE):
        before = list(guest.interrupts)
        guest.rx.used_event, guest.tx.used_event = guest.rx.used_idx, guest.tx.used_idx
        guest.tx.publish(i % SIZE)
        guest.rx.publish(i % SIZE)
        guest.kick(TX)
        guest.kick(RX)
        stage.wire.deliver(bytes([i]) * 60)
        stage.settle()
        assert guest.tx.used() == [(i % SIZE, 0)]
        assert guest.rx.used() == [(i % SIZE, 72)]
        assert guest.bytes_at(buffers[i % SIZE] + 12, 60) == bytes([i]) * 60
        assert guest.interrupts == [before[0] + 1, before[1] + 1]
    assert guest.face.stop_queue(TX) == guest.tx.used_idx == (0xFFFD + 3 * SIZE) & 0xFFFF
    assert guest.face.stop_queue(RX) == guest.rx.used_idx


# ---- chains that are odd and allowed -------------------------------------------------------------


def test_the_same_head_twice_is_two_frames(stage: Stage) -> None:  # B13
    guest = stage.guest()
    gpa = guest.buffer(PLAIN + b"a" * 60)
    guest.tx.desc(2, gpa, 72)
    guest.tx.publish(2, 2)
    stage.post(guest, 100)
    guest.rx.publish(0)
    guest.kick(TX)
    stage.wire.deliver(b"b" * 60, b"c" * 60)
    stage.settle()
    assert guest.tx.used() == [(2, 0)] * 2
    assert [frame for frame, _ in stage.wire.sent] == [b"a" * 60] * 2
    assert guest.rx.used() == [(0, 72)] * 2


@pytest.mark.parametrize("n", [1, 255, 256, 257, 1024])  # B16
def test_chains_of_many_segments_are_frames(stage: Stage, n: int) -> None:
    guest = stage.guest(TABLES)
    frame = bytes(range(256)) * 4
    gpa = guest.buffer(PLAIN + frame)
    cuts = [0, *range(13, 12 + n), 12 + len(frame)]
    descs = [
        (gpa + cuts[i], cuts[i + 1] - cuts[i], 0 if i == n - 1 else NEXT, i + 1) for i in range(n)
    ]
    guest.tx.desc(0, guest.tx.table(*descs), 16 * n, INDIRECT)
    guest.tx.publish(0)
    guest.kick(TX)
    stage.settle()
    assert stage.wire.sent == [(frame, PLAIN)]
    assert guest.tx.used() == [(0, 0)]


def test_a_chain_of_more_segments_than_a_frame_may_have_is_dropped(stage: Stage) -> None:
    guest = stage.guest(size=2048)  # B16
    gpa = guest.buffer(4096)
    guest.tx.publish(guest.tx.chain(0, [(gpa + i, 1) for i in range(1025)]))
    guest.tx.publish(guest.tx.chain(1030, [(gpa, 72)]))
    guest.kick(TX)
    stage.settle()
    assert guest.tx.used() == [(0, 0), (1030, 0)]
    assert stage.counter("tx_drop_too_long") == 1
    assert len(stage.wire.sent) == 1


def test_a_chain_of_more_segments_than_a_burst_holds_stops_the_device(stage: Stage) -> None:
    guest = stage.guest(size=8192)  # B16
    gpa = guest.buffer(8192)
    guest.tx.publish(guest.tx.chain(0, [(gpa + i, 1) for i in range(4097)]))
    guest.kick(TX)
    stage.check_stopped(guest, "chain at 0 has more than 4096 segments")


@pytest.mark.parametrize("n", [0, 1, SIZE])
def test_descriptors_of_no_bytes_are_passed_over(stage: Stage, n: int) -> None:  # B4
    guest = stage.guest()
    empty = [(1 << 40, 0)] * n
    gpa = guest.buffer(PLAIN + b"y" * 60)
    guest.tx.publish(guest.tx.chain(0, ([*empty[1:], (gpa, 72)] if n else [(gpa, 72)])))
    guest.kick(TX)
    stage.settle()
    assert [frame for frame, _ in stage.wire.sent] == [b"y" * 60]


def test_a_chain_of_nothing_but_empty_descriptors_is_a_runt(stage: Stage) -> None:  # B4
    guest = stage.guest()
    guest.tx.publish(guest.tx.chain(0, [(1 << 40, 0)] * SIZE))
    guest.kick(TX)
    stage.settle()
    assert guest.tx.used() == [(0, 0)]
    assert stage.counter("tx_drop_runt") == 1
    assert stage.host.failures == []
