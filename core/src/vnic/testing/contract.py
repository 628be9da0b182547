"""The contract suite: what every backend owes, as tests for the author of one.

Describe the world behind your backend, and name a class; pytest finds the rest:

    class Behind(Outside):
        plugin = Wire
        name = "wire0"

        def arrive(self, frames): ...
        def departed(self): ...

    class TestWire(BackendContract):
        def make(self, loop):
            return Behind()

Each check is a method of `BackendContract`; its name is the sentence that the backend fails.
"""

# ruff: noqa: D102 - a check's name is its sentence

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from unittest import SkipTest

from vnic.errors import BackendError, ConfigError
from vnic.features import NONE, OFFLOADS, Features, coherent, names
from vnic.loop import Loop
from vnic.testing.bench import (
    Bench,
    Guest,
    compare,
    from_guest,
    n_descriptors,
    owe,
    owe_no_raise,
    pool_of,
    put,
    to_be_cut,
    to_guest,
)
from vnic.testing.outside import Outside

__all__ = ["BackendContract", "Outside"]

_DISCARD_MAX = 1024
"""Frames that one call may throw away: while it does, no other NIC gets its turn."""


class BackendContract:
    """What a backend owes the link.  Subclass it, and give `make`."""

    AT_ONCE_S = 2.0
    """What doesn't return in so long is said to block."""
    DEADLINE_S = 5.0
    """What hasn't come in so long is said to be lost."""

    _bench: Bench | None = None
    _outside: Outside | None = None

    def make(self, loop: Loop) -> Outside:
        """Return the world behind the backend, whose link will be on this loop."""
        raise NotImplementedError

    @classmethod
    def failures(cls) -> dict[str, str]:
        """Run all checks without pytest; return what is wrong by the check's name."""
        failures = {}
        for name, _ in inspect.getmembers(cls, inspect.isfunction):
            if name.startswith("test_"):
                contract = cls()
                try:
                    getattr(contract, name)()
                except SkipTest:
                    continue
                except AssertionError as error:
                    failures[name] = str(error)
                finally:
                    contract.teardown_method()
        return failures

    def teardown_method(self) -> None:
        """What pytest calls after each check."""
        bench, self._bench = self._bench, None
        outside, self._outside = self._outside, None
        if bench is not None:
            bench.close()
        if outside is not None:
            outside.close()

    # ---- opening and closing

    def test_what_cannot_be_opened_is_an_error_of_operator_or_host_and_leaves_nothing(self) -> None:
        bench, outside = self._set_up()
        if not outside.wrong:
            raise SkipTest("the outside names nothing that can't be opened: Outside.wrong")
        self._open()
        bench.link.close()  # what is opened once per process is open now
        before = n_descriptors()
        for name, options in outside.wrong:
            try:
                bench.open(outside.plugin, name, options, outside.open)
            except (ConfigError, BackendError) as error:
                owe(str(error), f"{name}: the error says nothing")
            except Exception as error:
                owe(False, f"{name}: init raised {error!r}, not a ConfigError or BackendError")
            else:
                bench.link.close()
                owe(False, f"{name}: this was opened, and is listed as wrong")
            left = n_descriptors() - before
            owe(left == 0, f"{name}: a failed init left {left} descriptors open")
            bench.settle()

    def test_cleanup_leaves_no_descriptor_open(self) -> None:
        bench, _ = self._open()
        bench.link.close()  # what is opened once per process is open now
        before = n_descriptors()
        self._open()
        bench.link.close()
        left = n_descriptors() - before
        owe(left == 0, f"cleanup left {left} descriptors open")

    def test_cleanup_may_be_called_twice(self) -> None:
        bench, _ = self._open()
        cleanup: Callable[[], None] = bench.watcher.beneath.cleanup
        for _ in range(2):
            owe_no_raise(cleanup, "cleanup, called twice,")
        bench.settle()

    def test_cleanup_may_come_before_init(self) -> None:
        _, outside = self._set_up()
        owe_no_raise(outside.plugin().cleanup, "cleanup, called before init,")

    def test_cleanup_may_come_while_frames_flow(self) -> None:
        bench, outside = self._open()
        guest = bench.guest
        guest.on_frames = bench.link.close
        guest.start()
        outside.arrive(to_guest(2))
        bench.run_until(lambda: guest.frames, "no frame reached the guest")
        guest.on_frames = lambda: None
        said = bench.watcher.n_readable
        bench.settle()
        outside.arrive(to_guest(2, first=2))
        bench.settle()
        owe(bench.watcher.n_readable == said, "after cleanup it still said readable()")
        bench.check()

    def test_after_cleanup_it_can_be_opened_again(self) -> None:
        bench, _ = self._open()
        bench.link.close()
        self._open()
        self._cross(10)

    # ---- frames from the guest

    def test_frames_from_the_guest_leave_whole_and_in_order(self) -> None:
        self._open()
        self._leave(from_guest(50))

    def test_bursts_of_1_to_256_frames_leave(self) -> None:
        self._open()
        first = 0
        for n in (1, 2, 3, 63, 255, 256):
            self._leave(from_guest(n, first=first))
            first += n

    def test_frames_of_every_size_leave(self) -> None:
        _, outside = self._open()
        for size in outside.sizes:
            self._leave(from_guest(2, size))

    def test_send_keeps_no_reference_to_the_burst(self) -> None:
        bench, _ = self._open()
        frames = from_guest(4, 200)
        pool = pool_of(frames)
        owe(bench.link.send(pool.burst) == 4, "4 frames were not taken by a backend that is empty")
        pool.drop(4)
        put(pool, [b"\xee" * 200] * 4)
        self._departed(frames, "after the burst's memory was used again")

    def test_a_short_send_means_full_and_writable_follows(self) -> None:
        bench, outside = self._open()
        guest = bench.guest
        outside.fill()
        frames: list[bytes] = []
        while not guest.n_waiting:
            owe(len(frames) < 100_000, "it took 100,000 frames, and never was full")
            more = from_guest(64, 1000, len(frames))
            frames += more
            bench.at_once(functools.partial(guest.send, more), "send blocks while it is full")
        bench.check()
        bench.settle()
        owe(guest.n_waiting, "it said writable() and took frames while it was full")
        outside.drain()
        what = "after a short send writable() never came, and the rest stayed with the guest"
        bench.run_until(lambda: not guest.n_waiting, what)
        self._departed(frames, "what was sent while it was full")
        n_writable = guest.n_writable
        bench.settle()
        owe(guest.n_writable == n_writable, "it goes on to say writable() when nobody waits")

    def test_what_the_host_refuses_is_dropped_and_counted_and_the_rest_leaves(self) -> None:  # F4
        bench, outside = self._open()
        outside.refuse()
        bench.guest.send(from_guest(3))
        bench.settle()
        bench.check()
        owe(not bench.guest.n_waiting, "frames that are refused for good wait as if it were full")
        n = self._n_dropped()
        owe(n == 3, f"of 3 frames that were refused {n} are counted: link.count(...drop...)")
        outside.accept()
        self._leave(from_guest(3, first=3))

    # ---- frames for the guest

    def test_recv_with_nothing_pending_returns_0_at_once(self) -> None:
        bench, _ = self._open()
        bench.link.recv_enable()
        for _ in range(2):
            n = bench.at_once(bench.guest.receive, "recv blocks when nothing is pending")
            owe(n == 0, f"recv returned {n} with nothing pending")
        bench.check()

    def test_frames_for_the_guest_arrive_whole_and_in_order(self) -> None:
        bench, _ = self._open()
        bench.guest.start()
        self._arrive(to_guest(50))

    def test_frames_of_every_size_arrive(self) -> None:
        bench, outside = self._open()
        bench.guest.start()
        for size in outside.sizes:
            self._arrive(to_guest(2, size))

    def test_readiness_is_a_level(self) -> None:
        bench, outside = self._open()
        bench.guest.start()
        n = min(3 * 256, 3 * outside.holds)
        outside.arrive(to_guest(n))
        what = "what one recv left behind was never announced: call readable() again"
        bench.run_until(lambda: len(bench.guest.frames) >= n, what)
        compare(bench.guest.frames, to_guest(n), "to the guest")

    def test_after_recv_disable_nothing_is_heard_until_recv_enable(self) -> None:  # F6
        bench, outside = self._open()
        guest = bench.guest
        guest.start()
        self._arrive(to_guest(3))
        bench.link.recv_disable()
        heard, said = guest.n_readable, bench.watcher.n_readable
        outside.arrive(to_guest(5, first=3))
        for _ in range(20):
            bench.loop.dispatch()
        owe(guest.n_readable == heard, "after recv_disable the guest heard readable()")
        said = bench.watcher.n_readable - said
        owe(said <= 1, f"after recv_disable it said readable() {said} times for one arrival")
        bench.settle()
        guest.start()
        what = "what came while it was disabled did not arrive after recv_enable"
        bench.run_until(lambda: len(guest.frames) >= 8, what)
        compare(guest.frames, to_guest(8), "to the guest")

    def test_recv_disable_stops_what_is_on_its_way(self) -> None:  # F6
        bench, outside = self._open()
        guest = bench.guest
        guest.start()
        outside.arrive(to_guest(5))
        bench.link.recv_disable()  # the loop has not run since they came
        heard, got = guest.n_readable, len(guest.frames)
        bench.settle()
        owe(guest.n_readable == heard, "after recv_disable the guest heard readable()")
        owe(len(guest.frames) == got, "after recv_disable the guest got frames")
        guest.start()
        bench.wait(lambda: len(guest.frames) >= 5)
        compare(guest.frames, to_guest(5), "to a guest that stopped and went on")

    def test_a_guest_short_of_room_gets_the_rest_later_in_order(self) -> None:
        bench, outside = self._open()
        guest = bench.guest = Guest(bench.link, n_buffers=3)
        guest.holds = True
        guest.start()
        n = min(20, outside.holds)
        outside.arrive(to_guest(n))
        for _ in range(20):
            bench.loop.dispatch(0.001)
        guest.release()
        what = "a guest that had room for 3 frames got no more when it had room again"
        bench.run_until(lambda: len(guest.frames) >= n, what)
        bench.settle()
        compare(guest.frames, to_guest(n), "to a guest with room for 3 frames")

    def test_without_a_receiver_frames_are_thrown_away_bounded_and_counted(self) -> None:
        bench, outside = self._open()
        guest, watcher = bench.guest, bench.watcher
        guest.start()
        bench.link.recv_disable()
        n = min(outside.holds, 4096)
        outside.arrive(to_guest(n))
        for _ in range(20):
            bench.loop.dispatch(0.001)
        watcher.receiving = False
        bench.link.recv_discard()
        counts = bench.link.counts
        what = "frames that nobody receives were not all thrown away and counted"
        bench.run_until(lambda: counts["rx_discarded"] >= n, what)
        bench.settle()
        owe(counts["rx_discarded"] == n, f"of {n} frames {counts['rx_discarded']} were discarded")
        most = max(watcher.discarded)
        owe(most <= _DISCARD_MAX, f"one recv_discard threw away {most} frames: bound it")
        watcher.receiving = True
        guest.start()
        self._arrive(to_guest(1, first=n))

    # ---- the rest

    def test_capabilities_are_virtio_nets_offload_bits(self) -> None:
        bench, _ = self._open()
        get = bench.watcher.beneath.get_capabilities
        if get is None:
            raise SkipTest("it has no get_capabilities: no offload")
        has = get()
        owe(isinstance(has, int), f"get_capabilities returned {has!r}, no Features")
        other = names(Features(int(has) & ~int(OFFLOADS)))
        owe(not int(has) & ~int(OFFLOADS), f"{other}: no offload of a backend")
        alone = Features(has) & ~coherent(Features(has))
        owe(not alone, f"{names(alone)}: without the feature that it needs")

    def test_any_set_of_its_capabilities_may_be_in_force(self) -> None:
        bench, _ = self._open()
        has = bench.link.capabilities
        bench.guest.start()
        sets = {coherent(has & ~bit) for bit in Features if bit in has}
        for features in (NONE, has, *sorted(sets), NONE):
            bench.link.set_features(features)
            owe(bench.link.is_up, f"{names(features)}: {bench.link.reason}")
            self._cross(2)

    def test_a_guest_without_offloads_is_given_none(self) -> None:
        bench, outside = self._open()
        bench.link.set_features(NONE)
        bench.guest.start()
        outside.arrive_offloaded(*to_be_cut())
        bench.run_until(lambda: len(bench.guest.frames) >= 3, "3 segments never came")
        bench.settle()
        owe(len(bench.guest.frames) == 3, f"it became {len(bench.guest.frames)} segments, not 3")
        asked = [header for header in bench.guest.headers if any(header[:10])]
        owe(not asked, "a header asks a guest for what set_capabilities had ruled out")

    def test_it_rests_when_there_is_nothing_to_do(self) -> None:
        bench, _ = self._open()
        bench.settle()
        bench.guest.start()
        bench.settle()
        self._cross(20)
        bench.settle()
        bench.link.recv_disable()
        bench.settle()

    def test_a_network_that_is_gone_takes_the_link_down_and_it_rests(self) -> None:  # F5
        bench, outside = self._open()
        bench.guest.start()
        self._cross(3)
        outside.hang_up()
        what = "the network is gone, and the link still up: link.down(why)"
        bench.run_until(lambda: not bench.link.is_up, what)
        owe(bench.link.reason, "the link went down without a reason: link.down(why)")
        bench.settle()
        n = self._n_dropped()
        bench.guest.send(from_guest(5))
        bench.settle()
        owe(not bench.guest.n_waiting, "frames wait for a network that is gone")
        owe(self._n_dropped() == n + 5, "frames to a network that is gone are not all counted")

    # ---- what they share

    def _n_dropped(self) -> int:
        bench, _ = self._set_up()
        return sum(n for name, n in bench.link.counters().items() if "_drop_" in name)

    def _set_up(self) -> tuple[Bench, Outside]:
        if self._bench is None or self._outside is None:
            self._bench = Bench(self.AT_ONCE_S, self.DEADLINE_S)
            self._outside = self.make(self._bench.loop)
        return self._bench, self._outside

    def _open(self) -> tuple[Bench, Outside]:
        bench, outside = self._set_up()
        bench.open(outside.plugin, outside.name, outside.options, outside.open)
        bench.check()
        return bench, outside

    def _cross(self, n: int) -> None:
        """Have frames cross both ways."""
        bench, _ = self._set_up()
        bench.guest.start()
        self._leave(from_guest(n))
        self._arrive(to_guest(n))

    def _leave(self, frames: list[bytes]) -> None:
        bench, _ = self._set_up()
        bench.guest.send(frames)
        what = "after a short send writable() never came, and the rest stayed with the guest"
        bench.run_until(lambda: not bench.guest.n_waiting, what)
        self._departed(frames, "from the guest")

    def _departed(self, frames: list[bytes], where: str) -> None:
        """Wait until as many frames have left, and compare them."""
        bench, outside = self._set_up()
        got: list[bytes] = []

        def all_left() -> bool:
            got.extend(outside.departed())
            return len(got) >= len(frames)

        bench.wait(all_left)
        compare(got, frames, where)
        bench.check()

    def _arrive(self, frames: list[bytes]) -> None:
        bench, outside = self._set_up()
        got = bench.guest.frames
        got.clear()
        outside.arrive(frames)
        bench.wait(lambda: len(got) >= len(frames))
        compare(got, frames, "to the guest")
        bench.check()
