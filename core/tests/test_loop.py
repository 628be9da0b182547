"""Whom the loop calls, in which order, and that nobody's error is anybody else's."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator

import pytest
from kit.loops import LoopBench as World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def fail(*_: object) -> None:
    raise RuntimeError("on purpose")


# ---- descriptors ---------------------------------------------------------------------------------


def test_a_readable_descriptor_is_called_back_for_as_long_as_it_is(world: World) -> None:
    ours, theirs = world.pair()
    world.loop.watch(ours.fileno(), world.called.append)
    world.loop.dispatch()
    assert world.called == []
    theirs.send(b"x")
    world.loop.dispatch()
    world.loop.dispatch()
    assert world.called == [select.EPOLLIN] * 2
    ours.recv(1)
    world.loop.dispatch()
    assert len(world.called) == 2


def test_what_is_waited_for_can_change(world: World) -> None:
    ours, theirs = world.pair()
    theirs.send(b"x")
    watch = world.loop.watch(ours.fileno(), world.called.append, read=False)
    world.loop.dispatch()
    assert world.called == []
    watch.set(write=True)
    world.loop.dispatch()
    watch.set(read=True)
    world.loop.dispatch()
    watch.set(read=False, write=False)
    world.loop.dispatch()
    assert world.called == [select.EPOLLOUT, select.EPOLLIN | select.EPOLLOUT]


def test_a_hang_up_is_reported_whatever_is_waited_for(world: World) -> None:
    ours, theirs = world.pair()
    world.loop.watch(ours.fileno(), world.called.append, read=False)
    theirs.close()
    world.loop.dispatch()
    assert world.called == [select.EPOLLHUP]


def test_a_closed_watch_is_not_called_and_closing_twice_is_allowed(world: World) -> None:
    ours, theirs = world.pair()
    watch = world.loop.watch(ours.fileno(), world.called.append)
    theirs.send(b"x")
    watch.close()
    watch.close()
    watch.set(write=True)
    world.loop.dispatch()
    assert world.called == []
    assert world.idle()


def test_a_watch_that_another_callback_closes_is_not_called(world: World) -> None:
    ends = [world.pair() for _ in range(2)]
    watches = [
        world.loop.watch(
            ours.fileno(),
            lambda _, other=1 - i: (world.called.append(other), watches[other].close()),
        )
        for i, (ours, _) in enumerate(ends)
    ]
    for _, theirs in ends:
        theirs.send(b"x")
    world.loop.dispatch()
    assert len(world.called) == 1


def test_an_event_of_a_closed_descriptor_is_not_for_the_next_one_of_its_number(
    world: World,
) -> None:
    first, second = world.pair(), world.pair()
    watches = {}

    def replace(me: int) -> Callable[[int], None]:
        def callback(_: int) -> None:
            """Close the other, and have a new descriptor take its number."""
            other = 1 - me
            watches[other].close()
            ours = (first, second)[other][0]
            number = ours.fileno()
            quiet, _ = world.pair()
            ours.close()
            assert os.dup(quiet.fileno()) == number
            numbers.append(number)
            world.loop.watch(number, world.note("the new one"))

        return callback

    numbers: list[int] = []
    for i, (ours, theirs) in enumerate((first, second)):
        watches[i] = world.loop.watch(ours.fileno(), replace(i))
        theirs.close()
    world.loop.dispatch()
    assert len(numbers) == 1
    assert world.called == []
    os.close(numbers[0])


def test_a_descriptor_closed_before_its_watch_hurts_nobody(world: World) -> None:
    ours, _ = world.pair()
    other, theirs = world.pair()
    watch = world.loop.watch(ours.fileno(), world.note("closed"))
    world.loop.watch(other.fileno(), world.note("other"))
    ours.close()
    watch.set(write=True)
    theirs.send(b"x")
    world.loop.dispatch()
    watch.close()
    assert world.called == ["other"]


def test_a_number_that_is_used_again_can_be_watched_before_the_old_watch_is_closed(
    world: World,
) -> None:
    ours, _ = world.pair()
    old = world.loop.watch(ours.fileno(), world.note("old"))
    number = ours.fileno()
    new, theirs = world.pair()
    ours.close()
    assert os.dup(new.fileno()) == number
    world.loop.watch(number, world.note("new"))
    old.set(write=True)
    old.close()
    theirs.send(b"x")
    world.loop.dispatch()
    assert world.called == ["new"]
    os.close(number)


# ---- timers and scheduled calls ------------------------------------------------------------------


def test_timers_come_in_the_order_of_their_times_and_not_before(world: World) -> None:
    for delay_s in (0.3, 0.1, 0.2):
        world.loop.timer(delay_s, world.note(delay_s))
    world.clock.now_s += 0.05
    world.loop.dispatch()
    assert world.called == []
    world.clock.now_s += 0.16
    world.loop.dispatch()
    assert world.called == [0.1, 0.2]
    world.clock.now_s += 1
    world.loop.dispatch()
    assert world.called == [0.1, 0.2, 0.3]


def test_timers_of_the_same_time_come_in_the_order_they_were_asked_for(world: World) -> None:
    for i in range(5):
        world.loop.timer(1, world.note(i))
    world.clock.now_s += 1
    world.loop.dispatch()
    assert world.called == [0, 1, 2, 3, 4]


def test_a_cancelled_timer_does_not_come_even_if_it_is_due(world: World) -> None:
    later = world.loop.timer(0, world.note("later"))
    first = world.loop.timer(0, lambda: second.cancel())
    second = world.loop.timer(0, world.note("second"))
    later.cancel()
    later.cancel()
    world.loop.dispatch()
    assert world.called == []
    assert first.callback is None
    first.cancel()


def test_a_timer_that_asks_for_another_at_once_lets_others_have_their_turn(world: World) -> None:
    def again() -> None:
        world.called.append("timer")
        world.loop.timer(0, again)

    again()
    world.loop.schedule(world.note("scheduled"))
    world.loop.dispatch()
    world.loop.dispatch()
    assert world.called == ["timer", "scheduled", "timer", "timer"]


def test_a_scheduled_call_comes_once_however_often_it_was_asked_for(world: World) -> None:
    note = world.note("call")
    for _ in range(3):
        world.loop.schedule(note)
    world.loop.dispatch()
    world.loop.dispatch()
    assert world.called == ["call"]


def test_what_a_scheduled_call_schedules_comes_a_round_later(world: World) -> None:
    n_polls = 0

    def poll() -> bool:
        nonlocal n_polls
        n_polls += 1
        return False

    world.loop.poll(poll, lambda: False)
    world.loop.schedule(lambda: world.loop.schedule(lambda: world.called.append(n_polls)))
    world.loop.dispatch()
    assert world.called == [1]


def test_calls_scheduled_from_many_threads_all_come(world: World) -> None:
    n_each, n_threads = 2000, 4

    def work(thread: int) -> None:
        for i in range(n_each):
            world.loop.schedule(world.note((thread, i)))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(n_threads)]
    world.loop.fileno()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) or not world.idle():
        world.loop.dispatch(0.01)
    for thread in threads:
        assert [i for t, i in world.called if t == threads.index(thread)] == list(range(n_each))


# ---- errors --------------------------------------------------------------------------------------


def test_an_error_in_a_callback_is_logged_and_hurts_nobody_else(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = world.pair(), world.pair()
    world.loop.watch(bad[0].fileno(), fail)
    world.loop.watch(good[0].fileno(), world.note("descriptor"))
    for _, theirs in (bad, good):
        theirs.send(b"x")
    world.loop.schedule(fail)
    world.loop.schedule(world.note("scheduled"))
    world.loop.timer(0, lambda: fail())
    world.loop.timer(0, world.note("timer"))
    world.loop.dispatch()
    assert world.called == ["descriptor", "scheduled", "timer"]
    assert len(caplog.records) == 3
    assert all(record.exc_info for record in caplog.records)


def test_a_descriptor_whose_callback_fails_is_watched_no_more(world: World) -> None:
    ours, theirs = world.pair()
    world.loop.watch(ours.fileno(), fail)
    theirs.send(b"x")
    world.loop.dispatch()
    world.settle()


@pytest.mark.parametrize("where", ["poll", "arm"])
def test_a_poller_that_fails_is_polled_no_more_and_others_are(
    world: World, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    def poll() -> bool:
        world.called.append("good")
        return False

    failing = {"poll": lambda: False, "arm": lambda: False} | {where: fail}
    world.loop.poll(**failing)  # type: ignore[arg-type]
    world.loop.poll(poll, lambda: False)
    for _ in range(3):
        world.loop.dispatch()
    assert world.called == ["good"] * 3
    assert [record.getMessage() for record in caplog.records] == ["fail failed; polled no more"]
