"""One epoll loop: descriptors, timers, scheduled calls, and rings that are polled while busy.

It runs by itself (`run`), or inside another loop: `fileno` is readable whenever `dispatch` has
something to do, so asyncio's ``loop.add_reader(vnic_loop.fileno(), vnic_loop.dispatch)`` is all
that embedding takes.
"""

from __future__ import annotations

import ctypes
import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger("vnic.loop")

SPIN_S: Final = 50e-6
"""How long a loop polls on after the last work.  About what it costs to sleep and be woken."""

_ROUNDS_PER_EPOLL: Final = 16
"""While rings are busy, descriptors are looked at every so many rounds: a look costs as much as
twenty frames, and sixteen rounds are at most some hundred microseconds."""

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
            self._loop._epoll.modify(self.fd, mask)

    def close(self) -> None:
        """Stop watching; the descriptor stays open.  Twice is allowed."""
        if self._loop is not None:
            self._loop._forget(self)
            self._loop = None


class Timer:
    """A call at a time to come."""

    __slots__ = ("callback", "deadline")

    def __init__(self, deadline: float, callback: Callable[[], None]) -> None:
        self.deadline = deadline
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """The call will not come.  Twice is allowed, and after it came."""
        self.callback = None


class Poller:
    """Something polled while there is work, and armed before the loop sleeps."""

    __slots__ = ("_loop", "arm", "poll")

    def __init__(self, loop: Loop, poll: Callable[[], bool], arm: Callable[[], bool]) -> None:
        self._loop = loop
        self.poll = poll
        self.arm = arm

    def close(self) -> None:
        """Poll it no more.  Twice is allowed."""
        self._loop._pollers = tuple(p for p in self._loop._pollers if p is not self)


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
        self._scheduled: dict[Callable[[], None], None] = {}
        self._pollers: tuple[Poller, ...] = ()
        self._running = False
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

        Before the loop sleeps it calls ``arm``: ask to be woken, then look once more, and say
        whether there is work after all.
        """
        poller = Poller(self, poll, arm)
        self._pollers = (*self._pollers, poller)
        return poller

    # ---- running by itself

    def run(self) -> None:
        """Run until `stop`."""
        self._running = True
        self._thread = threading.get_ident()
        last_work = self.clock()
        countdown = 0
        while self._running:
            if countdown == 0:
                countdown = _ROUNDS_PER_EPOLL
                self._look(0.0)
            countdown -= 1
            if self._round():
                last_work = self.clock()
            elif self._scheduled or (
                self._pollers and self.clock() - last_work < self._spin_s and not self._paused
            ):
                countdown = 0
            elif not self._arm():
                self._look(self._sleep_s())
                countdown = _ROUNDS_PER_EPOLL
                last_work = self.clock()
        self._thread = 0

    def stop(self) -> None:
        """Have `run` return after what it is doing.  From any thread, or a signal handler."""
        self._running = False
        os.eventfd_write(self._wake_fd, 1)

    def pause(self) -> None:
        """Call back nobody until `resume`; what becomes ready meanwhile is seen then."""
        self._paused = True

    def resume(self) -> None:
        """Undo `pause`."""
        self._paused = False
        os.eventfd_write(self._wake_fd, 1)

    # ---- inside another loop

    def fileno(self) -> int:
        """Return a descriptor that is readable while `dispatch` has something to do."""
        if self._timer_fd < 0:
            self._timer_fd = _timerfd_create()
            self._epoll.register(self._timer_fd, select.EPOLLIN)
            self._set_timer_fd()
            if self._scheduled:
                os.eventfd_write(self._wake_fd, 1)
        return self._epoll.fileno()

    def dispatch(self, timeout_s: float = 0.0) -> None:
        """Do what is ready, and return; wait at most ``timeout_s`` for it.  Never spins."""
        self._thread = threading.get_ident()
        self._look(0.0 if self._scheduled else min(timeout_s, self._sleep_s(timeout_s)))
        rounds = 1
        while (self._round() or self._arm()) and rounds < _EMBEDDED_ROUNDS:
            rounds += 1
        self._thread = 0
        if rounds == _EMBEDDED_ROUNDS or self._scheduled:
            os.eventfd_write(self._wake_fd, 1)
        self._set_timer_fd()

    def close(self) -> None:
        """Forget everything that is registered.  Descriptors given to `watch` stay open."""
        for watch in list(self._watches.values()):
            watch.close()
        self._pollers = ()
        self._timers.clear()
        self._scheduled.clear()
        if self._timer_fd >= 0:
            os.close(self._timer_fd)
            self._timer_fd = -1
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._wake_fd)

    # ---- one round

    def _look(self, timeout_s: float) -> None:
        """Wait for descriptors, and call back for those that are ready."""
        events = self._epoll.poll(timeout_s)
        if not events:
            return
        with self.lock:
            for fd, mask in events:
                if fd == self._wake_fd or fd == self._timer_fd:
                    _drain(fd)
                elif not self._paused and (watch := self._watches.get(fd)) is not None:
                    try:
                        watch.callback(mask)
                    except Exception:
                        log.exception("descriptor %d: its callback failed; watched no more", fd)
                        watch.close()

    def _round(self) -> bool:
        """Run what is scheduled, what is due, and what is polled; whether polling found work."""
        if self._paused:
            return False
        with self.lock:
            if self._scheduled:
                scheduled, self._scheduled = self._scheduled, {}
                for callback in scheduled:
                    _call(callback)
            if self._timers and self._timers[0][0] <= (now := self.clock()):
                while self._timers and self._timers[0][0] <= now:
                    timer = heapq.heappop(self._timers)[2]
                    if timer.callback is not None:
                        _call(timer.callback)
            busy = False
            for poller in self._pollers:
                if poller.poll():
                    busy = True
            return busy

    def _arm(self) -> bool:
        if self._paused:
            return False
        with self.lock:
            found = False
            for poller in self._pollers:
                if poller.arm():
                    found = True
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
            os.eventfd_write(self._wake_fd, 1)

    def _set_timer_fd(self) -> None:
        if self._timer_fd >= 0:
            delay_s = self._sleep_s()
            _timerfd_settime(self._timer_fd, None if delay_s < 0 else delay_s)

    def _forget(self, watch: Watch) -> None:
        if self._watches.get(watch.fd) is watch:
            del self._watches[watch.fd]
            try:
                self._epoll.unregister(watch.fd)
            except (OSError, ValueError):
                # Closed before its watch: the kernel has forgotten it already.
                log.debug("descriptor %d was closed before its watch", watch.fd)


def _call(callback: Callable[[], None]) -> None:
    try:
        callback()
    except Exception:
        log.exception("%s failed", getattr(callback, "__qualname__", callback))


def _drain(fd: int) -> None:
    try:
        os.read(fd, 8)
    except BlockingIOError:
        return


# ---- timerfd, which os has from Python 3.13 on ---------------------------------------------------


class _Itimerspec(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")
    )


_libc = ctypes.CDLL(None, use_errno=True)
_TFD_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC


def _timerfd_create() -> int:
    fd = int(_libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return fd


def _timerfd_settime(fd: int, delay_s: float | None) -> None:
    """Make it readable in ``delay_s`` seconds; None: never."""
    delay_ns = 0 if delay_s is None else max(1, int(delay_s * 1e9))
    spec = _Itimerspec(0, 0, delay_ns // 10**9, delay_ns % 10**9)
    _libc.timerfd_settime(fd, 0, ctypes.byref(spec), None)
