"""How the loop runs, sleeps, polls, pauses, and lives inside another."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.loops import LoopBench as World
from vnic.loop import Loop
from vnic.testing.bench import Clock


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


# ---- running -------------------------------------------------------------------------------------


def test_stop_ends_the_run_from_a_callback(world: World) -> None:
    world.loop.schedule(world.loop.stop)
    world.loop.run()


def test_stop_ends_the_run_from_another_thread(world: World) -> None:
    threading.Timer(0.01, world.loop.stop).start()
    world.loop.run()


def test_stop_ends_the_run_from_a_signal_handler(world: World) -> None:
    before = signal.signal(signal.SIGALRM, lambda *_: world.loop.stop())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        world.loop.run()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_stop_that_came_before_the_run_is_not_lost(world: World) -> None:
    world.loop.stop()
    world.loop.run()
    world.loop.schedule(world.loop.stop)
    world.loop.run()


def test_a_stop_after_close_does_nothing(world: World) -> None:
    world.loop.close()
    world.loop.stop()
    world.loop.close()


@pytest.mark.parametrize("what", ["schedule", "timer"])
def test_another_thread_wakes_a_loop_that_sleeps(world: World, what: str) -> None:
    def from_there() -> None:
        with world.loop.lock:
            if what == "schedule":
                world.loop.schedule(world.loop.stop)
            else:
                world.loop.timer(0, world.loop.stop)

    threading.Timer(0.01, from_there).start()
    world.loop.run()


def test_callbacks_run_with_the_lock_held(world: World) -> None:
    def elsewhere() -> bool:
        taken: list[bool] = []
        thread = threading.Thread(
            target=lambda: taken.append(world.loop.lock.acquire(blocking=False))
        )
        thread.start()
        thread.join()
        return taken[0]

    world.loop.schedule(lambda: world.called.append(elsewhere()))
    world.loop.dispatch()
    assert world.called == [False]
    assert elsewhere()


def test_an_idle_run_sleeps_until_its_timer(world: World) -> None:
    loop = Loop()
    rounds = count_rounds(loop)
    loop.timer(0.05, loop.stop)
    loop.run()
    loop.close()
    assert rounds() < 10


def test_after_a_descriptor_it_looks_on_for_a_while_yielding_and_then_sleeps(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    yields: list[int] = []
    monkeypatch.setattr("os.sched_yield", lambda: yields.append(rounds()))
    loop = Loop(clock=map((1e-5).__mul__, itertools.count()).__next__, spin_s=50e-6)
    rounds = count_rounds(loop)
    ours, theirs = world.pair()
    theirs.send(b"x")
    came_in: list[int] = []
    loop.watch(ours.fileno(), lambda _: (ours.recv(1), came_in.append(rounds())))

    def sleeps() -> bool:
        if came_in:
            loop.stop()
        return False

    loop._arm = sleeps  # type: ignore[method-assign]
    loop.run()
    loop.close()
    assert came_in == [0]
    assert 4 <= rounds() <= 7
    assert 3 <= len(yields) < rounds()


def count_rounds(loop: Loop) -> Callable[[], int]:
    n = 0
    round_ = loop._round

    def counted(n_polls: int = 1) -> bool:
        nonlocal n
        n += 1
        return round_(n_polls)

    loop._round = counted  # type: ignore[method-assign]
    return lambda: n


class Ring:
    """Something polled: work while there is some; kicks are wanted while armed."""

    def __init__(self, loop: Loop, clock: Clock, step_s: float = 0.0) -> None:
        self.n_work = 0
        self.n_polls = self.n_arms = 0
        self._clock, self._step_s = clock, step_s
        self.poller = loop.poll(self.poll, self.arm)
        self.on_arm: Callable[[], None] = lambda: None

    def poll(self) -> bool:
        self.n_polls += 1
        self._clock.now_s += self._step_s
        if self.n_work:
            self.n_work -= 1
            return True
        return False

    def arm(self) -> bool:
        self.n_arms += 1
        self.on_arm()
        return self.n_work > 0


def test_a_busy_ring_is_polled_without_being_armed(world: World) -> None:
    ring = Ring(world.loop, world.clock, step_s=1e-6)
    ring.n_work = 1000
    ring.on_arm = world.loop.stop
    world.loop.run()
    assert ring.n_arms == 1
    assert 1000 < ring.n_polls <= 1000 + 52  # and 50 µs more


def test_descriptors_get_their_turn_while_a_ring_is_busy(world: World) -> None:
    ring = Ring(world.loop, world.clock)
    ring.n_work = 10_000
    ours, theirs = world.pair()
    theirs.send(b"x")
    world.loop.watch(ours.fileno(), lambda _: world.loop.stop())
    world.loop.run()
    assert ring.n_work > 9_900


def test_descriptors_get_their_turn_sooner_where_rings_take_long(world: World) -> None:
    ring = Ring(world.loop, world.clock, step_s=1e-4)
    ring.n_work = 100
    ours, theirs = world.pair()
    world.loop.watch(ours.fileno(), lambda _: world.loop.stop())
    world.loop.schedule(lambda: theirs.send(b"x"))
    world.loop.run()
    assert ring.n_polls <= 4


@pytest.mark.parametrize(("step_s", "n_turns"), [(1e-6, 16), (1e-3, 2)])
def test_between_two_looks_at_descriptors_are_many_short_turns_or_few_long_ones(
    world: World, step_s: float, n_turns: int
) -> None:
    ring = Ring(world.loop, world.clock)
    ring.n_work = 1 << 30
    ours, theirs = world.pair()
    theirs.send(b"x")
    world.loop.watch(ours.fileno(), world.note("look"))

    def turn() -> None:
        world.clock.now_s += step_s
        world.called.append("turn")
        if len(world.called) > 3 * n_turns:
            world.loop.stop()
        world.loop.schedule(turn)

    world.loop.schedule(turn)
    world.loop.run()
    assert world.called[: n_turns + 2] == ["look", *["turn"] * n_turns, "look"]


def test_before_it_sleeps_it_looks_once_more_at_what_came_meanwhile(world: World) -> None:
    ring = Ring(world.loop, world.clock, step_s=1e-5)

    def comes_just_now() -> None:
        if ring.n_arms == 1:
            ring.n_work = 1
        else:
            world.loop.stop()

    ring.on_arm = comes_just_now
    world.loop.run()
    assert ring.n_work == 0


@pytest.fixture
def idle(world: World) -> Ring:
    """A ring without work that rests, beside one that always has some."""
    busy, idle = Ring(world.loop, world.clock), Ring(world.loop, world.clock)
    busy.n_work = 1 << 30
    run_rounds(world.loop, 100)
    assert (idle.n_polls, idle.n_arms, busy.n_arms) == (64, 1, 0)
    return idle


def run_rounds(loop: Loop, n: int) -> None:
    for _ in range(n):
        loop._round()


def test_a_ring_without_work_is_armed_and_left_alone_while_others_are_busy(
    world: World, idle: Ring
) -> None:
    run_rounds(world.loop, 900)
    assert (idle.n_polls, idle.n_arms) == (64, 1)


def test_a_ring_that_rests_is_polled_in_each_round_once_it_is_told_of_work(
    world: World, idle: Ring
) -> None:
    idle.n_work = 3
    for _ in range(2):
        idle.poller.wake()
    run_rounds(world.loop, 10)
    assert (idle.n_work, idle.n_polls) == (0, 74)
    run_rounds(world.loop, 100)
    assert (idle.n_polls, idle.n_arms) == (64 + 3 + 64, 2)


def test_work_that_a_resting_ring_was_not_told_of_is_found_some_rounds_later(
    world: World, idle: Ring
) -> None:
    idle.n_work = 5
    run_rounds(world.loop, 1024)
    assert idle.n_work == 0


def test_work_that_came_while_a_ring_was_armed_keeps_it_awake(world: World) -> None:
    busy, ring = Ring(world.loop, world.clock), Ring(world.loop, world.clock)
    busy.n_work = 1 << 30

    def comes_just_now() -> None:
        ring.n_work = 2

    ring.on_arm = comes_just_now
    run_rounds(world.loop, 66)
    assert (ring.n_work, ring.n_arms) == (0, 1)


def test_whoever_slept_looks_at_all_that_rest(world: World, idle: Ring) -> None:
    idle.n_work = 1
    world.loop._arm()
    world.loop.dispatch()
    assert idle.n_work == 0


def test_a_resting_poller_that_is_closed_can_not_be_woken(world: World, idle: Ring) -> None:
    idle.poller.close()
    idle.poller.wake()
    run_rounds(world.loop, 2000)
    assert idle.n_polls == 64


def test_a_closed_poller_is_not_polled_even_in_the_round_that_closed_it(world: World) -> None:
    first = world.loop.poll(lambda: bool(second.close()), lambda: False)
    second = world.loop.poll(lambda: bool(world.called.append("second")), lambda: False)
    world.loop.dispatch()
    first.close()
    first.close()
    assert world.called == []


# ---- pausing -------------------------------------------------------------------------------------


def test_while_it_is_paused_nobody_is_called_and_then_everybody(world: World) -> None:
    ours, theirs = world.pair()
    watch = world.loop.watch(ours.fileno(), lambda _: (world.note("fd")(), ours.recv(1)))
    late, late_theirs = world.pair()
    world.loop.pause()
    theirs.send(b"x")
    late_theirs.send(b"x")
    world.loop.watch(late.fileno(), lambda _: (world.note("late fd")(), late.recv(1)))
    watch.set(write=True)
    watch.set(write=False)
    world.loop.schedule(world.note("scheduled"))
    world.loop.timer(0, world.note("timer"))
    for _ in range(3):
        world.loop.dispatch()
    assert world.called == []
    world.loop.resume()
    world.settle()
    assert sorted(world.called) == ["fd", "late fd", "scheduled", "timer"]


@pytest.mark.parametrize("how", ["by itself", "embedded"])
def test_while_it_is_paused_with_all_kinds_of_work_it_does_not_spin(world: World, how: str) -> None:
    ours, theirs = world.pair()
    world.loop.watch(ours.fileno(), world.called.append)
    theirs.send(b"x")
    world.loop.schedule(world.note("scheduled"))
    world.loop.timer(0, world.note("timer"))
    ring = Ring(world.loop, world.clock)
    ring.n_work = 1 << 30
    rounds = count_rounds(world.loop)
    if how == "embedded":
        world.loop.fileno()
        world.loop.pause()
        assert world.settle() < 5
    else:
        world.loop.pause()
        threading.Timer(0.02, world.loop.stop).start()
        world.loop.run()
    assert rounds() < 10
    assert world.called == []


def test_a_callback_that_pauses_is_the_last_one_and_nothing_is_lost(world: World) -> None:
    world.loop.schedule(world.loop.pause)
    world.loop.schedule(world.note("scheduled"))
    world.loop.timer(0, world.note("timer"))
    world.loop.dispatch()
    assert world.called == []
    world.loop.resume()
    world.loop.dispatch()
    assert world.called == ["scheduled", "timer"]


def test_a_timer_that_pauses_holds_back_those_of_its_time(world: World) -> None:
    world.loop.timer(0, world.loop.pause)
    world.loop.timer(0, world.note("timer"))
    world.loop.dispatch()
    assert world.called == []
    world.loop.resume()
    world.loop.dispatch()
    assert world.called == ["timer"]


def test_a_descriptor_closed_during_a_pause_hurts_nobody(world: World) -> None:
    gone, _ = world.pair()
    ours, theirs = world.pair()
    world.loop.watch(gone.fileno(), world.called.append)
    world.loop.watch(ours.fileno(), world.note("alive"))
    world.loop.pause()
    gone.close()
    theirs.send(b"x")
    world.loop.resume()
    world.loop.dispatch()
    assert world.called == ["alive"]


def test_pause_returns_when_a_callback_on_another_thread_has_ended() -> None:
    loop = Loop()
    begun, end, ended = threading.Event(), threading.Event(), threading.Event()

    def callback() -> None:
        begun.set()
        end.wait()
        ended.set()

    loop.schedule(callback)
    runner = threading.Thread(target=loop.run)
    runner.start()
    begun.wait()
    threading.Timer(0.01, end.set).start()
    loop.pause()
    assert ended.is_set()
    loop.stop()
    runner.join()
    loop.close()


# ---- inside another loop -------------------------------------------------------------------------


def test_asyncio_drives_descriptors_timers_and_scheduled_calls() -> None:
    loop = Loop()
    ours, theirs = socket.socketpair()
    called: list[str] = []
    n_dispatches = 0

    def dispatch() -> None:
        nonlocal n_dispatches
        n_dispatches += 1
        loop.dispatch()

    async def main() -> None:
        done = asyncio.Event()
        around = asyncio.get_running_loop()
        around.add_reader(loop.fileno(), dispatch)
        loop.watch(ours.fileno(), lambda _: called.append(ours.recv(99).decode()))
        loop.schedule(lambda: called.append("scheduled"))
        loop.timer(0.01, lambda: theirs.send(b"descriptor") and None)
        loop.timer(0.02, lambda: called.append("timer"))
        loop.timer(0.03, lambda: loop.timer(0, lambda: loop.schedule(done.set)))
        await asyncio.wait_for(done.wait(), 10)
        around.remove_reader(loop.fileno())

    asyncio.run(main())
    loop.close()
    ours.close()
    theirs.close()
    assert sorted(called) == ["descriptor", "scheduled", "timer"]
    assert n_dispatches < 20


def test_embedded_pollers_are_driven_while_they_are_busy_and_then_let_it_sleep(
    world: World,
) -> None:
    ring = Ring(world.loop, world.clock)
    ring.n_work = 100
    world.loop.fileno()
    world.loop.dispatch()
    assert 0 < ring.n_work < 100  # others had their turn
    assert world.settle() < 40
    assert ring.n_work == 0
    assert world.idle()


def test_an_embedded_loop_with_nothing_to_do_is_idle(world: World) -> None:
    ours, _ = world.pair()
    world.loop.watch(ours.fileno(), world.called.append)
    world.loop.timer(10, world.note("timer"))
    Ring(world.loop, world.clock)
    assert world.settle() <= 2
    for _ in range(3):
        world.loop.dispatch()
        assert world.idle()


def test_an_embedded_loop_wakes_for_what_comes_from_outside_a_dispatch(world: World) -> None:
    world.settle()
    world.loop.schedule(world.note("scheduled"))
    assert not world.idle()
    world.settle()
    world.loop.timer(0, world.note("timer"))
    assert not world.idle()
    world.settle()
    assert world.called == ["scheduled", "timer"]


def test_dispatch_waits_no_longer_than_it_may(world: World) -> None:
    loop = Loop()
    loop.timer(0.01, world.note("timer"))
    loop.dispatch(10)
    assert world.called == ["timer"]
    loop.dispatch(0.001)
    loop.schedule(world.note("scheduled"))
    loop.dispatch(10)
    assert world.called == ["timer", "scheduled"]
    loop.close()


def test_closing_leaves_no_descriptor_of_the_loops_own_and_all_of_others() -> None:
    before = {path.name for path in Path("/dev/fd").iterdir()}
    loop = Loop()
    loop.fileno()
    ours, theirs = socket.socketpair()
    loop.watch(ours.fileno(), print)
    loop.close()
    loop.close()
    assert ours.fileno() >= 0
    ours.send(b"x")
    ours.close()
    theirs.close()
    assert {path.name for path in Path("/dev/fd").iterdir()} == before
