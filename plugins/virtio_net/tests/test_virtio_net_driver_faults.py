"""What a wrong device does, the driver finds out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.virtio_twin import MODERN, RX, TX, Twin, make, numbered, ring_features
from vnic.features import Features
from vnic.testing import DriverError
from vnic_virtio_net.testing import DRIVER_FEATURES, Driver, Shape


def raw(twin: Twin, index: int, data: bytes, *entries: tuple[int, int]) -> None:
    """Write data to the next buffer posted, and these used entries."""
    queue = twin.queues[index]
    _, chain = queue.pop()
    twin.host.memory.view(chain[0][0], len(data))[:] = data
    queue.use(*entries)


def header(n_buffers: int = 1, *start: int) -> bytes:
    return bytes(start).ljust(10, b"\0") + n_buffers.to_bytes(2, "little")


def never_posted(driver: Driver, twin: Twin) -> None:
    driver.send(numbered(1))
    twin.queues[TX].use((200, 0))


def id_beyond_the_ring(driver: Driver, twin: Twin) -> None:
    driver.send(numbered(1))
    twin.queues[TX].use((0x10000, 0))


def used_twice(driver: Driver, twin: Twin) -> None:
    driver.send(numbered(2))
    twin.queues[TX].use((0, 0), (0, 0))


def index_too_far(driver: Driver, twin: Twin) -> None:
    driver.send(numbered(1))
    twin.queues[TX].advance(2)


def index_back(driver: Driver, twin: Twin) -> None:
    driver.send(numbered(2))
    twin.transmit()
    driver.tx.reclaim()
    twin.queues[TX].advance(-1)


def tx_len(driver: Driver, twin: Twin) -> None:
    driver.send(numbered(1))
    twin.queues[TX].use((0, 1))


def out_of_order(driver: Driver, twin: Twin) -> None:
    driver.send(numbered(3))
    twin.queues[TX].use((1, 0))


def sent_changed(driver: Driver, twin: Twin) -> None:
    driver.send(numbered(1))
    _, chain = twin.queues[TX].pop()
    twin.host.memory.view(chain[0][0] + 20, 1)[0] ^= 1
    twin.queues[TX].use((0, 0))


def used_again_in_one_go(driver: Driver, twin: Twin) -> None:
    # By the second entry the driver has the buffer back, and has not published it again yet.
    raw(twin, RX, header(), (0, 72), (0, 72))


def rx_len(driver: Driver, twin: Twin) -> None:
    raw(twin, RX, header(), (0, driver.rx.capacity + 1))


def header_alone(driver: Driver, twin: Twin) -> None:
    raw(twin, RX, header(), (0, 12))


def half_a_header(driver: Driver, twin: Twin) -> None:
    raw(twin, RX, header(), (0, 11))


def no_buffers(driver: Driver, twin: Twin) -> None:
    raw(twin, RX, header(0), (0, 72))


def buffers_missing(driver: Driver, twin: Twin) -> None:
    raw(twin, RX, header(2), (0, driver.rx.capacity))


def buffer_not_filled(driver: Driver, twin: Twin) -> None:
    raw(twin, RX, header(2), (0, driver.rx.capacity - 1), (1, 10))


def flags_not_negotiated(driver: Driver, twin: Twin) -> None:
    raw(twin, RX, header(1, 1), (0, 72))


def gso_not_negotiated(driver: Driver, twin: Twin) -> None:
    raw(twin, RX, header(1, 0, 1), (0, 72))


def beyond_the_buffer(driver: Driver, twin: Twin) -> None:
    _, chain = twin.queues[RX].pop()
    gpa, n, _ = chain[0]
    twin.host.memory.view(gpa, 12)[:] = header()
    twin.host.memory.view(gpa + n, 1)[0] = 0
    twin.queues[RX].use((0, 72))


WRONG = [
    (never_posted, r"transmit queue: used entry 0 has id 200, which was never posted"),
    (id_beyond_the_ring, r"has id 65536, which was never posted"),
    (used_twice, r"used entry 1 has id 0, which was used before"),
    (index_too_far, r"used idx went from 0 to 2, with 1 chains posted"),
    (index_back, r"used idx went from 2 to 1, with 0 chains posted"),
    (tx_len, r"used entry 0 has len 1, more than the device may write"),
    (out_of_order, r"used entry 0 has id 1, out of order although IN_ORDER"),
    (sent_changed, r"wrote to a frame that it was sent"),
    (used_again_in_one_go, r"receive queue: used entry 1 has id 0, which was used before"),
    (rx_len, r"receive queue: used entry 0 has len 1537, more than the device may write"),
    (header_alone, r"has len 12, which a header and a frame don't fit in"),
    (half_a_header, r"has len 11, which a header and a frame don't fit in"),
    (no_buffers, r"has num_buffers 0"),
    (buffers_missing, r"has num_buffers 2, more than are used"),
    (buffer_not_filled, r"has len 1535: only a frame's last buffer may be left unfilled"),
    (flags_not_negotiated, r"a header that was not negotiated"),
    (gso_not_negotiated, r"a header that was not negotiated"),
    (beyond_the_buffer, r"wrote beyond a descriptor"),
]

BULK = [
    (used_again_in_one_go, "used entry 1 has id 0, which was used before"),
    *[
        (fault, text)
        for fault, text in WRONG
        if fault
        in (
            rx_len,
            header_alone,
            half_a_header,
            no_buffers,
            buffers_missing,
            buffer_not_filled,
            flags_not_negotiated,
            gso_not_negotiated,
        )
    ],
]


def look(driver: Driver) -> None:
    driver.recv()
    assert driver.n_outstanding >= 0


@pytest.mark.parametrize(("fault", "text"), WRONG, ids=[fault.__name__ for fault, _ in WRONG])
def test_a_wrong_device_is_found_out_and_not_trusted_again(
    fault: Callable[[Driver, Twin], None], text: str
) -> None:
    driver, twin = make()
    fault(driver, twin)
    for _ in range(2):
        with pytest.raises(DriverError, match=text):
            look(driver)


@pytest.mark.parametrize("features", [DRIVER_FEATURES, DRIVER_FEATURES & ~Features.IN_ORDER])
@pytest.mark.parametrize(("fault", "text"), BULK, ids=[fault.__name__ for fault, _ in BULK])
def test_the_bulk_path_finds_out_the_same(
    fault: Callable[[Driver, Twin], None], text: str, features: Features
) -> None:
    driver, twin = make(features)
    fault(driver, twin)
    with pytest.raises(DriverError, match=text):
        driver.recv_bulk(64)


def test_without_mrg_rxbuf_a_frame_takes_one_buffer() -> None:
    driver, twin = make(MODERN)
    raw(twin, RX, header(2), (0, driver.rx.capacity), (1, 10))
    with pytest.raises(DriverError, match="has num_buffers 2"):
        driver.recv()


@settings(deadline=None)
@given(st.data())
def test_any_used_entry_is_taken_or_blamed_and_the_bulk_path_agrees(data: st.DataObject) -> None:
    features = data.draw(ring_features)
    shape = Shape(4, cuts=data.draw(st.sampled_from([(512,), (12, 500)])))
    word = st.one_of(st.integers(0, 5), st.sampled_from([12, 13, 512]), st.integers(0, 2**32 - 1))
    entries = data.draw(st.lists(st.tuples(word, word), max_size=5))
    start = header(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 1)))
    outcomes = []
    for bulk in (False, True):
        driver, twin = make(features, rx=shape, tx=shape)
        raw(twin, RX, start, *entries)
        driver.send(numbered(3))
        twin.queues[TX].use(*entries)
        with contextlib.suppress(DriverError):
            assert driver.n_outstanding <= 3
        try:
            n = driver.recv_bulk(9) if bulk else len(driver.recv(9))
            outcomes.append((n, driver.n_received_bytes))
        except DriverError as error:
            outcomes.append((str(error), 0))
    assert outcomes[0] == outcomes[1]
