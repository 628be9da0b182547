"""The device between two of its drivers, over a wire: what one sends, the other receives."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vnic.burst import Burst, Room
from vnic.config import NicConfig
from vnic.features import OFFLOADS, Features
from vnic.hookspecs import hookimpl
from vnic.link import Joint, Link
from vnic.loop import Loop
from vnic.nic import Nic
from vnic.testing import SoftwareHost
from vnic_virtio_net import Plugin
from vnic_virtio_net.testing import DRIVER_FEATURES, Driver, Shape

MODERN = Features.VERSION_1
PLAIN = bytes(10) + b"\1\0"


class Wire:
    """One end of a wire that holds nothing: what the other end has no room for is not taken."""

    peer: Wire
    link: Joint

    def __init__(self) -> None:
        self._coming: Burst | None = None
        self._taken = 0

    @hookimpl
    def init(self, name: str, options: object, link: Joint) -> None:
        self.link = link

    @hookimpl
    def cleanup(self) -> None:
        pass

    @hookimpl
    def get_capabilities(self) -> Features:
        return OFFLOADS

    @hookimpl
    def send(self, burst: Burst) -> int:
        peer = self.peer
        peer._coming, peer._taken = burst, 0
        peer.link.readable()
        peer._coming = None
        return peer._taken

    @hookimpl
    def recv(self, room: Room) -> int:
        if self._coming is None:
            return 0
        n = room.put(self._coming, self._taken)
        self._taken += n
        return n

    @hookimpl
    def recv_enable(self) -> None:
        self.peer.link.writable()


@attrs.define
class Pair:
    """Two NICs in one loop, each with a host of its own."""

    loop: Loop
    nics: list[Nic]
    hosts: list[SoftwareHost]

    @classmethod
    def make(cls) -> Pair:
        pair = cls(Loop(), [], [])
        ends = [Wire(), Wire()]
        ends[0].peer, ends[1].peer = ends[1], ends[0]
        for end, name in zip(ends, "ab", strict=True):
            link = Link(name, pair.loop)
            link.open([(end, "wire", None)])
            host = SoftwareHost(pair.loop, 16 << 20)
            config = NicConfig(frontend="virtio-net", backend="wire", name=name)
            nic = Nic(config, Plugin(), Plugin.Options(), link)
            nic.attach(host)
            pair.nics.append(nic)
            pair.hosts.append(host)
        return pair

    def settle(self) -> None:
        """Dispatch until nothing is left to do."""
        for _ in range(8):
            self.loop.dispatch()

    def close(self) -> None:
        for nic in self.nics:
            nic.close()
        self.loop.close()
        assert [host.failures for host in self.hosts] == [[], []]


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair.make()
    yield pair
    pair.close()


def numbered(n: int, start: int = 0, length: int = 60) -> list[bytes]:
    return [i.to_bytes(4, "big").ljust(length, bytes([i % 251])) for i in range(start, start + n)]


ring_features = st.sets(
    st.sampled_from(
        [Features.MRG_RXBUF, Features.EVENT_IDX, Features.IN_ORDER, Features.INDIRECT_DESC]
    )
).flatmap(
    lambda bits: st.sampled_from([Features(0), MODERN]).map(lambda v: Features(sum(bits)) | v)
)


@st.composite
def drivers(draw: st.DrawFn) -> tuple[Features, Shape, Shape]:
    """Features and shapes that let every frame of 1514 bytes through."""
    features = draw(ring_features)
    shapes = []
    for mergeable in (Features.MRG_RXBUF in features, False):
        size = draw(st.sampled_from([2, 4, 16, 64]))
        cuts = draw(st.lists(st.integers(1, 700), min_size=1, max_size=min(size, 9)))
        indirect = Features.INDIRECT_DESC in features and draw(st.booleans())
        # Half of what the ring takes, where that is more than one: a driver need not fill it.
        n_buffers = max(1, (size if indirect else size // len(cuts)) // 2)
        least = max(12, 1600 // n_buffers + 1) if mergeable else 1600
        cuts[-1] += max(0, least - sum(cuts))
        shapes.append(Shape(size, cuts=tuple(cuts), indirect=indirect, n_buffers=n_buffers))
    return features, shapes[0], shapes[1]


@settings(deadline=None)
@given(st.data())
def test_any_frame_arrives_as_it_was_sent_whatever_the_drivers(data: st.DataObject) -> None:
    pair = Pair.make()
    ends = []
    for nic, host in zip(pair.nics, pair.hosts, strict=True):
        features, rx, tx = data.draw(drivers())
        ends.append(Driver(nic, host, features=features, rx=rx, tx=tx))
    pair.settle()
    a, b = ends
    lengths = data.draw(st.lists(st.integers(14, 1514), min_size=1, max_size=60))
    frames = [numbered(1, i, length)[0] for i, length in enumerate(lengths)]
    received: list[bytes] = []
    sent = 0
    for _ in range(10 * len(frames)):
        step = data.draw(st.integers(1, 9))
        sent += a.send(frames[sent : sent + step])
        pair.settle()
        received += [frame for frame, _ in b.recv(step)]
        if len(received) == len(frames):
            break
    pair.settle()
    assert received == frames
    assert a.n_outstanding == 0
    a.check()
    b.check()
    a.stop()
    b.stop()
    pair.close()


@pytest.mark.parametrize("features", [DRIVER_FEATURES, DRIVER_FEATURES & ~Features.IN_ORDER])
def test_bulk_frames_all_arrive(pair: Pair, features: Features) -> None:
    a, b = (
        Driver(nic, host, features=features, polling=True)
        for nic, host in zip(pair.nics, pair.hosts, strict=True)
    )
    pair.settle()
    a.prepare_bulk(numbered(7, length=64))
    sent = 0
    while sent < 200_000:
        sent += a.send_bulk(100)
        pair.loop.dispatch()
        b.recv_bulk(256)
    pair.settle()
    b.recv_bulk(256)
    assert b.n_received == sent
    assert b.n_received_bytes == 64 * sent
    assert a.n_outstanding == 0
    a.prepare_bulk(numbered(1))  # the indices have wrapped three times


def test_a_guest_that_does_not_receive_holds_the_other_back_and_loses_nothing(pair: Pair) -> None:
    a, b = (
        Driver(nic, host, rx=Shape(8), tx=Shape(16))
        for nic, host in zip(pair.nics, pair.hosts, strict=True)
    )
    pair.settle()
    sent = a.send(numbered(100))
    for _ in range(10):
        pair.settle()
        sent += a.send(numbered(100 - sent, sent))
    assert sent == 8 + 16
    received = b.recv(5)
    pair.settle()
    received += b.recv()
    pair.settle()
    received += b.recv()
    pair.settle()
    received += b.recv()
    assert [frame for frame, _ in received] == numbered(24)
    assert {header for _, header in received} == {PLAIN}
    a.check()
    b.check()


def test_a_frame_that_fits_when_the_ring_is_empty_waits_for_that(pair: Pair) -> None:
    a, b = (
        Driver(nic, host, rx=Shape(2, cuts=(801,)))
        for nic, host in zip(pair.nics, pair.hosts, strict=True)
    )
    pair.settle()
    frames = [*numbered(1, 0, 14), *numbered(1, 1, 790)]
    a.send(frames)
    pair.settle()
    assert [frame for frame, _ in b.recv()] == frames[:1]
    pair.settle()
    assert [frame for frame, _ in b.recv()] == frames[1:]


def test_a_paused_driver_goes_on_where_it_was(pair: Pair) -> None:
    a, b = (Driver(nic, host) for nic, host in zip(pair.nics, pair.hosts, strict=True))
    pair.settle()
    for i in range(3):
        assert a.send(numbered(5, 10 * i)) == 5
        pair.settle()
        a.pause()
        b.pause()
        assert a.send(numbered(5, 10 * i + 5)) == 5
        pair.settle()
        b.resume()
        a.resume()
        pair.settle()
        assert [frame for frame, _ in b.recv()] == numbered(10, 10 * i)
    a.check()
    b.check()
