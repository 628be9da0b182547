"""The two backends that core brings: each keeps the contract, and does what it is there for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kit.fakes import FakeFrontend, PassingFilter
from kit.loops import LoopBench
from kit.outsides.core import Back, Nowhere
from kit.segmentation import Packet
from vnic.backends.loop import Loopback
from vnic.backends.null import COUNTERS, Null
from vnic.burst import BURST_MAX, Burst, Room
from vnic.features import GUEST_OFFLOADS, HOST_OFFLOADS, OFFLOADS, Features
from vnic.hookspecs import hookimpl
from vnic.link import Link
from vnic.loop import Loop
from vnic.registry import Registry
from vnic.testing.bench import Guest, from_guest
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


class TestNull(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return Nowhere(loop)


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
