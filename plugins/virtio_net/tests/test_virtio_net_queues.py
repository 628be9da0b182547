"""Queues that are started, stopped, enabled and renegotiated in ways that no driver should."""

from __future__ import annotations

import os

import attrs
import pytest
from kit.stage import Stage
from kit.wire import PLAIN, settle
from vnic.errors import PeerError
from vnic.features import Features
from vnic.hookspecs import ResetKind
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import HostileGuest, Ring
from vnic_virtio_net.testing.hostile import RX, TX, WRITE

SIZE = 8
REGION = 1 << 21
"""Bytes of each region of guest memory: [0, REGION), then a gap, then one from 4 GiB on."""


def post_frame(guest: HostileGuest) -> None:
    guest.tx.desc(0, guest.buffer(PLAIN + bytes(60)), 72)
    guest.tx.publish(0)
    guest.kick(TX)


# ---- starting and stopping -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 3, 12, 32769, 65536, -1])  # B12
def test_a_queue_of_an_impossible_size_is_refused(stage: Stage, size: int) -> None:
    guest = stage.guest()
    with pytest.raises(PeerError, match=f"queue size {size}"):
        guest.start(TX, attrs.evolve(guest.tx.addresses, size=size))


@pytest.mark.parametrize("part", ["desc_gpa", "avail_gpa", "used_gpa"])
@pytest.mark.parametrize("gpa", [REGION - 16, REGION, 1 << 40, 2**64 - 16])  # B11
def test_a_ring_that_is_not_whole_in_one_region_is_refused(
    stage: Stage, part: str, gpa: int
) -> None:
    guest = stage.guest()
    for index in (RX, TX):
        with pytest.raises(PeerError, match="not whole in one region"):
            guest.start(index, attrs.evolve(guest.tx.addresses, **{part: gpa}))


@pytest.mark.parametrize("part", ["desc_gpa", "avail_gpa", "used_gpa"])
def test_a_ring_that_is_misaligned_is_refused(stage: Stage, part: str) -> None:
    guest = stage.guest()
    gpa = getattr(guest.tx.addresses, part) + 1
    with pytest.raises(PeerError, match="not aligned"):
        guest.start(TX, attrs.evolve(guest.tx.addresses, **{part: gpa}))


@pytest.mark.parametrize("part", ["desc_gpa", "avail_gpa"])
def test_a_ring_that_spans_adjacent_regions_is_refused(part: str, stage: Stage) -> None:  # B11
    host = SoftwareHost(stage.loop, regions=[(0, 4096), (4096, 4096)])
    stage.host.memory.clear()
    for region in host.memory.regions:
        stage.host.memory.add(region.gpa, region.size, buffer=memoryview(region))
    where = attrs.evolve(Ring(host, SIZE).addresses, **{part: 4096 - 16})
    with pytest.raises(PeerError, match="not whole in one region"):
        stage.nic.frontend.vhost.start_queue(TX, where, lambda: None)


@pytest.mark.parametrize("index", [-1, 2, 0xFFFF, 1 << 32])  # B12, B14
def test_a_queue_that_does_not_exist_is_refused(stage: Stage, index: int) -> None:
    guest = stage.guest()
    for call in (
        lambda: guest.face.kick(index),
        lambda: guest.face.enable_queue(index, True),
        lambda: guest.face.stop_queue(index),
        lambda: guest.face.start_queue(index, guest.tx.addresses, lambda: None),
    ):
        with pytest.raises(PeerError, match=f"queue {index}: this device has 2"):
            call()


def test_a_queue_that_is_not_started_does_nothing_when_kicked(stage: Stage) -> None:  # B7
    guest = stage.guest()
    assert guest.face.stop_queue(TX) == guest.face.stop_queue(RX) == 0
    post_frame(guest)
    stage.post(guest, 100)
    guest.kick(RX)
    stage.wire.deliver(bytes(60))
    stage.settle()
    assert guest.tx.used() == guest.rx.used() == []
    assert stage.wire.sent == []
    assert guest.face.stop_queue(TX) == guest.face.stop_queue(RX) == 0


