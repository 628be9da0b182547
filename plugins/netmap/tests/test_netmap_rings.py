"""The ring kernel against memory laid out by hand: slots filled and read, and nothing trusted."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Sequence
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vnic.burst import Burst
from vnic.testing.bench import pool_of
from vnic_netmap.abi import NetmapIf, NetmapRing, NetmapSlot, SlotFlag
from vnic_netmap.ring_kernel import Rings

IF_AT: Final = 0x40
GUARD: Final = 4096
MOREFRAG: Final = SlotFlag.MOREFRAG
HEADER: Final = bytes(range(2, 12)) + bytes(2)


class Area:
    """A port's memory between two guards: a ring each way, and host rings that are absent."""

    def __init__(self, n_slots: int = 8, buf_size: int = 64) -> None:
        ring_len = ctypes.sizeof(NetmapRing) + n_slots * ctypes.sizeof(NetmapSlot)
        ring_len = -(-ring_len // 128) * 128
        self.n_slots, self.buf_size = n_slots, buf_size
        self._rings_at = (0x100, 0x100 + ring_len)
        self._bufs_at = 0x100 + 2 * ring_len
        size = self._bufs_at + (2 + 2 * n_slots) * buf_size
        self.whole = bytearray(random.Random(0).randbytes(GUARD)) + bytes(size) + b"\xee" * GUARD
        self.mapping = memoryview(self.whole)[GUARD : GUARD + size]
        self._guards = bytes(self.whole[:GUARD]), bytes(self.whole[-GUARD:])
        nifp = NetmapIf(ni_tx_rings=1, ni_rx_rings=1, ni_host_tx_rings=1, ni_host_rx_rings=1)
        offsets = (ctypes.c_int64 * 4)(self._rings_at[0] - IF_AT, 0, self._rings_at[1] - IF_AT, 0)
        self.write(IF_AT, bytes(nifp) + bytes(offsets))
        for i, (at, tail) in enumerate(zip(self._rings_at, (n_slots - 1, 0), strict=True)):
            ring = NetmapRing(
                buf_ofs=self._bufs_at - at, num_slots=n_slots, nr_buf_size=buf_size, tail=tail
            )
            self.write(at, bytes(ring))
            for k in range(n_slots):
                self.set_slot(i, k, buf_idx=2 + i * n_slots + k)

    def write(self, at: int, data: bytes) -> None:
        self.mapping[at : at + len(data)] = data

    def rings(self, **framing: int) -> Rings:
        rings = Rings(self.mapping, IF_AT, [0], [0])
        rings.set_framing(
            framing.get("header_len", 0), framing.get("spare", 0), bool(framing.get("fragments", 1))
        )
        return rings

    def ring(self, i: int) -> NetmapRing:
        """A copy: a view would hold the memory."""
        return NetmapRing.from_buffer_copy(self.mapping, self._rings_at[i])

    def set_ring(self, i: int, **fields: int) -> None:
        ring = self.ring(i)
        for name, value in fields.items():
            setattr(ring, name, value)
        self.write(self._rings_at[i], bytes(ring))

    def _slot_at(self, i: int, k: int) -> int:
        return self._rings_at[i] + ctypes.sizeof(NetmapRing) + k * ctypes.sizeof(NetmapSlot)

    def slot(self, i: int, k: int) -> NetmapSlot:
        return NetmapSlot.from_buffer_copy(self.mapping, self._slot_at(i, k))

    def set_slot(self, i: int, k: int, **fields: int) -> None:
        slot = self.slot(i, k)
        for name, value in fields.items():
            setattr(slot, name, value)
        self.write(self._slot_at(i, k), bytes(slot))

    def buffer_at(self, i: int, k: int) -> int:
        return self._bufs_at + self.slot(i, k).buf_idx * self.buf_size

    def filled(self) -> list[list[bytes]]:
        """What is in transmit slots before head: the slots of each frame."""
        frames: list[list[bytes]] = [[]]
        for k in range(self.ring(0).head):
            slot = self.slot(0, k)
            at = self.buffer_at(0, k)
            frames[-1].append(bytes(self.mapping[at : at + slot.len]))
            if not slot.flags & MOREFRAG:
                frames.append([])
        assert not frames.pop(), "the last frame has no end"
        return frames

    def arrive(self, *frames: Sequence[bytes]) -> None:
        """Put frames into receive slots, as the module does; each is a sequence of slots."""
        at = self.ring(1).tail
        for frame in frames:
            for i, part in enumerate(frame):
                flags = MOREFRAG if i + 1 < len(frame) else 0
                self.set_slot(1, at, len=len(part), flags=flags | len(frame) << 8)
                self.write(self.buffer_at(1, at), part)
                at = (at + 1) % self.n_slots
        self.set_ring(1, tail=at)

    def check(self) -> None:
        """Nothing outside of the mapping was written."""
        assert (bytes(self.whole[:GUARD]), bytes(self.whole[-GUARD:])) == self._guards


def gathered(rings: Rings) -> list[bytes]:
    rings.gather(0)
    return [bytes(frame) for frame in rings.burst]


def frame(n: int, seed: int = 0) -> bytes:
    return random.Random(n << 8 | seed).randbytes(n)


# ---- from the guest


def test_frames_are_copied_into_slots_and_head_is_told() -> None:
    area = Area()
    rings = area.rings()
    frames = [frame(14), frame(60), frame(64)]
    assert rings.send(Burst.of(frames)) == 3
    assert area.filled() == [[f] for f in frames]
    assert (area.ring(0).head, area.ring(0).cur) == (3, 3)


def test_a_frame_longer_than_a_buffer_takes_several_slots() -> None:
    area = Area()
    rings = area.rings()
    long = frame(150)
    assert rings.send(Burst.of([long, frame(20)])) == 2
    assert area.filled() == [[long[:64], long[64:128], long[128:]], [frame(20)]]


def test_a_frame_in_segments_is_gathered() -> None:
    area = Area()
    pool = pool_of([frame(150)])
    assert area.rings().send(pool.burst) == 1
    assert b"".join(area.filled()[0]) == frame(150)


def test_the_header_is_whole_in_the_first_slot_with_the_frame_behind_it() -> None:
    area = Area()
    long = frame(60)
    area.rings(header_len=12).send(Burst.of([long], [HEADER[:10] + b"\xff\xff"]))
    assert area.filled() == [[HEADER[:10] + b"\0\0" + long[:52], long[52:]]]


def test_a_header_of_10_bytes_has_no_number_of_buffers() -> None:
    area = Area()
    area.rings(header_len=10).send(Burst.of([frame(20)], [HEADER]))
    assert area.filled() == [[HEADER[:10] + frame(20)]]


def test_room_is_left_at_the_end_of_the_first_slot_for_a_longer_header() -> None:
    # Fault of the module: 0 to 12 bytes of header makes a slot of 2040 bytes one of 2052.
    area = Area()
    long = frame(64)
    area.rings(spare=12).send(Burst.of([long, frame(52)]))
    assert area.filled() == [[long[:52], long[52:]], [frame(52)]]


@pytest.mark.parametrize("csum_start", [16, 17])
def test_a_frame_with_its_checksum_to_do_is_split_at_an_even_distance_from_its_start(
    csum_start: int,
) -> None:
    # Fault of the module: it gets the checksum wrong where a fragment has an odd length.
    area = Area(n_slots=16)
    header = bytes([1, 0, 0, 0, 0, 0, csum_start, 0, 2, 0, 0, 0])
    long = frame(300)
    area.rings(header_len=12).send(Burst.of([long], [header]))
    (slots,) = area.filled()
    assert b"".join(slots)[12:] == long
    assert (len(slots[0]) - 12 - csum_start) % 2 == 0
    assert all(len(slot) % 2 == 0 for slot in slots[1:-1])


def test_a_full_ring_takes_no_more_and_the_rest_later_in_order() -> None:
    area = Area()
    rings = area.rings()
    frames = [frame(20, i) for i in range(10)]
    burst = Burst.of(frames)
    assert rings.send(burst) == 7
    assert rings.send(burst, 7) == 0
    first = area.filled()
    area.set_ring(0, tail=2)  # the module has sent three
    assert rings.send(burst, 7) == 3
    assert first == [[f] for f in frames[:7]]
    slots = [area.slot(0, k) for k in (7, 0, 1)]
    assert [slot.len for slot in slots] == [20, 20, 20]
    assert area.ring(0).head == 2


def test_a_frame_that_the_free_slots_cannot_hold_whole_waits_whole() -> None:
    area = Area()
    rings = area.rings()
    assert rings.send(Burst.of([frame(20)] * 6 + [frame(100)])) == 6
    assert area.ring(0).head == 6


def test_waiting_to_send_is_for_more_slots_than_are_free_now() -> None:
    area = Area()
    rings = area.rings()
    rings.send(Burst.of([frame(20)] * 6 + [frame(100)]))
    rings.wait_to_send()
    assert (area.ring(0).head, area.ring(0).cur, area.ring(0).tail) == (6, 7, 7)
    area.set_ring(0, tail=1)
    rings.send(Burst.of([frame(100)]))
    assert (area.ring(0).head, area.ring(0).cur) == (0, 0)


@pytest.mark.parametrize(
    ("frames", "framing", "counter"),
    [
        ([frame(13)], {}, "netmap_drop_runt"),
        ([frame(8 * 64)], {}, "netmap_drop_too_long"),
        ([frame(65)], {"fragments": 0}, "netmap_drop_too_long"),
    ],
)
def test_what_can_never_be_sent_is_dropped_and_counted(
    frames: list[bytes], framing: dict[str, int], counter: str
) -> None:  # F4
    area = Area()
    rings = area.rings(**framing)
    assert rings.send(Burst.of([frame(20), *frames, frame(21)])) == 3
    assert area.filled() == [[frame(20)], [frame(21)]]
    assert rings.has_dropped
    assert rings.dropped() == {counter: 1}
    assert not rings.has_dropped


# ---- to the guest


def test_slots_become_frames_where_they_lie() -> None:
    area = Area()
    rings = area.rings()
    area.arrive([frame(20)], [frame(64), frame(30)])
    assert gathered(rings) == [frame(20), frame(64) + frame(30)]
    assert area.ring(1).head == 0
    rings.consume(2)
    assert (area.ring(1).head, area.ring(1).cur) == (3, 3)
    assert not len(rings.burst)


def test_what_is_not_consumed_is_offered_again() -> None:
    area = Area()
    rings = area.rings()
    area.arrive(*([frame(20, i)] for i in range(5)))
    gathered(rings)
    rings.consume(2)
    assert gathered(rings) == [frame(20, i) for i in range(2, 5)]
    rings.consume(0)
    assert gathered(rings) == [frame(20, i) for i in range(2, 5)]


@pytest.mark.parametrize("header_len", [10, 12])
def test_the_header_is_parted_from_the_frame(header_len: int) -> None:
    area = Area()
    rings = area.rings(header_len=header_len)
    header = HEADER[:header_len]
    area.arrive([header + frame(20)], [header, frame(40)])
    assert gathered(rings) == [frame(20), frame(40)]
    assert rings.burst.header(0) == rings.burst.header(1) == HEADER


def test_a_frame_that_is_not_all_there_is_waited_for() -> None:
    area = Area()
    rings = area.rings()
    area.arrive([frame(20)], [frame(30)])
    area.set_slot(1, 1, flags=MOREFRAG)
    assert gathered(rings) == [frame(20)]
    rings.consume(1)
    assert gathered(rings) == []
    assert (area.ring(1).head, area.ring(1).cur) == (1, 2)
    area.arrive([frame(31)])
    assert gathered(rings) == [frame(30) + frame(31)]
    assert rings.dropped() == {}


def test_a_frame_without_an_end_is_dropped_when_it_has_the_whole_ring() -> None:
    area = Area()
    rings = area.rings()
    area.arrive([frame(20)] * 8)
    area.set_ring(1, tail=7)
    assert gathered(rings) == []
    assert rings.dropped() == {"netmap_drop_endless": 1}
    assert area.ring(1).head == 7
    area.set_slot(1, 7, len=20, flags=MOREFRAG)
    area.set_slot(1, 0, len=20, flags=0)
    area.set_ring(1, tail=1)
    area.arrive([frame(33)])
    assert gathered(rings) == [frame(33)]
    assert rings.dropped() == {}


@pytest.mark.parametrize(
    ("slots", "fields", "header_len", "counter"),
    [
        ([frame(20)], {"len": 65}, 0, "netmap_drop_rx_slot"),  # 0 to 12: a slot beyond its buffer
        ([frame(20)], {"len": 0}, 0, "netmap_drop_rx_slot"),
        ([frame(20)], {"buf_idx": 18}, 0, "netmap_drop_rx_slot"),
        ([frame(20)], {"buf_idx": 0xFFFFFFFF}, 0, "netmap_drop_rx_slot"),
        ([frame(11)], {}, 12, "netmap_drop_rx_header"),
    ],
)
def test_what_cannot_be_a_frame_is_dropped_and_counted(
    slots: list[bytes], fields: dict[str, int], header_len: int, counter: str
) -> None:
    area = Area()
    rings = area.rings(header_len=header_len)
    header = HEADER[:header_len]
    area.arrive([header + frame(20)], slots, [header + frame(21)])
    area.set_slot(1, 1, **fields)
    assert gathered(rings) == [frame(20)]
    rings.consume(1)
    assert gathered(rings) == [frame(21)]
    assert rings.dropped() == {counter: 1}


def test_discarding_moves_pointers_and_looks_at_no_byte() -> None:
    area = Area()
    rings = area.rings()
    area.arrive([frame(20)], [frame(64), frame(30)], [frame(20)])
    for k in range(4):
        area.set_slot(1, k, buf_idx=0xFFFFFFFF)
    assert rings.discard(1024) == 3
    assert (area.ring(1).head, area.ring(1).cur, area.ring(1).tail) == (4, 4, 4)
    assert rings.discard(1024) == 0
    assert rings.dropped() == {}


def test_discarding_ends_after_as_many_slots_as_it_may_with_a_whole_frame() -> None:
    area = Area()
    rings = area.rings()
    area.arrive([frame(20)], [frame(64), frame(30)], [frame(22)])
    assert rings.discard(2) == 2
    assert gathered(rings) == [frame(22)]


def test_discarding_leaves_a_frame_whose_end_is_still_to_come() -> None:
    area = Area()
    rings = area.rings()
    area.arrive([frame(20)], [frame(30)])
    area.set_slot(1, 1, flags=MOREFRAG)
    assert rings.discard(1024) == 1
    assert (area.ring(1).head, area.ring(1).cur) == (1, 2)
    area.arrive([frame(31)])
    assert rings.discard(1024) == 1
    assert area.ring(1).head == 3


# ---- closing


def test_a_closed_port_has_nothing_and_lets_go_of_its_memory() -> None:
    area = Area()
    rings = area.rings()
    area.arrive([frame(20)])
    assert gathered(rings)
    kept = rings.burst
    rings.close()
    rings.close()
    assert not len(kept)
    assert (rings.gather(0), rings.discard(9), rings.send(Burst.of([frame(20)]))) == (0, 0, 0)
    rings.consume(1)
    rings.wait_to_send()
    area.mapping.release()  # no view of it is left


# ---- memory that is not what it should be


@pytest.mark.parametrize(
    ("at", "says"),
    [(IF_AT + 1, "netmap_if"), (1 << 40, "netmap_if"), (1 << 63, "netmap_if")],
)
def test_a_netmap_if_outside_of_the_memory_is_refused(at: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Rings(Area().mapping, at, [0], [0])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_slots": 1}, "slots"),
        ({"num_slots": 1 << 20}, "slots"),
        ({"num_slots": 0xFFFFFFFF}, "slots"),
        ({"buf_ofs": 1 << 40}, "buffers"),
        ({"buf_ofs": -(1 << 40)}, "buffers"),
        ({"nr_buf_size": 0}, "buffers"),
        ({"nr_buf_size": 1 << 16}, "buffers"),
        ({"head": 8}, "head"),
    ],
)
def test_a_ring_that_is_not_in_the_memory_is_refused(fields: dict[str, int], says: str) -> None:
    area = Area()
    area.set_ring(1, **fields)
    with pytest.raises(ValueError, match=says):
        area.rings()
    area.mapping.release()


