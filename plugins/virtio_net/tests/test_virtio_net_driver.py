"""The driver, against a device twin in plain Python; what a wrong device does is caught."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vnic.features import GUEST_OFFLOADS, HOST_OFFLOADS, OFFLOADS, Features
from vnic.hookspecs import QueueAddresses
from vnic.loop import Loop
from vnic.testing import DriverError, SoftwareHost
from vnic_virtio_net.testing import DRIVER_FEATURES, Driver, HostileGuest, Ring, Shape
from vnic_virtio_net.testing.hostile import INDIRECT, NEXT, WRITE

RX, TX = 0, 1
PLAIN = bytes(12)
MODERN = Features.VERSION_1


@attrs.define
class TwinQueue:
    """The device's side of a ring, word by word and slowly."""

    memory: Any
    at: QueueAddresses
    interrupt: Callable[[], None]
    taken: int = 0
    in_order: bool = False

    def words(self, gpa: int, n: int, code: str = "H") -> memoryview:
        return self.memory.view(gpa, n * memoryview(b"").cast(code).itemsize).cast(code)

    @property
    def avail(self) -> memoryview:
        return self.words(self.at.avail_gpa, 3 + self.at.size)

    @property
    def used(self) -> memoryview:
        return self.words(self.at.used_gpa, 3 + 4 * self.at.size)

    def waiting(self) -> int:
        return (self.avail[1] - self.taken) & 0xFFFF

    def pop(self) -> tuple[int, list[tuple[int, int, int]]]:
        """Take a chain: its head, and its (gpa, n, flags)."""
        head = self.avail[2 + self.taken % self.at.size]
        self.taken = (self.taken + 1) & 0xFFFF
        table, i = self.at.desc_gpa, head
        chain: list[tuple[int, int, int]] = []
        while True:
            gpa = self.words(table + 16 * i, 1, "Q")[0]
            n = self.words(table + 16 * i + 8, 1, "I")[0]
            flags, next_ = self.words(table + 16 * i + 12, 2)
            if flags & INDIRECT:
                assert not flags & NEXT
                assert n % 16 == 0
                assert n // 16 <= self.at.size
                table, i = gpa, 0
                continue
            chain.append((gpa, n, flags))
            assert len(chain) <= self.at.size
            if not flags & NEXT:
                return head, chain
            if self.in_order:
                assert next_ == (i + 1) % (self.at.size if table == self.at.desc_gpa else 1 << 16)
            i = next_

    def entry(self, ahead: int, id_: int, n: int) -> None:
        at = 4 + 8 * ((self.used[1] + ahead) % self.at.size)
        self.words(self.at.used_gpa + at, 2, "I")[0] = id_
        self.words(self.at.used_gpa + at, 2, "I")[1] = n

    def advance(self, n: int) -> None:
        self.used[1] = (self.used[1] + n) & 0xFFFF

    def use(self, *entries: tuple[int, int]) -> None:
        for ahead, (id_, n) in enumerate(entries):
            self.entry(ahead, id_, n)
        self.advance(len(entries))