def test_a_queue_that_is_stopped_with_a_kick_on_its_way_does_nothing(stage: Stage) -> None:
    guest = stage.guest()  # B7
    post_frame(guest)
    guest.face.stop_queue(TX)
    stage.settle()
    assert guest.tx.used() == []
    guest.start(TX)
    stage.settle()
    assert guest.tx.used() == [(0, 0)]
    assert len(stage.wire.sent) == 1


def test_a_queue_that_is_not_enabled_takes_no_frames_and_the_loop_sleeps(stage: Stage) -> None:
    guest = stage.guest()  # B7
    for index in (RX, TX):
        guest.face.stop_queue(index)
        guest.face.enable_queue(index, False)
        guest.face.start_queue(index, guest.rings[index].addresses, lambda: None)
    post_frame(guest)
    stage.post(guest, 100)
    guest.kick(RX)
    stage.wire.deliver(bytes(60))
    stage.settle()
    assert stage.wire.sent == []
    assert guest.rx.used() == []
    stage.wire.pending.clear()
    guest.face.enable_queue(RX, True)
    stage.settle()
    stage.wire.deliver(bytes(64))
    stage.settle()
    assert guest.rx.used() == [(0, 76)]


def test_features_that_change_while_a_queue_runs_do_not_change_the_queue(stage: Stage) -> None:
    guest = stage.guest()  # B9
    guest.face.set_features(Features(0))
    guest.tx.desc(0, guest.buffer(PLAIN + b"z" * 60), 72)
    guest.tx.publish(0)
    stage.post(guest, 100)
    guest.kick(TX)
    stage.wire.deliver(bytes(60))
    stage.settle()
    assert stage.wire.sent == [(b"z" * 60, PLAIN)]
    assert guest.rx.used() == [(0, 72)]


def test_starting_and_stopping_twice_is_harmless(stage: Stage) -> None:  # B10
    guest = stage.guest()
    for _ in range(3):
        guest.start(RX)
        guest.start(TX)
    post_frame(guest)
    stage.settle()
    assert len(stage.wire.sent) == 1
    for index in (RX, TX):
        guest.face.stop_queue(index)
        assert guest.face.stop_queue(index) == 0
    stage.nic.reset(ResetKind.DEVICE)
    stage.nic.reset(ResetKind.SESSION)
    stage.settle()
    stage.check_neighbour()


def test_a_device_that_stopped_works_again_after_a_reset(stage: Stage) -> None:  # B10
    guest = stage.guest()
    guest.tx.avail_idx = 99
    guest.kick(TX)
    stage.check_stopped(guest, "avail idx 99")
    stage.nic.reset(ResetKind.DEVICE)
    stage.host.failures.clear()
    stage.wire.pending.clear()
    guest = stage.guest()
    post_frame(guest)
    stage.post(guest, 100)
    stage.wire.deliver(bytes(60))
    stage.settle()
    assert guest.tx.used() == [(0, 0)]
    assert guest.rx.used() == [(0, 72)]
    assert stage.host.failures == []


def test_rings_whose_memory_is_taken_away_rest_until_it_is_given_back(stage: Stage) -> None:
    memory = stage.host.memory
    regions = [(region.gpa, region.size) for region in memory.regions]
    memory.clear()
    with open(os.memfd_create("guest"), "r+b") as file:  # noqa: PTH123 - it has no path
        file.truncate(sum(n for _, n in regions))

        def give() -> None:
            offset = 0
            for gpa, n in regions:
                memory.add(gpa, n, fd=file.fileno(), offset=offset)
                offset += n

        give()
        guest = stage.guest()
        for lost in range(1, 4):
            memory.clear()
            before = [(ring.used_idx, ring.used_flags) for ring in guest.rings]
            stage.wire.deliver(bytes(60))
            guest.kick(TX)
            guest.kick(RX)
            stage.settle()
            assert [(ring.used_idx, ring.used_flags) for ring in guest.rings] == before
            give()  # elsewhere of ours: the guest's views are of the mapping before
            if lost % 2:
                post_frame(guest)
                stage.post(guest, 100)
            else:
                stage.loop.schedule(lambda: None)  # a message woke the loop, nobody kicks
            stage.settle()
            assert len(guest.tx.used()) == lost % 2
            assert len(guest.rx.used()) == lost % 2
    assert stage.host.failures == []


