"""The link: one frontend's connection, its filters and its backend.

A frontend sees one object with bhyve's verbs.  Beneath it stands a stack: filters, in the order
given, and the backend at the bottom.  Each of them is given a `Joint`, by which it speaks upwards.
The hooks of the stack are resolved once, when it changes; the datapath calls bound functions.
"""

from __future__ import annotations

import logging
import select
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import attrs

from vnic.burst import Burst, Room
from vnic.errors import BackendError
from vnic.features import NONE, OFFLOADS, Features
from vnic.hookspecs import BackendHooks
from vnic.loop import Loop, Timer, Watch
from vnic.registry import Hooks, resolve_hooks

log = logging.getLogger("vnic.link")

_DISCARD_MAX = 256
"""Frames thrown away per call, where a backend has no verb of its own for it."""


class Receiving(Enum):
    """What the frontend wants of frames for the guest."""

    ON = "on"
    """Deliver them."""
    PAUSED = "paused"
    """The guest has posted no room: leave them where they are."""
    OFF = "off"
    """There is no receiver: throw them away."""


class JointWatch:
    """A descriptor that a backend watches.

    Readable means `Joint.readable`, and is not waited for while the guest has no room.  Writable
    means `Joint.writable`.
    """

    def __init__(
        self, joint: Joint, fd: int, read: bool, write: bool, error: Callable[[], None] | None
    ) -> None:
        self._joint = joint
        self._read = read
        self._write = write
        self._error = error
        self._watch: Watch = joint.loop.watch(
            fd, self._ready, read=read and joint._may_read(), write=write
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
        self._watch.set(read=self._read and self._joint._may_read(), write=self._write)

    def _ready(self, events: int) -> None:
        if events & (select.EPOLLHUP | select.EPOLLERR):
            # Reported as long as it lasts, asked for or not: whoever does not end it spins.
            if self._error is not None:
                self._error()
            else:
                self._joint.down("its descriptor reports an error or was hung up")
            if self in self._joint._watches and not self._joint._link.is_up:
                self.close()
            return
        if events & select.EPOLLOUT:
            # Once: whoever finds it full again asks again.
            self.set(write=False)
            self._joint.writable()
        if events & select.EPOLLIN:
            self._joint.readable()


class Joint:
    """What one backend or filter is given to speak upwards with.

    A filter has the one beneath it as `beneath` (its hooks, bound), and may set
    `beneath_readable` and `beneath_writable`; without that they are passed on upwards.
    """

    def __init__(self, link: Link, beneath: Hooks | None) -> None:
        self._link = link
        self._above: Joint | None = None
        self._watches: set[JointWatch] = set()
        self._timers: set[Timer] = set()
        self.name = link.name
        self.loop: Loop = link.loop
        self.beneath = beneath
        self.beneath_readable: Callable[[], None] = self.readable
        self.beneath_writable: Callable[[], None] = self.writable

    def readable(self) -> None:
        """There is something for ``recv``.  It may be called before this returns."""
        if self._above is not None:
            self._above.beneath_readable()
        else:
            self._link._readable()

    def writable(self) -> None:
        """After a short ``send``: there is room again."""
        if self._above is not None:
            self._above.beneath_writable()
        else:
            self._link._writable()

    def watch(
        self,
        fd: int,
        read: bool = True,
        write: bool = False,
        error: Callable[[], None] | None = None,
    ) -> JointWatch:
        """Watch a descriptor: readable calls `readable`; writable, once per asking, `writable`.

        An error or a hang-up calls ``error``; without one it takes the link down.
        """
        watch = JointWatch(self, fd, read, write, error)
        self._watches.add(watch)
        return watch

    def timer(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call back once, on the loop.  Timers end with the link."""
        self._timers = {timer for timer in self._timers if timer.callback is not None}
        timer = self.loop.timer(delay_s, callback)
        self._timers.add(timer)
        return timer

    def up(self) -> None:
        """The host network is there (again)."""
        self._link._set_up(True, "")

    def down(self, reason: str) -> None:
        """The host network is gone: the guest's carrier goes, frames are dropped and counted.

        Not from within ``send`` or ``recv``, where the frontend is in the middle of a burst: raise
        there.
        """
        self._link._set_up(False, reason)

    def count(self, name: str, n: int = 1) -> None:
        """Raise a counter of the link."""
        self._link.counts[name] += n

    def _may_read(self) -> bool:
        return self._link._receiving is not Receiving.PAUSED

    def _refresh(self) -> None:
        for watch in self._watches:
            watch._refresh()

    def _close(self) -> None:
        for watch in list(self._watches):
            watch.close()
        for timer in self._timers:
            timer.cancel()


@attrs.frozen
class Layer:
    """One backend or filter in the stack."""

    hooks: Hooks
    joint: Joint


COUNTERS = {
    "tx_frames": "frames that the backend took from the guest",
    "tx_bytes": "bytes of those, without virtio-net headers",
    "tx_full": "times the backend was full and frames waited in the guest's ring",
    "tx_drop_link_down": "frames from the guest while there was no host network",
    "tx_drop_error": "frames of bursts during which the backend failed",
    "rx_discarded": "frames for the guest thrown away while it had no receiver",
}


class Link:
    """All that a frontend sees of the host network."""

    def __init__(self, name: str, loop: Loop) -> None:
        self.name = name
        self.loop = loop
        self.is_up = True
        self.reason = ""
        """Why the link is down."""
        self.counts: Counter[str] = Counter()
        self.on_readable: Callable[[], None] = _nothing
        self.on_writable: Callable[[], None] = _nothing
        self.on_changed: Callable[[bool], None] = _ignore
        self._layers: tuple[Layer, ...] = ()
        self._receiving = Receiving.OFF
        self._send: Callable[[Burst], int] = _take_all
        self._recv: Callable[[Room], int] = _has_none
        self._drain = Room()
        self._draining = False

    # ---- the stack

    def open(self, layers: Sequence[tuple[Any, str, Any]]) -> None:
        """Build the stack: (instance, name, options) each, filters first, the backend last.

        Raises: ConfigError or BackendError, with nothing left open.
        """
        beneath: Hooks | None = None
        lower: Joint | None = None
        try:
            for instance, name, options in reversed(layers):
                hooks = resolve_hooks(instance, BackendHooks)
                joint = Joint(self, beneath)
                self._layers = (Layer(hooks, joint), *self._layers)
                hooks.init(name, options, joint)
                if lower is not None:
                    lower._above = joint
                beneath, lower = hooks, joint
        except BaseException:
            self.close()
            raise
        if beneath is not None:
            self._send = beneath.send
            self._recv = beneath.recv
        self.set_features(NONE)

    def close(self) -> None:
        """Close the stack, top first.  Twice is allowed."""
        layers, self._layers = self._layers, ()
        self._send, self._recv = _take_all, _has_none
        for layer in layers:
            try:
                layer.hooks.cleanup()
            except Exception:
                log.exception("%s: cleanup failed", self.name)
            layer.joint._close()

    # ---- what a frontend calls

    @property
    def capabilities(self) -> Features:
        """The offloads that the stack has: HOST_* it accepts, GUEST_* it may produce."""
        for layer in self._layers:
            if layer.hooks.get_capabilities is not None:
                return Features(layer.hooks.get_capabilities() & OFFLOADS)
        return NONE

    def set_features(self, features: Features) -> None:
        """Tell the stack the exact offloads in force from the next burst on."""
        for layer in self._layers:
            if layer.hooks.set_capabilities is not None:
                try:
                    layer.hooks.set_capabilities(features & OFFLOADS)
                except Exception as error:
                    self._broke("set_capabilities", error)
                    return

    def send(self, burst: Burst) -> int:
        """Give frames to the host network; return how many were taken.

        Fewer than there are: it is full, and `on_writable` comes when it no longer is.
        """
        n = len(burst)
        if not self.is_up:
            self.counts["tx_drop_link_down"] += n
            return n
        try:
            taken = self._send(burst)
        except Exception as error:
            self._broke("send", error)
            self.counts["tx_drop_error"] += n
            return n
        if taken < n:
            self.counts["tx_full"] += 1
        return taken

    def recv(self, room: Room) -> int:
        """Have the stack deliver what is pending; return how many frames were consumed.

        Where the room ran out the backend is paused, until `recv_enable`.
        """
        if self._receiving is not Receiving.ON:
            return 0
        try:
            n = self._recv(room)
        except Exception as error:
            self._broke("recv", error)
            return 0
        if room.full:
            self.recv_disable()
        return n

    def recv_enable(self) -> None:
        """The guest has room: deliver from now on, at once what is waiting already."""
        if self._receiving is not Receiving.ON:
            self._set_receiving(Receiving.ON)
            for layer in self._layers:
                if layer.hooks.recv_enable is not None:
                    layer.hooks.recv_enable()

    def recv_disable(self) -> None:
        """The guest has no room: after this returns, nothing is heard of frames for it."""
        if self._receiving is not Receiving.PAUSED:
            self._set_receiving(Receiving.PAUSED)
            for layer in self._layers:
                if layer.hooks.recv_disable is not None:
                    layer.hooks.recv_disable()

    def recv_discard(self) -> None:
        """There is no receiver: from now on what comes for it is thrown away and counted."""
        if self._receiving is Receiving.OFF:
            return
        was_paused = self._receiving is Receiving.PAUSED
        self._set_receiving(Receiving.OFF)
        if was_paused:
            for layer in self._layers:
                if layer.hooks.recv_enable is not None:
                    layer.hooks.recv_enable()

    @property
    def receiving(self) -> Receiving:
        """What becomes of frames for the guest now."""
        return self._receiving

    def counters(self) -> dict[str, int]:
        """Return the link's counters, the backend's own among them."""
        return dict(self.counts)

    # ---- what comes from the stack

    def _readable(self) -> None:
        if self._receiving is Receiving.ON and self.is_up:
            self.on_readable()
        elif self._receiving is Receiving.OFF or not self.is_up:
            self._discard()

    def _writable(self) -> None:
        self.on_writable()

    def _discard(self) -> None:
        """Throw away a bounded number of pending frames.  A level brings it back for more."""
        if self._draining or not self._layers:
            return
        self._draining = True
        try:
            discard = self._layers[0].hooks.recv_discard
            n = discard() if discard is not None else self._recv(self._drain)
            self.counts["rx_discarded"] += n
        except Exception as error:
            self._broke("recv_discard", error)
        finally:
            self._draining = False

    def _set_receiving(self, receiving: Receiving) -> None:
        self._receiving = receiving
        for layer in self._layers:
            layer.joint._refresh()

    def _set_up(self, up: bool, reason: str) -> None:
        if up == self.is_up:
            return
        self.is_up = up
        self.reason = reason
        if up:
            log.info("%s: link up", self.name)
        else:
            log.warning("%s: link down: %s", self.name, reason)
        self.on_changed(up)
        if not up:
            self.on_writable()  # what waited for room is dropped and counted, not kept for ever

    def _broke(self, hook: str, error: Exception) -> None:
        """A backend is somebody's code: when it raises, the link goes down and the NIC lives."""
        if not isinstance(error, BackendError):
            log.error("%s: the backend failed in %s", self.name, hook, exc_info=error)
        for layer in self._layers:
            layer.joint._close()
        self._set_up(False, f"{hook}: {error}" if str(error) else f"{hook}: {error!r}")


def _nothing() -> None:
    return


def _ignore(up: bool) -> None:
    return


def _take_all(burst: Burst) -> int:
    return len(burst)


def _has_none(room: Room) -> int:
    return 0
