"""What the link does for backends that lack an offload: whole frames in, plain frames out."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.fakes import FakeBackend, open_fake
from kit.loops import LoopBench
from kit.segmentation import NEEDS_CSUM, Packet, completed, header
from vnic.burst import Burst
from vnic.features import HOST_OFFLOADS, NONE, Features
from vnic.link import Link
from vnic.link_kernel import Cutter

PLAIN = bytes(12)
BIG = Packet(payload=bytes(range(256)) * 20, gso_size=1000)


@pytest.fixture
def bench() -> Iterator[LoopBench]:
    bench = LoopBench()
    yield bench
    bench.close()


def plain(i: int = 0, n: int = 60) -> bytes:
    return i.to_bytes(4, "big").rjust(n, b"p")


def lacking(bench: LoopBench, capabilities: Features = NONE) -> tuple[Link, FakeBackend]:
    link, _, backend = open_fake(bench.loop)
    backend.capabilities = capabilities
    link.set_features(HOST_OFFLOADS)
    return link, backend


def sent(backend: FakeBackend) -> list[bytes]:
    return [bytes(frame) for frame in backend.sent]


def test_a_frame_to_be_segmented_leaves_as_segments_through_a_backend_that_cannot(
    bench: LoopBench,
) -> None:
    link, backend = lacking(bench)
    burst = Burst.of([plain(1), BIG.frame(), plain(2)], [None, BIG.header, None])
    assert link.send(burst) == 3
    assert sent(backend) == [plain(1), *BIG.segments(), plain(2)]
    assert link.counters()["tx_segmented"] == 1


def test_a_checksum_is_completed_for_a_backend_that_cannot(bench: LoopBench) -> None:
    link, backend = lacking(bench)
    frame = plain(1, 90)
    asked = header(NEEDS_CSUM, csum_start=34, csum_offset=16)
    assert link.send(Burst.of([frame], [asked])) == 1
    assert sent(backend) == [completed(frame, 34, 16)]
    assert link.counters()["tx_summed"] == 1


def test_what_the_backend_takes_is_left_alone(bench: LoopBench) -> None:
    link, backend = lacking(bench, Features.CSUM | Features.HOST_TSO4)
    six = attrs.evolve(BIG, ipv6=True)
    burst = Burst.of([BIG.frame(), six.frame()], [BIG.header, six.header])
    assert link.send(burst) == 2
    assert sent(backend) == [BIG.frame(), *six.segments()]


def test_a_frame_whose_headers_do_not_match_is_dropped_and_counted(bench: LoopBench) -> None:
    link, backend = lacking(bench)
    burst = Burst.of([plain(1), bytes(2000), plain(2)], [None, BIG.header, None])
    assert link.send(burst) == 3
    assert sent(backend) == [plain(1), plain(2)]
    assert link.counters()["tx_drop_bad_offload"] == 1


def test_a_frontend_may_offer_what_the_link_does_in_software(bench: LoopBench) -> None:
    link, _ = lacking(bench)
    assert link.capabilities == NONE
    assert link.offers == HOST_OFFLOADS


def test_a_backend_that_takes_a_part_gets_each_segment_once(bench: LoopBench) -> None:
    link, backend = lacking(bench)
    backend.takes = 2
    burst = Burst.of([plain(1), BIG.frame(), plain(2)], [None, BIG.header, None])
    left = 0
    for _ in range(5):
        left += link.send(burst.rest(left))
        if left == 3:
            break
    assert left == 3
    assert sent(backend) == [plain(1), *BIG.segments(), plain(2)]
    assert link.counters()["tx_segmented"] == 1


def test_after_a_reset_a_frame_begins_anew_and_the_old_one_is_counted(bench: LoopBench) -> None:
    link, backend = lacking(bench)
    backend.takes = 2
    burst = Burst.of([BIG.frame()], [BIG.header])
    assert link.send(burst) == 0
    link.send_reset()
    backend.takes = None
    backend.sent.clear()
    assert link.send(burst) == 1
    assert sent(backend) == BIG.segments()
    assert link.counters()["tx_drop_partly"] == 1


def test_a_burst_that_becomes_millions_of_frames_leaves_in_turns(bench: LoopBench) -> None:
    link, backend = lacking(bench)
    told: list[int] = []
    link.on_writable = lambda: told.append(len(backend.sent))
    small = attrs.evolve(BIG, gso_size=1)  # 5120 segments
    burst, left = Burst.of([small.frame()] * 2, [small.header] * 2), 0
    for n in (4096, 8192, 10240):
        left += link.send(burst.rest(left))
        assert len(backend.sent) == n
        bench.settle()
    assert left == 2
    assert told == [4096, 8192]
    assert sent(backend) == 2 * small.segments()


# ---- any burst, any back-pressure ----------------------------------------------------------------

items = st.one_of(
    st.integers(0, 99).map(lambda i: (plain(i), None, [plain(i)])),
    st.integers(1, 6000).map(
        lambda n: (
            (p := attrs.evolve(BIG, payload=BIG.payload[:n], gso_size=1 + n // 7)).frame(),
            p.header,
            p.segments(),
        )
    ),
    st.integers(60, 200).map(
        lambda n: (
            plain(n, n),
            header(NEEDS_CSUM, csum_start=n - 40, csum_offset=7),
            [completed(plain(n, n), n - 40, 7)],
        )
    ),
    st.just((bytes(1500), BIG.header, [])),
)


@settings(deadline=None)
@given(st.lists(items, min_size=1, max_size=40), st.lists(st.integers(0, 300), max_size=60))
def test_any_burst_leaves_whole_and_in_order_however_little_is_taken_at_once(
    frames: list[tuple[bytes, bytes | None, list[bytes]]], steps: list[int]
) -> None:
    cutter = Cutter()
    cutter.lack(~0 & (1 << 64) - 1)
    burst = Burst.of([frame for frame, _, _ in frames], [asked for _, asked, _ in frames])
    out: list[bytes] = []
    done = 0
    for step in [*steps, *[300] * 400]:
        if done == len(frames):
            break
        rest = burst.rest(done)
        if not cutter.wanted(rest):
            out += [bytes(frame) for frame in rest]
            done = len(frames)
            break
        offered = cutter.fill(rest, 0)
        taken = min(step, offered)
        out += [bytes(cutter.lane[i]) for i in range(taken)]
        done += cutter.taken(taken)
    assert done == len(frames)
    assert out == [segment for _, _, segments in frames for segment in segments]
    assert cutter.counters["tx_drop_bad_offload"] == sum(not plain for _, _, plain in frames)


@settings(deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=200), st.binary(min_size=12, max_size=12))))
def test_frames_that_change_between_two_offers_break_nothing(
    frames: list[tuple[bytes, bytes]],
) -> None:
    cutter = Cutter()
    cutter.lack((1 << 64) - 1)
    cutter.fill(Burst.of([BIG.frame()], [BIG.header]), 0)
    cutter.taken(3)
    for frame, asked in frames:
        burst = Burst.of([frame or b"x"], [asked])
        if cutter.wanted(burst):
            cutter.taken(cutter.fill(burst, 0) // 2)
    cutter.fill(Burst.of([BIG.frame()], [BIG.header]), 0)
