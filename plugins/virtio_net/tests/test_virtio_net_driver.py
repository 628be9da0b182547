"""The driver, against a device twin in plain Python."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.virtio_twin import MODERN, TX, make, numbered, ring_features
from vnic.features import GUEST_OFFLOADS, HOST_OFFLOADS, OFFLOADS, Features
from vnic.loop import Loop
from vnic.testing import DriverError, SoftwareHost
from vnic_virtio_net.testing import DRIVER_FEATURES, Driver, Shape

# ---- any layout ----------------------------------------------------------------------------------

sizes = st.sampled_from([1, 2, 4, 8, 32])


@st.composite
def shapes(draw: st.DrawFn, features: Features, least: int) -> Shape:
    size = draw(sizes)
    cuts = draw(st.lists(st.integers(1, 90), min_size=1, max_size=size))
    cuts[-1] += max(0, least - sum(cuts))
    indirect = Features.INDIRECT_DESC in features and draw(st.booleans())
    return Shape(size, cuts=tuple(cuts), indirect=indirect)


frames_strategy = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=40)


@settings(deadline=None)
@given(st.data())
def test_any_frame_is_sent_as_it_is_in_any_layout(data: st.DataObject) -> None:
    features = data.draw(ring_features)
    driver, twin = make(features, tx=data.draw(shapes(features, 312)), rx=Shape(2, cuts=(1600,)))
    frames = data.draw(frames_strategy)
    headers = [bytes([0, 0, i, 1, 2, 3, 4, 5, 6, 7, 0, 0]) for i in range(len(frames))]
    done = 0
    while done < len(frames):
        sent = driver.send(frames[done:], headers[done:])
        twin.transmit(data.draw(st.integers(1, 9)))
        done += sent
    twin.transmit()
    assert twin.sent == list(zip(frames, headers, strict=True))
    assert driver.n_outstanding == 0


@settings(deadline=None)
@given(st.data())
def test_any_frame_is_received_as_it_is_in_any_layout(data: st.DataObject) -> None:
    features = data.draw(ring_features)
    least = 12 if Features.MRG_RXBUF in features else 312
    driver, twin = make(features, rx=data.draw(shapes(features, least)), tx=Shape(2, cuts=(1600,)))
    posted = driver.rx.n_posted
    frames = data.draw(frames_strategy)
    expected, received = [], []
    for frame in frames:
        if not twin.deliver(frame):
            received += driver.recv(data.draw(st.integers(1, 3)))
            if not twin.deliver(frame):
                continue  # longer than all the buffers that are posted now
        expected.append(frame)
    while got := driver.recv(3):
        received += got
    assert [frame for frame, _ in received] == expected
    assert driver.rx.n_posted == posted
    driver.check()


@pytest.mark.parametrize("features", [DRIVER_FEATURES, MODERN, Features(0)])
@pytest.mark.parametrize("cuts", [(2048,), (12, 1600), (5, 20, 30, 40, 1600)])
def test_bulk_frames_are_the_prepared_ones_in_turn(
    features: Features, cuts: tuple[int, ...]
) -> None:
    shape = Shape(64, cuts=cuts)
    driver, twin = make(features, rx=shape, tx=shape)
    driver.prepare_bulk(numbered(5, length=900))
    sent = 0
    for _ in range(9):
        sent += driver.send_bulk(7)
        twin.transmit(5)
        while twin.sent and twin.deliver(*twin.sent[0]):
            frame, _ = twin.sent.pop(0)
            assert frame in numbered(5, length=900)
        driver.recv_bulk(64)
    assert driver.n_received == sent - driver.n_outstanding - len(twin.sent) > 30
    assert driver.n_received_bytes == 900 * driver.n_received
    if Features.IN_ORDER in features:
        assert driver.n_received == 45


def test_bulk_frames_may_span_buffers() -> None:
    driver, twin = make(rx=Shape(32, cuts=(100,)))
    for _ in range(50):
        assert twin.deliver(bytes(1000))
        assert twin.deliver(bytes(10))
        assert driver.recv_bulk(8) == 2
    assert driver.n_received_bytes == 50 * 1010
    assert driver.rx.n_posted == 32


@pytest.mark.slow
@pytest.mark.parametrize("features", [DRIVER_FEATURES, MODERN])
def test_indices_wrap(features: Features) -> None:
    shape = Shape(256, cuts=(128,))
    driver, twin = make(features, rx=shape, tx=shape)
    frames = numbered(250)
    for i in range(280):
        assert driver.send(frames) == 250, i
        twin.transmit()
        for frame, header in twin.sent:
            assert twin.deliver(frame, header)
        twin.sent.clear()
        assert [frame for frame, _ in driver.recv(1000)] == frames


def test_a_full_ring_takes_no_more_and_goes_on_when_there_is_room() -> None:
    driver, twin = make(tx=Shape(4))
    assert driver.send(numbered(6)) == 4
    assert driver.send(numbered(1)) == 0
    assert driver.n_outstanding == 4
    twin.transmit(2)
    assert driver.interrupts == 1
    assert driver.send(numbered(6)) == 2


def test_large_queue() -> None:
    driver, _ = make(size=64 << 20, rx=Shape(32768, cuts=(128,)), tx=Shape(32768, cuts=(128,)))
    assert driver.rx.n_posted == 32768
    assert driver.send(numbered(32768)) == 32768
    assert driver.n_outstanding == 32768


def test_what_cannot_be_is_refused() -> None:
    host = SoftwareHost(Loop(), 1 << 20)
    host.loop.close()
    nothing: Any = SimpleNamespace(vhost=None, name="e0")
    with pytest.raises(DriverError, match="e0: has no vhost face"):
        Driver(nothing, host)
    with pytest.raises(ValueError, match="a power of two up to 32768"):
        make(rx=Shape(100))
    with pytest.raises(ValueError, match="transmit queue: 3 buffers of 2 descriptors in 4"):
        make(tx=Shape(4, cuts=(12, 1600), n_buffers=3))
    with pytest.raises(ValueError, match="can't hold a header"):
        make(rx=Shape(4, cuts=(4, 4)))
    with pytest.raises(DriverError, match="INDIRECT_DESC"):
        make(MODERN, tx=Shape(4, indirect=True))
    driver, _ = make()
    with pytest.raises(ValueError, match="a frame of 1519 bytes"):
        driver.send([bytes(1519)])
    with pytest.raises(RuntimeError, match="nothing is prepared"):
        driver.send_bulk(1)
    driver.send(numbered(1))
    with pytest.raises(RuntimeError, match="1 frames are with the device"):
        driver.prepare_bulk(numbered(1))


# ---- negotiation ---------------------------------------------------------------------------------


def test_the_driver_reads_what_the_device_tells() -> None:
    driver, twin = make(DRIVER_FEATURES | OFFLOADS)
    assert driver.mac == b"\x52\x54\0\1\2\3"
    assert driver.mtu == 1500
    assert driver.link_up
    assert driver.features == twin.features == DRIVER_FEATURES | OFFLOADS
    assert make(MODERN)[0].mtu == 1500


def test_an_offload_without_what_it_needs_is_not_asked_for() -> None:
    assert make(MODERN | Features.HOST_TSO4)[0].features == MODERN


def test_buffers_are_long_enough_for_what_was_negotiated() -> None:
    driver, _ = make(MODERN | GUEST_OFFLOADS | HOST_OFFLOADS, size=64 << 20)
    assert driver.rx.capacity >= 65601
    assert driver.tx.capacity >= 65601
    assert make(MODERN)[0].rx.capacity >= 1526


# ---- notifications -------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [MODERN, MODERN | Features.EVENT_IDX])
def test_a_driver_that_polls_is_not_interrupted(features: Features) -> None:
    driver, twin = make(features, polling=True)
    driver.interrupts = 0
    for _ in range(600):
        assert driver.send(numbered(2)) == 2
        twin.transmit()
        assert twin.deliver(numbered(1)[0])
        assert len(driver.recv()) == 1
    assert driver.interrupts == 0


@pytest.mark.parametrize("features", [MODERN, MODERN | Features.EVENT_IDX])
def test_one_interrupt_until_the_ring_is_empty(features: Features) -> None:
    driver, twin = make(features)
    for _ in range(3):
        before = driver.interrupts
        for frame in numbered(5):
            assert twin.deliver(frame)
        assert driver.interrupts == before + 1
        assert len(driver.recv(3)) == 3
        for frame in numbered(5):
            assert twin.deliver(frame)
        assert driver.interrupts == before + 1
        assert len(driver.recv()) == 7
        driver.check()


@pytest.mark.parametrize("features", [MODERN, MODERN | Features.EVENT_IDX])
def test_an_interrupt_that_does_not_come_is_a_fault(features: Features) -> None:
    driver, twin = make(features)
    driver.check()
    twin.mute = True
    assert twin.deliver(numbered(1)[0])
    with pytest.raises(DriverError, match=r"receive queue: used idx is 1, .* didn't come"):
        driver.check()


def test_a_kick_comes_when_the_device_asks_for_it_and_only_then() -> None:
    driver, twin = make(MODERN)
    start = twin.kicks[TX]
    driver.send(numbered(1))
    assert twin.kicks[TX] == start + 1
    twin.queues[TX].used[0] = 1
    driver.send(numbered(1))
    assert twin.kicks[TX] == start + 1


def test_with_event_idx_a_kick_comes_when_the_index_passes_the_event() -> None:
    driver, twin = make(MODERN | Features.EVENT_IDX)
    start, queue = twin.kicks[TX], twin.queues[TX]
    queue.used[0] = 1  # means nothing then
    event = 2 + 4 * queue.at.size
    queue.used[event] = 3
    driver.send(numbered(3))
    assert twin.kicks[TX] == start
    driver.send(numbered(2))
    assert twin.kicks[TX] == start + 1
    driver.send(numbered(2))
    assert twin.kicks[TX] == start + 1


def test_on_interrupt_is_called() -> None:
    driver, twin = make()
    called = []
    driver.on_interrupt = lambda: called.append(1)
    assert twin.deliver(numbered(1)[0])
    assert called == [1]


# ---- pause ---------------------------------------------------------------------------------------


def test_a_paused_driver_goes_on_where_it_was() -> None:
    driver, twin = make()
    driver.send(numbered(3))
    twin.transmit(2)
    assert twin.deliver(numbered(1)[0])
    driver.pause()
    driver.send(numbered(1, 3))
    driver.resume()
    twin.transmit()
    assert [frame for frame, _ in twin.sent] == numbered(4)
    assert len(driver.recv()) == 1
    driver.stop()
    driver.stop()


def test_a_device_that_stops_with_chains_in_hand_is_at_fault() -> None:
    driver, twin = make()
    driver.send(numbered(2))
    twin.queues[TX].pop()
    with pytest.raises(DriverError, match="stopped at avail index 1, with used idx 0"):
        driver.pause()