class Twin:
    """A virtio-net device over the vhost face: frames it gets are in `sent`."""

    n_queues = 2

    def __init__(self, host: SoftwareHost, offered: Features, mtu: int = 1500) -> None:
        self.host = host
        self.offered = offered
        self.features = Features(0)
        self.config = b"\x52\x54\0\1\2\3" + b"\1\0" + b"\1\0" + mtu.to_bytes(2, "little")
        self.queues: dict[int, TwinQueue] = {}
        self.sent: list[tuple[bytes, bytes]] = []
        self.kicks = [0, 0]
        self.mute = False
        self.random = random.Random(7)

    # ---- vhost face

    def get_features(self) -> Features:
        return self.offered

    def set_features(self, features: Features) -> None:
        assert not features & ~self.offered
        self.features = features

    def start_queue(self, index: int, queue: QueueAddresses, interrupt: Callable[[], None]) -> None:
        in_order = Features.IN_ORDER in self.features
        self.queues[index] = TwinQueue(
            self.host.memory, queue, interrupt, taken=queue.base, in_order=in_order
        )
        assert self.queues[index].used[1] == queue.base

    def stop_queue(self, index: int) -> int:
        return self.queues[index].taken

    def enable_queue(self, index: int, enabled: bool) -> None:
        assert index in self.queues

    def kick(self, index: int) -> None:
        self.kicks[index] += 1

    def read_config(self, offset: int, n: int) -> bytes:
        return self.config[offset : offset + n].ljust(n, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        raise AssertionError("the configuration is read-only")

    # ---- a device's work

    @property
    def hdr_len(self) -> int:
        return 12 if self.features & (MODERN | Features.MRG_RXBUF) else 10

    def transmit(self, limit: int = 65536) -> None:
        """Take frames, and complete them in an order of the twin's choice."""
        queue = self.queues[TX]
        heads = []
        while queue.waiting() and len(heads) < limit:
            head, chain = queue.pop()
            assert not any(flags & WRITE for _, _, flags in chain)
            data = b"".join(bytes(self.host.memory.view(gpa, n)) for gpa, n, _ in chain)
            self.sent.append((data[self.hdr_len :], data[: self.hdr_len].ljust(12, b"\0")))
            heads.append(head)
        if Features.IN_ORDER not in self.features:
            self.random.shuffle(heads)
        elif heads and self.random.random() < 0.5:
            # One entry for all of them.
            queue.entry(0, heads[-1], 0)
            queue.advance(len(heads))
            self.notify(TX, len(heads))
            return
        queue.use(*((head, 0) for head in heads))
        self.notify(TX, len(heads))

    def deliver(self, frame: bytes, header: bytes = PLAIN) -> bool:
        """Write a frame to as many buffers as it takes; whether there were enough."""
        queue = self.queues[RX]
        start, used, size = queue.taken, [], 0
        data = header[: self.hdr_len] + frame
        places: list[tuple[int, int]] = []
        while size < len(data):
            if not queue.waiting() or (used and Features.MRG_RXBUF not in self.features):
                queue.taken = start
                return False
            head, chain = queue.pop()
            assert all(flags & WRITE for _, _, flags in chain)
            capacity = sum(n for _, n, _ in chain)
            used.append((head, min(capacity, len(data) - size)))
            places += [(gpa, n) for gpa, n, _ in chain]
            size += capacity
        if self.hdr_len == 12:
            data = data[:10] + len(used).to_bytes(2, "little") + data[12:]
        for gpa, n in places:
            piece, data = data[:n], data[n:]
            self.host.memory.view(gpa, len(piece))[:] = piece
        queue.use(*used)
        self.notify(RX, len(used))
        return True

    def notify(self, index: int, n: int) -> None:
        queue = self.queues[index]
        wanted = not queue.avail[0] & 1
        if Features.EVENT_IDX in self.features:
            assert queue.avail[0] == 0
            new, event = queue.used[1], queue.avail[2 + queue.at.size]
            wanted = (new - event - 1) & 0xFFFF < n
        if wanted and n and not self.mute:
            queue.interrupt()


def make(
    features: Features = DRIVER_FEATURES, size: int = 8 << 20, **options: Any
) -> tuple[Driver, Twin]:
    host = SoftwareHost(Loop(), size)
    host.loop.close()
    twin = Twin(host, features)
    nic: Any = SimpleNamespace(vhost=twin, name="twin")
    return Driver(nic, host, features=features, **options), twin


def numbered(n: int, start: int = 0, length: int = 60) -> list[bytes]:
    return [i.to_bytes(4, "big").ljust(length, bytes([i % 251])) for i in range(start, start + n)]


# ---- any layout ----------------------------------------------------------------------------------

ring_features = st.sets(
    st.sampled_from(
        [MODERN, Features.MRG_RXBUF, Features.EVENT_IDX, Features.IN_ORDER, Features.INDIRECT_DESC]
    )
).map(lambda bits: Features(sum(bits)))

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


# ---- wrong devices -------------------------------------------------------------------------------


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


# ---- the ring by hand ----------------------------------------------------------------------------


@pytest.fixture
def host() -> Iterator[SoftwareHost]:
    host = SoftwareHost(Loop(), 1 << 20)
    yield host
    host.loop.close()


def test_a_ring_by_hand_has_each_word_where_the_specification_puts_it(host: SoftwareHost) -> None:
    ring = Ring(host, 4)
    ring.desc(1, 0x1122334455667788, 0xAABBCCDD, 0x0102, 0x0304)
    view = host.memory.view
    assert bytes(view(ring.desc_gpa + 16, 16)).hex() == "8877665544332211ddccbbaa02010403"
    ring.publish(3, 0xFFFF)
    ring.avail_flags, ring.used_event = 1, 9
    assert bytes(view(ring.avail_gpa, 14)).hex() == "010002000300ffff000000000900"
    view(ring.used_gpa, 38)[:] = bytes.fromhex(
        "0100020007000000080000000900000000100000" + "00" * 16 + "0500"
    )
    assert (ring.used_flags, ring.used_idx, ring.avail_event) == (1, 2, 5)
    assert ring.used() == [(7, 8), (9, 4096)]
    assert ring.used() == []


def test_a_hostile_guest_can_also_behave(host: SoftwareHost) -> None:
    twin = Twin(host, MODERN)
    nic: Any = SimpleNamespace(vhost=twin, name="twin")
    guest = HostileGuest(nic, host, size=8)
    gpa = guest.buffer(PLAIN + b"frame")
    guest.tx.publish(guest.tx.chain(2, [(gpa, 12), (gpa + 12, 5)]))
    table = guest.tx.table((gpa, 12, NEXT, 1), (gpa + 12, 3, 0, 0))
    guest.tx.desc(5, table, 32, INDIRECT)
    guest.tx.publish(5)
    guest.rx.desc(0, guest.buffer(64), 64, WRITE)
    guest.rx.publish(0)
    guest.kick(TX)
    twin.transmit()
    assert twin.kicks == [0, 1]
    assert [frame for frame, _ in twin.sent] == [b"frame", b"fra"]
    assert sorted(guest.tx.used()) == [(2, 0), (5, 0)]
    assert twin.deliver(b"back")
    assert guest.rx.used() == [(0, 16)]
    assert guest.interrupts == [1, 1]
