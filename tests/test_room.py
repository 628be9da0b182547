"""The room over a virtio-net ring, case by case."""

from __future__ import annotations

import mmap
import random
from collections.abc import Iterator

import pytest
from kit.segmentation import Packet
from kit.stage import Stage, staged
from kit.wire import PLAIN, sockets
from vnic.features import Features
from vnic_virtio_net.testing.hostile import INDIRECT, NEXT, RX, WRITE

MODERN = Features.VERSION_1 | Features.INDIRECT_DESC
MRG = MODERN | Features.MRG_RXBUF
FRAME_MAX = 65562
NOISE = random.Random(1).randbytes(FRAME_MAX + 300)


def data(n: int, seed: int = 0) -> bytes:
    return NOISE[seed : seed + n]


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as stage:
        yield stage


def test_a_frame_that_the_empty_ring_could_take_waits_behind_others(stage: Stage) -> None:
    guest = stage.guest(MRG, size=4)
    stage.post(guest, *[100] * 4)
    stage.wire.deliver(data(150), data(250, 1))
    stage.settle()
    assert guest.rx.used() == [(0, 100), (1, 62)]
    guest.rx.publish(0, 1)
    guest.kick(RX)
    stage.settle()
    assert guest.rx.used() == [(2, 100), (3, 100), (0, 62)]
    assert stage.counter("rx_frames") == 2
    assert stage.counter("rx_drop_too_long") == 0


def test_long_frames_fill_a_long_ring_and_the_rest_waits(stage: Stage) -> None:
    guest = stage.guest(MRG, size=2048)
    stage.post(guest, *[1500] * 1400)  # more than the room reserves at once
    frames = [data(65000, i) for i in range(40)]
    stage.wire.deliver(*frames)
    stage.settle()
    per_frame = -(-65012 // 1500)
    assert len(guest.rx.used()) == 1400 // per_frame * per_frame
    assert stage.counter("rx_frames") == 1400 // per_frame
    assert len(stage.wire.pending) == 40 - 1400 // per_frame
    assert stage.counter("rx_drop_too_long") == 0


@pytest.mark.parametrize("n", [3, 4])
def test_a_frame_that_no_ring_of_that_size_takes_is_dropped(stage: Stage, n: int) -> None:
    guest = stage.guest(MRG, size=4)
    stage.post(guest, *[100] * n)
    stage.wire.deliver(data(389), data(60))
    stage.settle()
    if n < 4:  # the fourth buffer might be long enough
        assert guest.rx.used() == []
        assert len(stage.wire.pending) == 2
    else:
        assert guest.rx.used() == [(0, 72)]
        assert stage.counter("rx_drop_too_long") == 1


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_segments_are_delivered_all_or_none(stage: Stage, n: int) -> None:
    packet = Packet(payload=data(2500))
    guest = stage.guest(MODERN, size=8)
    at = stage.post(guest, *[1100] * n) if n else []
    stage.wire.deliver(packet.frame(), header=packet.header)
    stage.settle()
    assert guest.rx.used() == ([(0, 1066), (1, 1066), (2, 566)] if n == 3 else [])
    at += [guest.buffer(1100) for _ in range(n, 3)]
    for i in range(n, 3):
        guest.rx.desc(i, at[i], 1100, WRITE)
        guest.rx.publish(i)
        guest.kick(RX)
        stage.settle()
    for gpa, segment in zip(at, packet.segments(), strict=True):
        assert guest.bytes_at(gpa, 12 + len(segment)) == bytes(10) + b"\1\0" + segment
    assert stage.counter("rx_segmented") == stage.counter("rx_frames") == 1


def test_a_buffer_of_gigabytes_is_as_long_after_a_frame_was_taken_back(stage: Stage) -> None:
    """Its bytes, the same ones many times, add up to 32 more than 32 bits can say."""
    guest = stage.guest(MODERN)
    big, n_bytes = 1 << 34, 8 << 20
    stage.host.memory.add(big, n_bytes, buffer=mmap.mmap(-1, n_bytes))
    parts = [(guest.buffer(12), 12), *[(big, n_bytes)] * (2**32 // n_bytes), (big, 20)]
    table = [(gpa, n, WRITE | NEXT, i + 1) for i, (gpa, n) in enumerate(parts)]
    table[-1] = (*table[-1][:2], WRITE, 0)
    guest.rx.desc(0, guest.rx.table(*table), 16 * len(table), INDIRECT)
    guest.rx.desc(1, guest.buffer(100), 100, WRITE)
    guest.rx.publish(0, 1)
    packet = Packet(payload=data(1500))
    stage.wire.pending.append((packet.frame(), packet.header))
    stage.wire.deliver(data(1000))  # both in one burst
    stage.settle()
    assert stage.counter("rx_drop_too_long") == 1
    assert guest.rx.used() == [(0, 1012)]
    assert guest.bytes_at(big, 1000) == data(1000)


# ---- from a descriptor ---------------------------------------------------------------------------


def test_a_frame_longer_than_the_room_now_is_kept_and_comes_first(stage: Stage) -> None:
    guest = stage.guest(MRG, size=8)
    stage.post(guest, 100, 100)
    with sockets() as (feed, fd):
        stage.wire.fd = fd
        for i, n in enumerate((60, 400, 61)):
            feed.send(PLAIN + data(n, i))
        stage.wire.link.readable()
        stage.settle()
        assert guest.rx.used() == [(0, 72)]
        at = stage.post(guest, *[150] * 4)
        guest.kick(RX)
        stage.settle()
    assert guest.rx.used() == [(1, 150), (0, 150), (1, 112), (2, 73)]
    assert guest.bytes_at(at[2] + 12, 61) == data(61, 2)
    assert stage.counter("rx_frames") == 3
    assert stage.wire.errors == []


def test_a_frame_that_is_kept_is_counted_when_the_queue_stops(stage: Stage) -> None:
    guest = stage.guest(MRG, size=8)
    stage.post(guest, 100)
    with sockets() as (feed, fd):
        stage.wire.fd = fd
        feed.send(PLAIN + data(400))
        stage.wire.link.readable()
        stage.settle()
        guest.face.stop_queue(RX)
    assert stage.counter("rx_drop_discarded") == 1
    assert guest.rx.used() == []


@pytest.mark.parametrize("n", [0, 1, 11, 12, 25])
def test_what_is_too_short_for_a_frame_is_a_runt(stage: Stage, n: int) -> None:
    guest = stage.guest()
    stage.post(guest, 100)
    with sockets() as (feed, fd):
        stage.wire.fd = fd
        feed.send(bytes(n))
        feed.send(bytes(72))
        stage.wire.link.readable()
        stage.settle()
    assert guest.rx.used() == [(0, 72)]
    assert stage.counter("rx_drop_runt") == 1


@pytest.mark.parametrize("room", [2000, 100_000])
def test_a_frame_longer_than_any_is_dropped_however_long_the_buffer(
    stage: Stage, room: int
) -> None:
    guest = stage.guest()
    stage.post(guest, room, room)
    with sockets() as (feed, fd):
        stage.wire.fd = fd
        feed.send(PLAIN + data(FRAME_MAX + 1))
        feed.send(PLAIN + data(60))
        stage.wire.link.readable()
        stage.settle()
    assert guest.rx.used() == [(0, 72)]
    assert stage.counter("rx_drop_too_long") == 1