def test_what_was_posted_before_memory_was_taken_away_is_found_again(stage: Stage) -> None:
    guest = stage.guest()
    memory = stage.host.memory
    gpas = [region.gpa for region in memory.regions]
    pages = [(memoryview(region), region.size) for region in memory.regions]
    memory.clear()
    stage.settle()
    guest.tx.desc(0, 64, 72)
    guest.tx.publish(0)
    guest.rx.desc(0, 256, 100, WRITE)
    guest.rx.publish(0)
    guest.kick(TX)
    guest.kick(RX)
    stage.settle()
    assert stage.wire.sent == []
    for gpa, (view, n) in zip(gpas, pages, strict=True):
        memory.add(gpa, n, buffer=view)
    stage.loop.schedule(lambda: None)
    stage.settle()
    stage.wire.deliver(bytes(60))
    stage.settle()
    assert len(stage.wire.sent) == 1
    assert guest.tx.used() == [(0, 0)]
    assert guest.rx.used() == [(0, 72)]


def test_a_buffer_may_span_adjacent_regions(stage: Stage) -> None:  # B11
    guest = stage.guest()
    frame = bytes(range(200))
    last = bytearray(8192)
    last[4000:4192] = PLAIN + frame[:180]
    last[4192:4212] = frame[180:]
    stage.host.memory.add(1 << 34, 4096, buffer=memoryview(last)[:4096])
    stage.host.memory.add((1 << 34) + 4096, 4096, buffer=memoryview(last)[4096:])
    guest.tx.desc(0, (1 << 34) + 4000, 212)
    guest.tx.publish(0)
    guest.rx.desc(0, (1 << 34) + 4000, 212, WRITE)
    guest.rx.publish(0)
    guest.kick(TX)
    stage.settle()
    assert stage.wire.sent == [(frame, PLAIN)]
    stage.wire.deliver(frame[::-1])
    stage.settle()
    assert guest.rx.used() == [(0, 212)]
    assert bytes(last[4012:4212]) == frame[::-1]


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_frame_posted_while_the_device_goes_to_sleep_is_served(
    stage: Stage, event_idx: bool
) -> None:
    """The driver looks at the request for notifications first, and publishes before it is there."""
    features = Features.VERSION_1 | (Features.EVENT_IDX if event_idx else Features(0))
    guest = stage.guest(features)
    frontend = stage.nic.frontend
    for i in range(5):
        # All is parked, as in the midst of work; then the loop would sleep, but for what comes now.
        frontend._tx.park()
        post_frame(guest)
        assert frontend._arm()
        settle(stage.loop)
        assert len(stage.wire.sent) == i + 1
        stage.wire.deliver(bytes(60))
        settle(stage.loop)
        frontend._rx.park()
        stage.post(guest, 100)
        assert frontend._arm()
        settle(stage.loop)
        assert guest.rx.used() == [(0, 72)]


@pytest.mark.parametrize("event_idx", [False, True])
def test_a_device_at_rest_asks_to_be_notified(stage: Stage, event_idx: bool) -> None:
    features = Features.VERSION_1 | (Features.EVENT_IDX if event_idx else Features(0))
    guest = stage.guest(features)
    stage.wire.deliver(bytes(60))
    stage.settle()
    for _ in range(3):
        for ring in guest.rings:
            assert ring.avail_event == ring.avail_idx if event_idx else ring.used_flags == 0
        post_frame(guest)
        stage.post(guest, 100)
        guest.kick(RX)
        stage.wire.deliver(bytes(60))
        stage.settle()