@pytest.mark.parametrize("offset", [0, 1 << 40, -(1 << 40), 9, -(1 << 63), (1 << 63) - 1])
def test_a_ring_whose_offset_is_wrong_is_refused(offset: int) -> None:
    area = Area()
    area.write(IF_AT + 56, bytes(ctypes.c_int64(offset)))
    with pytest.raises(ValueError, match="ring 0"):
        area.rings()


def test_a_ring_that_the_port_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 receive rings, .* no number 2"):
        Rings(Area().mapping, IF_AT, [0], [2])


def test_more_rings_than_the_memory_has_room_for_are_refused() -> None:
    area = Area()
    area.write(IF_AT, bytes(NetmapIf(ni_tx_rings=0xFFFFFFFF, ni_rx_rings=0xFFFFFFFF)))
    with pytest.raises(ValueError, match="more than its memory"):
        area.rings()


@settings(deadline=None)  # a busy machine is slow
@given(st.randoms(use_true_random=False), st.sampled_from([0, 10, 12]))
def test_whatever_another_program_writes_nothing_outside_of_the_memory_is_touched(
    rng: random.Random, header_len: int
) -> None:  # F3: memif's fault, in rings that are shared as its are
    area = Area()
    rings = area.rings(header_len=header_len)
    edges = [0, 1, 2, 7, 8, 17, 18, 63, 64, 65, 0xFFFE, 0xFFFF]
    for _ in range(20):
        for i in range(2):
            area.set_ring(i, tail=rng.choice([*edges, 0xFFFFFFFF]), head=rng.choice(edges))
            for k in range(area.n_slots):
                area.set_slot(
                    i,
                    k,
                    buf_idx=rng.choice([*edges, 0xFFFFFFFF, 1 << 31]),
                    len=rng.choice(edges),
                    flags=rng.choice([0, 0x20, 0xFFFF]),
                )
        frames = [frame(rng.choice([1, 14, 63, 64, 65, 300])) for _ in range(5)]
        assert 0 <= rings.send(Burst.of(frames)) <= 5
        rings.wait_to_send()
        n = rings.gather(0)
        for got in rings.burst:
            assert len(got) < 8 * 65
            assert b"\xee" * 16 not in bytes(got)
        rings.consume(rng.randint(0, n))
        assert rings.discard(rng.choice([1, 1024])) <= area.n_slots
        area.check()


