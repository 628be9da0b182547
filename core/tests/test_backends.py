"""The two backends that core brings: each keeps the contract, and does what it is there for."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar
from unittest import SkipTest

import pytest
from kit.fakes import FakeFrontend, PassingFilter
from kit.loops import LoopBench
from kit.segmentation import Packet
from vnic.backends.loop import Loopback
from vnic.backends.null import COUNTERS, Null
from vnic.burst import BURST_MAX, Burst, Room
from vnic.features import GUEST_OFFLOADS, HOST_OFFLOADS, OFFLOADS, Features
from vnic.hookspecs import hookimpl
from vnic.link import Joint, Link
from vnic.loop import Loop
from vnic.registry import Registry
from vnic.testing.bench import GUEST_MAC, Guest, from_guest
from vnic.testing.contract import BackendContract, Outside


@pytest.fixture
def bench() -> Iterator[LoopBench]:
    bench = LoopBench()
    yield bench
    bench.close()


@pytest.mark.parametrize(("name", "cls"), [("null", Null), ("loop", Loopback), ("loop7", Loopback)])
def test_they_are_found_as_any_plugin_is(name: str, cls: type) -> None:
    plugin = Registry().load("backends", name)
    assert (plugin.cls, plugin.distribution) == (cls, "vnic")


# ---- null ----------------------------------------------------------------------------------------


class Witnessed(Null):
    """Tells its outside what it takes, which it keeps itself from nobody else."""

    taken: ClassVar[list[bytes]] = []

    @hookimpl
    def send(self, burst: Burst) -> int:
        n = super().send(burst)
        self.taken += [bytes(burst[i]) for i in range(n)]
        return n


class Nowhere(Outside):
    plugin = Witnessed
    name = "null"
    wrong = (("nullify", None),)
    sizes = (14, 15, 60, 64, 65, 1514, 9014, 65535)

    def arrive(self, frames: Sequence[bytes]) -> None:
        raise SkipTest("null has no frames for a guest")

    def arrive_offloaded(self, frame: bytes, header: bytes) -> None:
        self.arrive([frame])

    def departed(self) -> list[bytes]:
        frames = Witnessed.taken[:]
        Witnessed.taken.clear()
        return frames


class TestNull(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return Nowhere()


def test_null_counts_what_it_takes(bench: LoopBench) -> None:
    link = Link("nic0", bench.loop)
    link.open([(Null(), "null", None)])
    assert link.send(Burst.of([bytes(60), bytes(1500)])) == 2
    assert link.send(Burst.of([bytes(14)])) == 1
    assert link.counters() == {"null_frames": 3, "null_bytes": 1574}
    assert set(link.counters()) == set(COUNTERS)


def test_null_takes_frames_to_be_segmented_whole(bench: LoopBench) -> None:
    link = Link("nic0", bench.loop)
    link.open([(Null(), "null", None)])
    link.set_features(HOST_OFFLOADS)
    packet = Packet(payload=bytes(5000))
    assert link.send(Burst.of([packet.frame()], [packet.header])) == 1
    assert link.counters() == {"null_frames": 1, "null_bytes": len(packet.frame())}


# ---- loop ----------------------------------------------------------------------------------------


class Watched(Loopback):
    """Tells its outside what has gone back."""

    outside: ClassVar[Back]

    @hookimpl
    def init(self, name: str, options: None, link: Joint) -> None:
        super().init(name, options, link)
        self.outside.opened = self

    @hookimpl
    def cleanup(self) -> None:
        super().cleanup()
        self.outside.opened = None

    @hookimpl
    def recv(self, room: Room) -> int:
        on_their_way = [bytes(frame) for frame, _ in self._frames]
        n = super().recv(room)
        self.outside.gone += on_their_way[:n]
        return n


class Back(Outside):
    """What is behind a loop is in front of it: others put frames in, as the guest does."""

    plugin = Watched
    name = "loop"
    wrong = (("loopback", None),)
    sizes = (14, 15, 60, 64, 65, 1514, 9014, 65535)
    opened: Any = None

    def __init__(self, loop: Loop) -> None:
        Watched.outside = self
        self.loop = loop
        self.gone: list[bytes] = []
        self.to_come: deque[bytes] = deque()

    def arrive(self, frames: Sequence[bytes]) -> None:
        self.to_come += frames
        self._put_in()

    def _put_in(self) -> None:
        if self.opened is None or not self.to_come:
            return
        burst = Burst.of(list(self.to_come)[:BURST_MAX])
        for _ in range(self.opened.send(burst)):
            self.to_come.popleft()
        if self.to_come:
            self.loop.schedule(self._put_in)

    def departed(self) -> list[bytes]:
        gone, self.gone = self.gone, []
        return [frame for frame in gone if frame[6:12] == GUEST_MAC]

    def fill(self) -> None:
        self.opened._link._link.recv_disable()

    def drain(self) -> None:
        self.opened._link._link.recv_enable()
        self.opened._link.readable()

    def arrive_offloaded(self, frame: bytes, header: bytes) -> None:
        self.opened.send(Burst.of([frame], [header]))


class TestLoop(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return Back(loop)


def open_loop(loop: Loop, *, offloads: Features = GUEST_OFFLOADS) -> tuple[Link, Guest]:
    link = Link("nic0", loop)
    link.open([(Loopback(), "loop", None)])
    link.set_features(OFFLOADS)
    guest = Guest(link, offloads=offloads)
    guest.start()
    return link, guest


def test_loop_gives_a_guest_what_it_sends_in_order(bench: LoopBench) -> None:
    link, guest = open_loop(bench.loop)
    assert guest.send(from_guest(700)) > 0
    bench.settle()
    assert guest.frames == from_guest(700)
    assert link.counters() == {"tx_full": 2}


def test_a_full_loop_is_so_until_the_guest_has_room(bench: LoopBench) -> None:
    link, guest = open_loop(bench.loop)
    link.recv_disable()
    assert guest.send(from_guest(300)) == 300 - BURST_MAX
    bench.settle()
    assert (guest.n_writable, guest.frames) == (0, [])
    guest.start()
    bench.settle()
    assert guest.n_waiting == 0
    assert guest.frames == from_guest(300)


def test_what_was_sent_to_be_segmented_comes_back_so(bench: LoopBench) -> None:
    link, guest = open_loop(bench.loop)
    packet = Packet(payload=bytes(range(256)) * 20)
    assert link.send(Burst.of([packet.frame()], [packet.header])) == 1
    bench.settle()
    assert (guest.frames, guest.headers) == ([packet.frame()], [packet.header])


def test_or_as_segments_to_a_guest_that_only_sends_it(bench: LoopBench) -> None:
    link, guest = open_loop(bench.loop, offloads=Features(0))
    packet = Packet(payload=bytes(range(256)) * 20)
    assert link.send(Burst.of([packet.frame()], [packet.header])) == 1
    bench.settle()
    assert guest.frames == packet.segments()


def test_what_is_on_its_way_to_nobody_is_counted(bench: LoopBench) -> None:
    link, _ = open_loop(bench.loop)
    link.send(Burst.of(from_guest(3)))
    link.recv_discard()
    assert link.counters() == {"rx_discarded": 3}


def test_one_that_answers_each_frame_from_within_its_delivery_is_no_recursion(
    bench: LoopBench,
) -> None:
    class Answers(PassingFilter):
        """As no frontend may."""

        @hookimpl
        def recv(self, room: Room) -> int:
            n = super().recv(room)
            self.calls.append("recv")
            self.send(Burst.of([bytes(60)]))
            return n

    link = Link("nic0", bench.loop)
    link.open([(Answers(), "answers", None), (Loopback(), "loop", None)])
    frontend = FakeFrontend(link)
    link.recv_enable()
    link.send(Burst.of([bytes(60)]))
    for _ in range(20):
        n = len(frontend.frames)
        bench.loop.dispatch()
        assert n < len(frontend.frames) < n + 10
    assert link.is_up
