"""The joint: what one backend or filter is given to speak upwards with, and its descriptors.

A backend or filter is somebody's code, and so is the frontend: what one of them raises while it is
called from here takes the link down that it belongs to, and hurts nobody who called.
"""

from __future__ import annotations

import functools
import select
from collections.abc import Callable
from typing import TYPE_CHECKING

from vnic.loop import Loop, Timer, Watch

if TYPE_CHECKING:
    from vnic.link import Link
    from vnic.registry import Hooks


class JointWatch:
    """A descriptor that a backend watches.

    Readable means `Joint.readable`, and is not waited for while the guest has no room.  Writable
    means `Joint.writable`, unless the backend has something to finish first.
    """

    def __init__(
        self,
        joint: Joint,
        fd: int,
        read: bool,
        write: bool,
        error: Callable[[], None] | None,
        writable: Callable[[], None] | None,
    ) -> None:
        self._joint = joint
        self._read = read
        self._write = write
        self._error = error
        self._writable = writable
        self._watch: Watch = joint.loop.watch(
            fd, self._ready, read=read and joint._link._may_read, write=write
        )

    def set(self, *, read: bool | None = None, write: bool | None = None) -> None:
        """Change what is waited for; None leaves it."""
        self._read = self._read if read is None else read
        self._write = self._write if write is None else write
        self._refresh()

    def close(self) -> None:
        """Stop watching; the descriptor stays open.  Twice is allowed."""
        self._watch.close()
        self._joint._watches.discard(self)

    def _refresh(self) -> None:
        """Wait for what the guest has room for now."""
        self._watch.set(read=self._read and self._joint._link._may_read, write=self._write)

    def _ready(self, events: int) -> None:
        joint = self._joint
        if events & (select.EPOLLHUP | select.EPOLLERR):
            # Reported as long as it lasts, asked for or not: whoever does not end it spins.
            if self._error is not None:
                joint._guard("a watch's error callback", self._error)
            else:
                joint.down("its descriptor reports an error or was hung up")
            if self in joint._watches and not joint._link.is_up:
                self.close()
            return
        if events & select.EPOLLOUT:
            # Once: whoever finds it full again asks again.
            self.set(write=False)
            if self._writable is not None:
                joint._guard("a watch's writable callback", self._writable)
            else:
                joint.writable()
        if events & select.EPOLLIN and self in joint._watches:
            joint.readable()


class Joint:
    """What one backend or filter is given to speak upwards with.

    A filter has the one beneath it as `beneath` (its hooks, bound), and may set
    `beneath_readable` and `beneath_writable`; without that they are passed on upwards.
    """

    def __init__(self, link: Link, beneath: Hooks | None) -> None:
        self.name = link.name
        self.loop: Loop = link.loop
        self.beneath = beneath
        self.beneath_readable: Callable[[], None] = self.readable
        self.beneath_writable: Callable[[], None] = self.writable
        # The rest is between this and the link, as is all with an underscore here and there.
        self._link = link
        self._above: Joint | None = None
        self._watches: set[JointWatch] = set()
        self._timers: set[Timer] = set()

    def readable(self) -> None:
        """There is something for ``recv``.  It may be called before this returns."""
        if self._above is not None:
            self._above._guard("beneath_readable", self._above.beneath_readable)
        else:
            self._link._readable()

    def writable(self) -> None:
        """After a short ``send``: there is room again."""
        if self._above is not None:
            self._above._guard("beneath_writable", self._above.beneath_writable)
        else:
            self._link._writable()

    def watch(
        self,
        fd: int,
        read: bool = True,
        write: bool = False,
        error: Callable[[], None] | None = None,
        writable: Callable[[], None] | None = None,
    ) -> JointWatch:
        """Watch a descriptor: readable calls `readable`; writable, once per asking, `writable`.

        An error or a hang-up calls ``error``; without one it takes the link down.  A link that
        is down after that has no such watch any more: make another when there is what to watch.
        ``writable`` is called in place of the joint's own: by who holds a part of a frame to be
        sent first.
        """
        watch = JointWatch(self, fd, read, write, error, writable)
        self._watches.add(watch)
        return watch

    def timer(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call back once, on the loop.  Timers end with the link."""
        self._timers = {timer for timer in self._timers if timer.callback is not None}
        timer = self.loop.timer(delay_s, functools.partial(self._guard, "a timer", callback))
        self._timers.add(timer)
        return timer

    def up(self) -> None:
        """The host network is there (again)."""
        self._link._set_up(True)

    def down(self, reason: str) -> None:
        """The host network is gone: the guest's carrier goes, frames are dropped and counted."""
        self._link._set_up(False, reason)

    def count(self, name: str, n: int = 1) -> None:
        """Raise a counter of the link."""
        self._link.counts[name] += n

    # ---- what the link calls

    def _guard(self, what: str, callback: Callable[[], None]) -> None:
        """Call it; what it raises takes the link down."""
        try:
            callback()
        except Exception as error:
            self._link._broke(what, error)

    def _refresh(self) -> None:
        """The guest's room came or went."""
        for watch in self._watches:
            watch._refresh()

    def _close(self) -> None:
        """End all watches and timers."""
        for watch in list(self._watches):
            watch.close()
        for timer in self._timers:
            timer.cancel()
