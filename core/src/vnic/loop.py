"""One epoll loop: descriptors, timers, scheduled calls, and rings that are polled while busy.

It runs by itself (`run`), or inside another loop: `fileno` is readable whenever `dispatch` has
something to do, so asyncio's ``loop.add_reader(vnic_loop.fileno(), vnic_loop.dispatch)`` is all
that embedding takes.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from vnic.timerfd import timerfd_create, timerfd_settime

log = logging.getLogger("vnic.loop")

SPIN_S: Final = 50e-6
"""How long a loop looks on after the last work, at rings and descriptors.  About what it costs to
sleep and be woken: a VMM whose guest waits for a register asks for the next one in that time.
Whoever else wants the core has it meanwhile: mostly it is that VMM.
"""

_ROUNDS_PER_EPOLL: Final = 16
"""While rings are busy, descriptors are looked at every so many rounds: a look costs as much as
twenty frames."""

_BETWEEN_LOOKS_S: Final = 200e-6
"""Or after so much time: a round of many busy rings is long, and who rests is woken by a kick."""

_IDLE_POLLS: Final = 64
"""So often a poller may find nothing, while others find work, before it is armed and rests.  A poll
costs as much as a frame or two: 254 NICs that wait must not all be asked in every round."""

_ROUNDS_OF_REST: Final = 1024
"""At most: what nobody tells of (memory that was taken away is there again) is found by then."""

_EMBEDDED_ROUNDS: Final = 4
"""Rounds of polled work in one `dispatch`, so that an embedding loop gets its turn."""


class Watch:
    """A descriptor that is watched.  Errors and hang-ups are reported whatever is asked for."""

    __slots__ = ("_loop", "_mask", "callback", "fd")

    def __init__(self, loop: Loop, fd: int, callback: Callable[[int], None], mask: int) -> None:
        self._loop: Loop | None = loop
        self.fd = fd
        self.callback = callback
        self._mask = mask

    def set(self, *, read: bool | None = None, write: bool | None = None) -> None:
        """Change what is waited for; None leaves it.  After `close` it does nothing."""
        mask = self._mask
        if read is not None:
            mask = mask | select.EPOLLIN if read else mask & ~select.EPOLLIN
        if write is not None:
            mask = mask | select.EPOLLOUT if write else mask & ~select.EPOLLOUT
        if mask != self._mask and self._loop is not None:
            self._mask = mask
            self._loop._change(self)

    def close(self) -> None:
        """Stop watching; the descriptor stays open.  Twice is allowed."""
        if self._loop is not None:
            self._loop._forget(self)
            self._loop = None


class Timer:
    """A call at a time to come.  Its ``callback`` is None once it came or was cancelled."""

    __slots__ = ("callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], None]) -> None:
        self.deadline = deadline
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """The call will not come.  Twice is allowed, and so is after it came."""
        self.callback = None


class Poller:
    """Something polled while there is work; where it has none for long, it is armed and rests."""

    __slots__ = ("_idle", "_loop", "arm", "poll")

    def __init__(self, loop: Loop, poll: Callable[[], bool], arm: Callable[[], bool]) -> None:
        self._loop = loop
        self._idle = 0  # polls since it last found work, or was woken
        self.poll = poll
        self.arm = arm

    def wake(self) -> None:
        """Poll it in each round again: there is work, or it will not be told of any."""
        self._idle = 0
        loop = self._loop
        if self not in loop._awake and self in loop._pollers:
            loop._awake[self] = None
            loop._wake_if_elsewhere()

    def close(self) -> None:
        """Poll it no more.  Twice is allowed."""
        self._loop._pollers.pop(self, None)
        self._loop._awake.pop(self, None)
        self.poll = self.arm = bool  # False: a round that has begun still comes to it


class Loop:
    """Calls back on one thread at a time, with `lock` held.

    Other threads take the lock for what they do to a NIC, or use `schedule`, which needs none.
    """

    def __init__(
        self, *, spin_s: float = SPIN_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self._spin_s = spin_s
        self._epoll = select.epoll()
        self._watches: dict[int, Watch] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._sequence = itertools.count()
        self._scheduled: OrderedDict[Callable[[], None], None] = OrderedDict()
        self._pollers: dict[Poller, None] = {}
        self._awake: dict[Poller, None] = {}  # those of them that don't rest
        self._n_rounds = 0  # since all of them were polled
        self._stopping = False
        self._paused = False
        self._thread = 0
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._timer_fd = -1
        self._epoll.register(self._wake_fd, select.EPOLLIN)

    # ---- what others register

    def watch(
        self,
        fd: int,
        callback: Callable[[int], None],
        *,
        read: bool = True,
        write: bool = False,
    ) -> Watch:
        """Call back with the mask of ``select.EPOLL*`` events while the descriptor is ready.

        Readiness is a level: a callback that leaves something behind is called again.  The
        descriptor stays the caller's; close the watch before it.
        """
        mask = (select.EPOLLIN if read else 0) | (select.EPOLLOUT if write else 0)
        if not self._paused:
            self._epoll.register(fd, mask)
        watch = self._watches[fd] = Watch(self, fd, callback, mask)
        return watch

    def timer(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call back once, no sooner than in ``delay_s`` seconds."""
        timer = Timer(self.clock() + delay_s, callback)
        heapq.heappush(self._timers, (timer.deadline, next(self._sequence), timer))
        self._wake_if_elsewhere()
        return timer

    def schedule(self, callback: Callable[[], None]) -> None:
        """Call back soon, from the loop: once, however often it is asked for until then."""
        self._scheduled[callback] = None
        self._wake_if_elsewhere()

    def poll(self, poll: Callable[[], bool], arm: Callable[[], bool]) -> Poller:
        """Call ``poll`` round after round while anything is busy; it says whether it found work.

        Where it goes on finding none, and before the loop sleeps, ``arm`` is called: ask to be
        told of work, then look once more, and say whether there is some after all.  If not, the
        poller rests; `Poller.wake` ends that, and belongs wherever the rings are armed no more.
        The loop ends it by itself after each sleep, and every so many rounds.
        """
        poller = Poller(self, poll, arm)
        self._pollers[poller] = self._awake[poller] = None
        return poller

    # ---- running by itself

    def run(self) -> None:
        """Run until `stop`; not at all if that has been called since the last run."""
        self._thread = threading.get_ident()
        last_work = float("-inf")
        try:
            while not self._stopping:
                looked = self._look(0.0)
                if self._round(_ROUNDS_PER_EPOLL) or looked:
                    last_work = self.clock()
                elif self._scheduled and not self._paused:
                    continue
                elif not self._paused and self.clock() - last_work < self._spin_s:
                    os.sched_yield()
                elif not self._arm() and self._look(self._sleep_s()):
                    last_work = self.clock()
        finally:
            self._stopping = False
            self._thread = 0

    def stop(self) -> None:
        """Have `run` return after what it is doing.  From any thread, or a signal handler."""
        self._stopping = True
        self._wake()

    def pause(self) -> None:
        """Call back nobody until `resume`; what becomes ready meanwhile is seen then.

        When it returns, a callback on another thread has ended.
        """
        with self.lock:
            if not self._paused:
                self._paused = True
                # Readiness is a level: what nobody may look at would wake the loop for ever.
                for fd in self._watches:
                    self._unregister(fd)
                self._set_timer_fd()

    def resume(self) -> None:
        """Undo `pause`."""
        with self.lock:
            if self._paused:
                self._paused = False
                for watch in list(self._watches.values()):
                    try:
                        self._epoll.register(watch.fd, watch._mask)
                    except OSError:
                        log.debug("descriptor %d was closed before its watch", watch.fd)
                        watch.close()
        self._wake()

    # ---- inside another loop

    def fileno(self) -> int:
        """Return a descriptor that is readable while `dispatch` has something to do."""
        if self._timer_fd < 0:
            self._timer_fd = timerfd_create()
            self._epoll.register(self._timer_fd, select.EPOLLIN)
            self._set_timer_fd()
            if self._scheduled:
                self._wake()
        return self._epoll.fileno()

    def dispatch(self, timeout_s: float = 0.0) -> None:
        """Do what is ready, and return; wait at most ``timeout_s`` for it.  Never spins."""
        self._thread = threading.get_ident()
        try:
            at_once = self._scheduled and not self._paused
            self._look(0.0 if at_once else min(timeout_s, self._sleep_s(timeout_s)))
            rounds = 1
            while (self._round() or self._arm()) and rounds < _EMBEDDED_ROUNDS:
                rounds += 1
        finally:
            self._thread = 0
        if (rounds == _EMBEDDED_ROUNDS or self._scheduled) and not self._paused:
            self._wake()
        self._set_timer_fd()

    def close(self) -> None:
        """Forget everything that is registered.  Descriptors given to `watch` stay open."""
        for watch in list(self._watches.values()):
            watch.close()
        self._pollers.clear()
        self._awake.clear()
        self._timers.clear()
        self._scheduled.clear()
        if self._timer_fd >= 0:
            os.close(self._timer_fd)
            self._timer_fd = -1
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._wake_fd)
            self._wake_fd = -1

    # ---- one round

    def _look(self, timeout_s: float) -> bool:
        """Wait for descriptors, and call back for those that are ready; whether there were any."""
        events = self._epoll.poll(timeout_s)
        if not events:
            return False
        with self.lock:
            # Whose they are is settled first: a callback may close a descriptor, and the next one
            # be given its number, and then the old one's hang-up would be the new one's.
            ready = [(fd, mask, self._watches.get(fd)) for fd, mask in events]
            for fd, mask, watch in ready:
                if fd == self._wake_fd or fd == self._timer_fd:
                    _drain(fd)
                elif watch is not None and watch._loop is self and not self._paused:
                    try:
                        watch.callback(mask)
                    except Exception:
                        log.exception("descriptor %d: its callback failed; watched no more", fd)
                        watch.close()
        return True

    def _round(self, n_polls: int = 1) -> bool:
        """Run what is scheduled, what is due, and what is polled; whether polling found work.

        While it finds work all is done ``n_polls`` times, for no longer than `_BETWEEN_LOOKS_S`:
        lock and epoll cost as much as several frames.
        """
        with self.lock:
            found, until_s = False, 0.0
            for _ in range(n_polls):
                # One by one, so that another thread may add at any time; what is added runs later.
                for _ in range(len(self._scheduled)):
                    if not self._paused:
                        _call(self._scheduled.popitem(last=False)[0])
                if self._timers and self._timers[0][0] <= (now := self.clock()):
                    self._run_timers(now)
                if self._paused or not self._poll_all():
                    break
                found = True
                now = self.clock()
                until_s = until_s or now + _BETWEEN_LOOKS_S
                if self._stopping or now >= until_s:
                    break
            return found

    def _poll_all(self) -> bool:
        self._n_rounds += 1
        if self._n_rounds > _ROUNDS_OF_REST:
            self._n_rounds = 0
            self._awake.update(self._pollers)
        busy = False
        for poller in tuple(self._awake):
            try:
                found = poller.poll()
            except Exception:
                log.exception("%s failed; polled no more", _name(poller.poll))
                poller.close()
                continue
            if found:
                busy, poller._idle = True, 0
            else:
                poller._idle += 1
                if poller._idle >= _IDLE_POLLS:
                    self._rest(poller)
        return busy

    def _rest(self, poller: Poller) -> bool:
        """Arm a poller, and let it rest if it has no work after all; whether it has."""
        try:
            found = poller.arm()
        except Exception:
            log.exception("%s failed; polled no more", _name(poller.arm))
            poller.close()
            return False
        if found:
            poller.wake()
        else:
            self._awake.pop(poller, None)
        return found

    def _run_timers(self, now: float) -> None:
        due = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers))
        for entry in due:
            if self._paused:
                heapq.heappush(self._timers, entry)
                continue
            timer = entry[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                _call(callback)

    def _arm(self) -> bool:
        with self.lock:
            if self._paused:
                return False
            found = False
            for poller in tuple(self._awake):
                found = self._rest(poller) or found
            self._n_rounds = _ROUNDS_OF_REST  # whoever slept asks all of them
            return found or bool(self._scheduled)

    def _sleep_s(self, otherwise: float = -1.0) -> float:
        """Seconds to the next timer; ``otherwise``, by default for ever, without one."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers or self._paused:
            return otherwise
        return max(0.0, self._timers[0][0] - self.clock())

    def _wake_if_elsewhere(self) -> None:
        """The loop's own thread will see it before it sleeps; any other has to wake it."""
        if self._thread != threading.get_ident() and (self._thread or self._timer_fd >= 0):
            self._wake()

    def _wake(self) -> None:
        if self._wake_fd >= 0:
            os.eventfd_write(self._wake_fd, 1)

    def _set_timer_fd(self) -> None:
        if self._timer_fd >= 0:
            delay_s = self._sleep_s()
            timerfd_settime(self._timer_fd, None if delay_s < 0 else delay_s)

    def _change(self, watch: Watch) -> None:
        if self._watches.get(watch.fd) is watch and not self._paused:
            try:
                self._epoll.modify(watch.fd, watch._mask)
            except OSError:
                log.debug("descriptor %d was closed before its watch", watch.fd)

    def _forget(self, watch: Watch) -> None:
        if self._watches.get(watch.fd) is watch:
            del self._watches[watch.fd]
            if not self._paused:
                self._unregister(watch.fd)

    def _unregister(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except (OSError, ValueError):
            # Closed before its watch: the kernel has forgotten it already.
            log.debug("descriptor %d was closed before its watch", fd)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        log.exception("%s failed", _name(callback))


def _name(callback: Callable[[], object]) -> object:
    return getattr(callback, "__qualname__", callback)


def _drain(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 8)
