"""The link: what a frontend hears of its backend, and what it is spared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kit.fakes import FakeBackend, OnSocket, PassingFilter, SmallBackend, open_fake
from kit.loops import LoopBench
from vnic.burst import Burst
from vnic.errors import BackendError, ConfigError
from vnic.features import NONE, Features
from vnic.hookspecs import hookimpl
from vnic.link import Joint, Link, Receiving


@pytest.fixture
def bench() -> Iterator[LoopBench]:
    bench = LoopBench()
    yield bench
    bench.close()


def frames(n: int, first: int = 0) -> list[bytes]:
    return [i.to_bytes(4, "big").rjust(60, b"f") for i in range(first, first + n)]


# ---- up and down ---------------------------------------------------------------------------------


def test_a_link_that_goes_down_tells_the_frontend_from_the_loop_and_why(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop)
    backend.link.down("the cable was pulled")
    assert (link.is_up, link.reason) == (False, "the cable was pulled")
    assert frontend.ups == []  # it was perhaps in the middle of a burst
    bench.settle()
    assert frontend.ups == [False]
    backend.link.up()
    bench.settle()
    assert (link.is_up, link.reason, frontend.ups) == (True, "", [False, True])


def test_going_down_twice_is_told_once(bench: LoopBench) -> None:
    _, frontend, backend = open_fake(bench.loop)
    for _ in range(2):
        backend.link.down("gone")
        bench.settle()
    assert frontend.ups == [False]


def test_while_it_is_down_frames_both_ways_are_dropped_and_counted(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop)
    backend.link.down("gone")
    assert link.send(Burst.of(frames(3))) == 3
    backend.deliver(*frames(2))
    assert backend.sent == frontend.frames == []
    assert link.counters() == {"tx_drop_link_down": 3, "rx_discarded": 2}


def test_frames_that_wait_for_room_do_not_wait_for_a_link_that_is_gone(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop)
    backend.takes = 1
    assert link.send(Burst.of(frames(3))) == 1
    backend.link.down("gone")
    bench.settle()
    assert frontend.n_writable == 1
    assert link.send(Burst.of(frames(2))) == 2


def test_nothing_is_told_after_close(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop)
    link.close()
    link.close()
    assert backend.calls == ["cleanup"]
    assert link.send(Burst.of(frames(2))) == 2
    assert frontend.receive() == 0
    link.recv_disable()
    link.recv_enable()
    link.recv_discard()
    assert backend.calls == ["cleanup"]


# ---- full and empty ------------------------------------------------------------------------------


def test_a_full_backend_is_counted_and_says_when_it_no_longer_is(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop)
    backend.takes = 2
    assert link.send(Burst.of(frames(5))) == 2
    assert link.counters() == {"tx_full": 1}
    assert frontend.n_writable == 0
    backend.link.writable()
    assert frontend.n_writable == 1


def test_a_guest_without_room_pauses_the_backend_until_it_has_some(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop, n_max=2)
    backend.deliver(*frames(5))
    assert link.receiving is Receiving.PAUSED
    assert backend.calls == ["recv", "recv_disable"]
    backend.link.readable()
    assert frontend.n_readable == 1  # F6: nothing is heard after disable
    assert frontend.refill(10) == frames(2)
    assert frontend.frames == frames(3, 2)
    assert backend.calls[2:] == ["recv_enable", "recv"]


def test_enable_and_disable_are_told_once_each(bench: LoopBench) -> None:
    link, _, backend = open_fake(bench.loop)
    for _ in range(2):
        link.recv_disable()
    for _ in range(2):
        link.recv_enable()
    assert backend.calls == ["recv_disable", "recv_enable"]


def test_without_a_receiver_frames_are_discarded_and_counted(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop)
    link.recv_discard()
    backend.deliver(*frames(3))
    assert frontend.receive() == 0
    assert link.counters()["rx_discarded"] == 3
    link.recv_enable()
    backend.deliver(*frames(1))
    assert frontend.frames == frames(1)


def test_what_waited_for_a_paused_guest_is_discarded_with_it(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop)
    link.recv_disable()
    backend.deliver(*frames(3))
    link.recv_discard()
    assert backend.calls == ["recv_disable", "recv_enable", "recv_discard"]
    link.recv_enable()
    frontend.receive()
    assert frontend.frames == []
    assert link.counters() == {"rx_discarded": 3}


def test_a_backend_without_recv_discard_is_drained_a_burst_at_a_time(bench: LoopBench) -> None:
    link, frontend, backend = open_fake(bench.loop, backend=SmallBackend())
    link.recv_discard()
    backend.deliver(*frames(600))
    assert link.counters()["rx_discarded"] == 256
    bench.settle()
    assert link.counters()["rx_discarded"] == 600
    assert frontend.frames == []


def test_readable_said_from_within_recv_is_heard_when_that_is_over(bench: LoopBench) -> None:
    _, frontend, backend = open_fake(bench.loop)
    more = frames(3)

    def something_is_left() -> None:
        if more:
            backend.pending.append(more.pop(0))
            backend.link.readable()

    backend.on_recv = something_is_left
    backend.link.readable()
    assert frontend.frames == frames(1)
    bench.settle()
    assert frontend.frames == frames(3)


# ---- descriptors ---------------------------------------------------------------------------------


def test_a_descriptor_is_read_while_the_guest_has_room_and_not_otherwise(bench: LoopBench) -> None:
    backend = OnSocket(bench)
    link, frontend, _ = open_fake(bench.loop, backend=backend)
    backend.theirs.send(b"".join(frames(3)))
    bench.loop.dispatch()
    assert frontend.frames == frames(1)
    link.recv_disable()
    n = frontend.n_readable
    bench.settle()
    assert frontend.n_readable == n
    link.recv_enable()
    bench.settle()
    assert frontend.frames == frames(3)


def test_without_a_receiver_a_descriptor_is_drained(bench: LoopBench) -> None:
    backend = OnSocket(bench)
    link, _, _ = open_fake(bench.loop, backend=backend)
    link.recv_disable()
    link.recv_discard()
    backend.theirs.send(b"".join(frames(3)))
    bench.settle()
    assert link.counters() == {"rx_discarded": 3}


def test_waiting_to_write_is_asked_for_once_at_a_time(bench: LoopBench) -> None:
    backend = OnSocket(bench)
    _, frontend, _ = open_fake(bench.loop, backend=backend)
    backend.watch.set(write=True)
    for _ in range(3):
        bench.loop.dispatch()
    assert frontend.n_writable == 1
    backend.watch.set(write=True)
    bench.loop.dispatch()
    assert frontend.n_writable == 2
    bench.settle()


def test_a_backend_can_finish_what_it_began_before_the_guest_hears_of_room(
    bench: LoopBench,
) -> None:
    def finish() -> None:
        assert frontend.n_writable == 0
        bench.called.append("finish")
        backend.link.writable()

    backend = OnSocket(bench, writable=finish)
    _, frontend, _ = open_fake(bench.loop, backend=backend)
    backend.watch.set(write=True)
    bench.settle()
    assert bench.called == ["finish"]
    assert frontend.n_writable == 1


def test_a_backend_that_cannot_finish_what_it_began_takes_the_link_down(bench: LoopBench) -> None:
    def fail() -> None:
        raise OSError("on purpose")

    backend = OnSocket(bench, writable=fail)
    link, _, _ = open_fake(bench.loop, backend=backend)
    backend.watch.set(write=True)
    bench.settle()
    assert link.reason == "a watch's writable callback: on purpose"


def test_a_backend_that_cleans_up_when_it_is_writable_is_not_read_then(bench: LoopBench) -> None:
    backend = OnSocket(bench)
    link, frontend, _ = open_fake(bench.loop, backend=backend)
    backend.theirs.send(frames(1)[0])
    backend.watch.set(write=True)
    link.on_writable = link.close
    bench.loop.dispatch()
    assert frontend.n_readable == 0
    assert backend.calls == ["cleanup"]


@pytest.mark.parametrize("receiving", ["recv_enable", "recv_disable", "recv_discard"])
def test_a_hang_up_takes_the_link_down_and_does_not_spin(
    bench: LoopBench, receiving: str
) -> None:  # F5
    backend = OnSocket(bench)
    link, frontend, _ = open_fake(bench.loop, backend=backend)
    getattr(link, receiving)()
    backend.theirs.close()
    bench.settle()
    assert not link.is_up
    assert link.reason == "its descriptor reports an error or was hung up"
    assert frontend.ups == [False]
    assert bench.idle()


def test_a_backend_can_see_to_a_hang_up_itself(bench: LoopBench) -> None:
    def reconnect() -> None:
        backend.watch.close()
        bench.called.append("reconnect")

    backend = OnSocket(bench, error=reconnect)
    link, _, _ = open_fake(bench.loop, backend=backend)
    backend.theirs.close()
    bench.settle()
    assert bench.called == ["reconnect"]
    assert link.is_up


def test_an_error_callback_that_fails_takes_the_link_down(bench: LoopBench) -> None:
    def fail() -> None:
        raise OSError("on purpose")

    backend = OnSocket(bench, error=fail)
    link, _, _ = open_fake(bench.loop, backend=backend)
    backend.theirs.close()
    bench.settle()
    assert link.reason == "a watch's error callback: on purpose"


def test_watches_and_timers_end_with_the_link(bench: LoopBench) -> None:
    backend = OnSocket(bench)
    link, frontend, _ = open_fake(bench.loop, backend=backend)
    backend.link.timer(1, bench.note("timer"))
    link.close()
    backend.theirs.send(b"x")
    bench.clock.now_s += 2
    bench.settle()
    assert bench.called == []
    assert frontend.n_readable == 0


def test_timers_that_came_are_forgotten(bench: LoopBench) -> None:
    _, _, backend = open_fake(bench.loop)
    for _ in range(100):
        backend.link.timer(0, bench.note("timer"))
        bench.loop.dispatch()
    assert len(bench.called) == 100
    assert len(backend.link._timers) <= 1


def test_a_timer_that_fails_takes_the_link_down(bench: LoopBench) -> None:
    link, _, backend = open_fake(bench.loop)

    def fail() -> None:
        raise ValueError("on purpose")

    backend.link.timer(0, fail)
    bench.settle()
    assert link.reason == "a timer: on purpose"


# ---- opening, capabilities -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [ConfigError("no"), BackendError("no"), ValueError("no")])
def test_a_layer_that_cannot_be_opened_closes_those_beneath_it(
    bench: LoopBench, error: Exception
) -> None:
    class Refusing(PassingFilter):
        @hookimpl
        def init(self, name: str, options: Any, link: Joint) -> None:
            raise error

    backend, refusing = OnSocket(bench), Refusing()
    link = Link("nic0", bench.loop)
    with pytest.raises(type(error)):
        link.open([(refusing, "f", None), (backend, "b", None)])
    assert backend.calls == ["init", "cleanup"]
    assert refusing.calls == ["cleanup"]
    backend.theirs.send(b"x")
    bench.settle()
    assert backend.calls == ["init", "cleanup"]


def test_what_a_backend_says_while_it_is_opened_is_not_asked_about(bench: LoopBench) -> None:
    class Early(FakeBackend):
        @hookimpl
        def init(self, name: str, options: Any, link: Joint) -> None:
            super().init(name, options, link)
            link.readable()
            link.writable()

    link, _, backend = open_fake(bench.loop, PassingFilter(), backend=Early())
    assert link.is_up
    assert backend.calls == []


def test_only_offloads_are_taken_from_capabilities_and_none_without_the_hook(
    bench: LoopBench,
) -> None:
    link, _, backend = open_fake(bench.loop)
    backend.capabilities = Features.CSUM | Features.MRG_RXBUF
    assert link.capabilities == Features.CSUM
    link.set_features(Features.CSUM | Features.VERSION_1)
    assert backend.features == [NONE, Features.CSUM]

    class Plain(PassingFilter):
        """A backend that has the four hooks and no other."""

    plain = Link("plain", bench.loop)
    plain.open([(Plain(), "plain0", None)])
    assert plain.capabilities == NONE
    plain.set_features(Features.CSUM)