# ---- a slow twin


def slots_of(frame: bytes, header: bytes, first_len: int, buf_size: int) -> list[bytes]:
    """What `Rings.send` puts into slots, written as it is meant."""
    whole = header + frame
    if len(whole) <= first_len:
        return [whole]
    if header and header[0] & 1:
        first_len -= header[6] & 1
    rest = whole[first_len:]
    return [whole[:first_len], *(rest[i : i + buf_size] for i in range(0, len(rest), buf_size))]


@settings(deadline=None)  # a busy machine is slow
@given(
    st.lists(st.tuples(st.integers(14, 200), st.integers(0, 255)), min_size=1, max_size=12),
    st.binary(min_size=10, max_size=10),
    st.sampled_from([0, 10, 12]),
    st.sampled_from([0, 2, 12]),
)
def test_frames_cross_as_a_slow_twin_says(
    sizes: list[tuple[int, int]], header: bytes, header_len: int, spare: int
) -> None:
    area = Area(n_slots=64)
    rings = area.rings(header_len=header_len, spare=spare)
    frames = [frame(n, seed) for n, seed in sizes]
    header += bytes(2)
    assert rings.send(Burst.of(frames, [header] * len(frames))) == len(frames)
    sent = area.filled()
    own = header[:header_len]
    assert sent == [slots_of(f, own, 64 - spare, 64) for f in frames]
    area.arrive(*sent)
    assert gathered(rings) == frames
    expected = own.ljust(12, b"\0")
    assert all(rings.burst.header(i) == expected for i in range(len(frames)))
    area.check()
