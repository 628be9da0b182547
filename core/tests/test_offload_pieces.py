"""Offload in software of frames in pieces: as of whole ones, and not at the pieces' cost squared.

Both ways out: the cutter of a link, and the room of a guest that lacks the offload.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.pieces import Pieces
from kit.segmentation import NEEDS_CSUM, Packet, completed, header
from vnic.burst import Burst, Room
from vnic.features import GUEST_OFFLOADS
from vnic.link_kernel import Cutter
from vnic.pool_kernel import Pool

DATA = bytes(i * 7 & 0xFF for i in range(4000))


def by_cutter(burst: Burst, take: int = 256) -> list[bytes]:
    """What a backend without offloads gets, that takes so many frames at once."""
    cutter, out, done = Cutter(), list[bytes](), 0
    cutter.lack(int(GUEST_OFFLOADS))
    while done < len(burst):
        n = min(take, cutter.fill(burst, done))
        out += [bytes(cutter.lane[i]) for i in range(n)]
        done += cutter.taken(n)
    return out


def by_room(burst: Burst) -> list[bytes]:
    """What a guest without offloads gets."""
    pool, out, done = Pool(0), list[bytes](), 0
    room = Room(pool.capsule, pool)
    while done < len(burst):
        room.open()
        done += room.put(burst, done)
        room.close()
        out += [bytes(frame) for frame in pool.burst]
        pool.drop(256)
    return out


@st.composite
def cuts(draw: st.DrawFn) -> Callable[[int], Iterable[int]]:
    """Pieces of any lengths, none at all among them; at most 500."""
    lengths = draw(st.lists(st.integers(0, 700), min_size=1, max_size=30))

    def cut(n: int) -> Iterable[int]:
        for piece in itertools.islice(itertools.cycle(lengths), 499):
            yield min(piece, n)
            n -= min(piece, n)
        yield n

    return cut


packets = st.builds(
    Packet,
    ipv6=st.booleans(),
    udp=st.booleans(),
    n_tags=st.integers(0, 1),
    payload=st.integers(1, len(DATA)).map(lambda n: DATA[:n]),
    gso_size=st.integers(64, 1500),
)
"""Segments enough to be cut anywhere, and few enough for a pool of 256 buffers."""


@settings(deadline=None, max_examples=80)
@given(st.lists(packets, min_size=1, max_size=4), cuts(), st.integers(1, 20))
def test_segments_of_a_frame_in_pieces_are_those_of_the_whole(
    frames: list[Packet], cut: Callable[[int], Iterable[int]], take: int
) -> None:
    pieces = Pieces.of([p.frame() for p in frames], [p.header for p in frames], cut)
    expected = [segment for packet in frames for segment in packet.segments()]
    assert by_cutter(pieces.burst, take) == expected
    assert by_room(pieces.burst) == expected


@settings(deadline=None, max_examples=80)
@given(st.integers(60, 1000), cuts(), st.data())
def test_a_checksum_over_pieces_is_that_of_the_whole(
    n: int, cut: Callable[[int], Iterable[int]], draw: st.DataObject
) -> None:
    start = draw.draw(st.integers(14, n - 2))
    offset = draw.draw(st.integers(0, n - 2 - start))
    asked = header(NEEDS_CSUM, csum_start=start, csum_offset=offset)
    pieces = Pieces.of([DATA[:n]], [asked], cut)
    expected = [completed(DATA[:n], start, offset)]
    assert by_cutter(pieces.burst) == expected
    assert by_room(pieces.burst) == expected


def best_s(call: Callable[[], object]) -> float:
    """The thread's own time: what others take doesn't count, and the quickest had none of it."""
    times = []
    for _ in range(50):
        start = time.thread_time()
        call()
        times.append(time.thread_time() - start)
    return min(times)


def cost_s(way: Callable[[Burst], list[bytes]], burst: Burst) -> float:
    """Seconds that the kernel takes for it, without a look at what comes out."""
    if way is by_cutter:
        cutter = Cutter()
        cutter.lack(int(GUEST_OFFLOADS))
        return best_s(lambda: cutter.fill(burst, 0))
    pool = Pool(0)
    room = Room(pool.capsule, pool)
    return best_s(lambda: (room.open(), room.put(burst), room.close(), pool.drop(256)))


@pytest.mark.parametrize("way", [by_cutter, by_room])
def test_a_thousand_pieces_cost_no_more_than_as_many_steps(
    way: Callable[[Burst], list[bytes]],
) -> None:
    """Two guests may agree on the worst: pieces of a byte, to be cut into tiny segments."""
    packet = Packet(payload=DATA[:900], gso_size=4)
    whole = Pieces.of([packet.frame()], [packet.header], lambda n: [n])
    crumbs = Pieces.of([packet.frame()], [packet.header], lambda n: [1] * n)
    assert way(crumbs.burst) == way(whole.burst) == packet.segments()
    assert cost_s(way, crumbs.burst) < 4 * cost_s(way, whole.burst)
