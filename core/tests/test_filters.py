"""Filters: backends that are given another beneath them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kit.fakes import PassingFilter, open_fake
from kit.loops import LoopBench
from vnic.burst import Burst, Room
from vnic.features import Features
from vnic.hookspecs import hookimpl
from vnic.link import Joint


@pytest.fixture
def bench() -> Iterator[LoopBench]:
    bench = LoopBench()
    yield bench
    bench.close()


def frames(n: int, first: int = 0) -> list[bytes]:
    return [bytes([i]) * 60 for i in range(first, first + n)]


class Marks(PassingFilter):
    """Changes frames: puts its letter at the end of each, both ways."""

    def __init__(self, mark: bytes) -> None:
        super().__init__()
        self.mark = mark

    @hookimpl
    def send(self, burst: Burst) -> int:
        taken: int = self.beneath.send(Burst.of([bytes(frame) + self.mark for frame in burst]))
        return taken

    @hookimpl
    def recv(self, room: Room) -> int:
        n: int = self.beneath.recv(MarkingRoom(room, self.mark))
        return n


class MarkingRoom:
    """A room by its verbs, in front of another."""

    def __init__(self, room: Room, mark: bytes) -> None:
        self.room, self.mark = room, mark

    @property
    def full(self) -> bool:
        return self.room.full

    def put_frame(self, buffer: bytes, header: bytes | None = None) -> bool:
        return self.room.put_frame(bytes(buffer) + self.mark, header)


class Delays(PassingFilter):
    """Holds frames from the guest until a timer comes; drops one in three, and doubles the rest."""

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        super().init(name, options, link)
        self.held: list[bytes] = []
        self.n = 0
        link.beneath_writable = self.flush

    @hookimpl
    def send(self, burst: Burst) -> int:
        if not self.held:
            self.link.timer(0.1, self.flush)
        for frame in burst:
            self.n += 1
            if self.n % 3 == 0:
                self.link.count("delay_dropped")
            else:
                self.held += [bytes(frame)] * 2
        return len(burst)

    def flush(self) -> None:
        taken = self.beneath.send(Burst.of(self.held))
        del self.held[:taken]


def test_filters_stack_in_the_order_they_are_given(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop, Marks(b"a"), Marks(b"b"))
    assert link.send(Burst.of(frames(2))) == 2
    assert backend.sent == [frame + b"ab" for frame in frames(2)]
    backend.deliver(*frames(2))
    assert frontend.frames == [frame + b"ba" for frame in frames(2)]


def test_a_filter_may_hold_drop_and_add_frames(bench: LoopBench) -> None:
    link, _, backend = open_fake(bench.loop, Delays())
    assert link.send(Burst.of(frames(4))) == 4
    assert backend.sent == []
    bench.clock.now_s += 0.2
    bench.settle()
    kept = [frames(4)[i] for i in (0, 0, 1, 1, 3, 3)]
    assert backend.sent == kept
    assert link.counters() == {"delay_dropped": 1}


def test_a_filter_that_holds_frames_hears_of_room_beneath_it(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop, Delays())
    backend.takes = 1
    link.send(Burst.of(frames(1)))
    bench.clock.now_s += 0.2
    bench.settle()
    assert backend.sent == frames(1)
    backend.link.writable()
    assert backend.sent == frames(1) * 2
    assert frontend.n_writable == 0  # the guest was never short


def test_readable_and_writable_pass_through_filters(bench: LoopBench) -> None:
    _, frontend, backend = open_fake(bench.loop, *(PassingFilter() for _ in range(5)))
    backend.deliver(*frames(1))
    assert (frontend.n_readable, frontend.frames) == (1, frames(1))
    backend.link.writable()
    assert frontend.n_writable == 1


def test_a_filter_may_keep_readiness_to_itself(bench: LoopBench) -> None:
    class Deaf(PassingFilter):
        @hookimpl
        def init(self, name: str, options: Any, link: Joint) -> None:
            super().init(name, options, link)
            link.beneath_readable = lambda: self.calls.append("readable")

    deaf = Deaf()
    _, frontend, backend = open_fake(bench.loop, deaf)
    backend.deliver(*frames(1))
    assert frontend.n_readable == 0
    deaf.link.readable()
    assert frontend.frames == frames(1)
    assert deaf.calls == ["readable"]


def test_all_layers_are_enabled_and_disabled(bench: LoopBench) -> None:
    class Upper(PassingFilter):
        @hookimpl
        def recv_enable(self) -> None:
            self.calls.append("recv_enable")

        @hookimpl
        def recv_disable(self) -> None:
            self.calls.append("recv_disable")

    layer = Upper()
    link, _, backend = open_fake(bench.loop, layer, PassingFilter())
    layer.calls.clear()
    link.recv_disable()
    link.recv_enable()
    assert layer.calls == backend.calls == ["recv_disable", "recv_enable"]


def test_a_layer_that_fills_the_guest_when_enabled_leaves_those_beneath_it_disabled(
    bench: LoopBench,
) -> None:
    class Holds(PassingFilter):
        held = frames(3)

        @hookimpl
        def recv(self, room: Room) -> int:
            n = 0
            while self.held and room.put_frame(self.held[0]):
                self.held.pop(0)
                n += 1
            return n

        @hookimpl
        def recv_enable(self) -> None:
            self.link.readable()

    link, frontend, backend = open_fake(bench.loop, Holds(), n_max=1)
    assert frontend.frames == frames(1)
    link.recv_enable()
    assert "recv_enable" not in backend.calls
    assert frontend.refill(10) == frames(1)
    assert frontend.frames == frames(2, 1)
    assert backend.calls == ["recv_disable", "recv_enable"]


def test_offloads_are_those_of_the_first_layer_that_speaks_of_them(bench: LoopBench) -> None:
    class NoTso(PassingFilter):
        @hookimpl
        def get_capabilities(self) -> Features:
            has: Features = self.beneath.get_capabilities()
            return has & ~Features.HOST_TSO4

    link, _, backend = open_fake(bench.loop, PassingFilter(), NoTso())
    backend.capabilities = Features.CSUM | Features.HOST_TSO4
    assert link.capabilities == Features.CSUM
    link.set_features(Features.CSUM)
    assert backend.features[-1] == Features.CSUM


def test_any_layer_takes_the_link_down_and_counts(bench: LoopBench) -> None:
    layer = PassingFilter()
    link, frontend, _ = open_fake(bench.loop, layer)
    layer.link.count("dropped", 3)
    layer.link.down("lost")
    bench.settle()
    assert frontend.ups == [False]
    assert link.counters() == {"dropped": 3}


@pytest.mark.parametrize("what", ["beneath_readable", "beneath_writable"])
def test_a_filter_that_raises_hurts_its_link_and_not_the_backend_that_called(
    bench: LoopBench, what: str
) -> None:
    layer = PassingFilter()
    link, _, backend = open_fake(bench.loop, layer)

    def fail() -> None:
        raise RuntimeError("on purpose")

    setattr(layer.link, what, fail)
    backend.link.readable()
    backend.link.writable()
    assert link.reason == f"{what}: on purpose"


def test_layers_are_closed_from_the_top(bench: LoopBench) -> None:
    order: list[str] = []

    class Notes(PassingFilter):
        @hookimpl
        def cleanup(self) -> None:
            order.append(self.name)

    link, _, _ = open_fake(bench.loop, Notes(), Notes())
    link.close()
    assert order == ["filter0", "filter1"]
