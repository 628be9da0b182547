"""The link: one frontend's connection, its filters and its backend.

A frontend sees one object with bhyve's verbs.  Beneath it stands a stack: filters, in the order
given, and the backend at the bottom.  Each of them is given a `Joint`, by which it speaks upwards.
The hooks of the stack are resolved once, when it changes; the datapath calls bound functions.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final

import attrs

from vnic.burst import Burst, Room
from vnic.drain import Drain
from vnic.errors import BackendError
from vnic.features import HOST_OFFLOADS, NONE, OFFLOADS, Features, asked_by, coherent
from vnic.hookspecs import BackendHooks
from vnic.joint import Joint, JointWatch
from vnic.link_kernel import COUNTERS as CUTTER_COUNTERS
from vnic.link_kernel import Cutter
from vnic.loop import Loop
from vnic.registry import Hooks, resolve_hooks

__all__ = ["Joint", "JointWatch", "Layer", "Link", "Receiving"]

log = logging.getLogger("vnic.link")


class Receiving(Enum):
    """What the frontend wants of frames for the guest."""

    ON = "on"
    """Deliver them."""
    PAUSED = "paused"
    """The guest has posted no room: leave them where they are."""
    OFF = "off"
    """There is no receiver: throw them away."""


_ON, _PAUSED, _OFF = Receiving
"""Under names of their own: looking a member up in its class costs as much as a frame."""


@attrs.frozen
class Layer:
    """One backend or filter in the stack."""

    hooks: Hooks
    joint: Joint


_LANES_MAX: Final = 16
"""Bursts of plain frames that one call of `Link.send` may make of frames to be cut: with segments
of a byte a guest's burst comes to 16 million, and meanwhile no other NIC would get its turn."""


COUNTERS = {
    "tx_full": "times frames waited in the guest's ring, because the backend or its turn was full",
    "tx_drop_link_down": "frames from the guest while there was no host network",
    "tx_drop_error": "frames of bursts during which the backend failed",
    "tx_drop_partly": "frames whose first segments were sent, when the guest's device was reset",
    "rx_discarded": "frames for the guest thrown away while it had no receiver",
    **CUTTER_COUNTERS,
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
        self._receiving = _OFF
        self._send: Callable[[Burst], int] = _take_all
        self._stack_send: Callable[[Burst], int] = _take_all
        self._cutter = Cutter()
        self._recv: Callable[[Room], int] = _has_none
        self._enables: tuple[Callable[[], None], ...] = ()
        self._disables: tuple[Callable[[], None], ...] = ()
        self._drain = Drain()
        self._taking = False  # a recv or recv_discard is under way
        self._broken = False
        self._told_up = True

    # ---- the stack

    def open(self, layers: Sequence[tuple[Any, str, Any]]) -> None:
        """Build the stack: (instance, name, options) each, filters first, the backend last.

        Raises: ConfigError or BackendError, with nothing left open.
        """
        self.is_up, self.reason, self._broken = True, "", False
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
            self._send = self._stack_send = beneath.send
            self._recv = beneath.recv
            self._cutter.reset()
        hooks_of_all = [layer.hooks for layer in self._layers]
        self._enables = tuple(h.recv_enable for h in hooks_of_all if h.recv_enable)
        self._disables = tuple(h.recv_disable for h in hooks_of_all if h.recv_disable)
        self.set_features(NONE)

    def close(self) -> None:
        """Close the stack, top first.  Twice is allowed."""
        layers, self._layers = self._layers, ()
        self._send, self._recv = _take_all, _has_none
        self._stack_send = _take_all
        self._enables = self._disables = ()
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
                try:
                    return Features(layer.hooks.get_capabilities() & OFFLOADS)
                except Exception as error:
                    self._broke("get_capabilities", error)
                    return NONE
        return NONE

    @property
    def offers(self) -> Features:
        """The offloads that a frontend may offer its driver.

        All HOST_*, since the link does what the stack lacks; GUEST_* as the stack has them.
        """
        return coherent(self.capabilities | HOST_OFFLOADS)

    def set_features(self, features: Features) -> None:
        """Tell the stack the exact offloads in force from the next burst on."""
        has = self.capabilities
        lacking = asked_by(Features(HOST_OFFLOADS & ~has))
        self._cutter.lack(int(lacking))
        self._send = self._send_cut if lacking else self._stack_send
        features = coherent(features & has)
        for layer in self._layers:
            if layer.hooks.set_capabilities is not None:
                try:
                    layer.hooks.set_capabilities(features)
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
            if not 0 <= taken <= n:
                raise ValueError(f"it took {taken} frames of {n}")
        except Exception as error:
            self._broke("send", error)
            self.counts["tx_drop_error"] += n
            return n
        if taken < n:
            self.counts["tx_full"] += 1
        return taken

    def _send_cut(self, burst: Burst) -> int:
        """Send through a stack that lacks an offload: as plain frames, where one asks for it."""
        cutter, send = self._cutter, self._stack_send
        if not cutter.wanted(burst):
            return send(burst)
        n, done = len(burst), 0
        for _ in range(_LANES_MAX):
            offered = cutter.fill(burst, done)
            taken = send(cutter.lane) if offered else 0
            if not 0 <= taken <= offered:
                raise ValueError(f"it took {taken} frames of {offered}")
            done += cutter.taken(taken)
            if done == n or taken < offered:
                return done
        self.loop.schedule(self._writable)
        return done

    def send_reset(self) -> None:
        """What a short `send` has left with the frontend will not be offered again."""
        if self._cutter.reset():
            self.counts["tx_drop_partly"] += 1

    def recv(self, room: Room) -> int:
        """Have the stack deliver what is pending; return how many frames were consumed.

        Where the room ran out the backend is paused, until `recv_enable`.
        """
        if self._receiving is not _ON or not self.is_up or self._taking:
            return 0
        self._taking = True
        try:
            n = self._recv(room)
        except Exception as error:
            self._broke("recv", error)
            return 0
        finally:
            self._taking = False
        if room.full:
            self.recv_disable()
        return n

    def recv_enable(self) -> None:
        """The guest has room: deliver from now on.

        What is waiting already may not be announced again: follow it with a `recv`.
        """
        if self._receiving is not _ON:
            self._set_receiving(_ON)
            self._tell("recv_enable", self._enables)

    def recv_disable(self) -> None:
        """The guest has no room: after this returns, nothing is heard of frames for it."""
        if self._receiving is not _PAUSED:
            self._set_receiving(_PAUSED)
            self._tell("recv_disable", self._disables)

    def recv_discard(self) -> None:
        """There is no receiver: from now on what comes for it is thrown away and counted.

        What is waiting already goes first: none of it is for whoever receives next.
        """
        if self._receiving is _OFF:
            return
        was_paused = self._receiving is _PAUSED
        self._set_receiving(_OFF)
        if was_paused:
            self._tell("recv_enable", self._enables)
        self._readable()

    @property
    def receiving(self) -> Receiving:
        """What becomes of frames for the guest now."""
        return self._receiving

    def counters(self) -> dict[str, int]:
        """Return the link's counters, the backend's own among them."""
        return dict(self.counts) | {name: n for name, n in self._cutter.counters.items() if n}

    # ---- what comes from the stack

    @property
    def _may_read(self) -> bool:
        return self._receiving is not _PAUSED

    def _readable(self) -> None:
        if not self._layers:
            return
        if self._taking:
            # Said from within recv, of what that leaves behind; heard when it is over.
            self.loop.schedule(self._readable)
        elif self._receiving is _OFF or not self.is_up:
            self._discard()
        elif self._receiving is _ON:
            try:
                self.on_readable()
            except Exception as error:
                self._broke("the frontend's receive", error)

    def _writable(self) -> None:
        if not self._layers:
            return
        try:
            self.on_writable()
        except Exception as error:
            self._broke("the frontend's transmit", error)

    def _discard(self) -> None:
        """Throw away a bounded number of pending frames.  A level brings it back for more."""
        if self._recv is _has_none:
            return  # it is being opened, or closed
        discard, drain = self._layers[0].hooks.recv_discard, self._drain
        self._taking = True
        try:
            if discard is not None:
                n = discard()
            else:
                drain.open()
                n = self._recv(drain)  # type: ignore[arg-type]  # a room by its verbs
                if drain.full:
                    self.loop.schedule(self._readable)
            if n:
                self.counts["rx_discarded"] += n
        except Exception as error:
            self._broke("recv_discard", error)
        finally:
            self._taking = False

    def _tell(self, what: str, hooks: tuple[Callable[[], None], ...]) -> None:
        """Call a hook of all layers, until one of them brings about another state."""
        receiving = self._receiving
        for hook in hooks:
            if self._receiving is receiving:
                try:
                    hook()
                except Exception as error:
                    self._broke(what, error)

    def _set_receiving(self, receiving: Receiving) -> None:
        self._receiving = receiving
        for layer in self._layers:
            layer.joint._refresh()

    def _set_up(self, up: bool, reason: str = "") -> None:
        if up == self.is_up or self._broken:
            return
        self.is_up = up
        self.reason = reason
        if up:
            log.info("%s: link up", self.name)
        else:
            log.warning("%s: link down: %s", self.name, reason)
        self.loop.schedule(self._tell_carrier)

    def _tell_carrier(self) -> None:
        """Tell the frontend, from the loop: it was perhaps in the middle of a burst before."""
        if self.is_up != self._told_up:
            self._told_up = self.is_up
            self.on_changed(self.is_up)
        if not self.is_up:
            # What waits on either side is dropped and counted, not kept for ever.
            self._readable()
            self._writable()

    def _broke(self, what: str, error: Exception) -> None:
        """A plugin is somebody's code: when it raises, the link goes down and the NIC lives.

        For good: only `open` makes a new start.
        """
        if self._broken:
            log.debug("%s: %s failed again", self.name, what, exc_info=error)
            return
        if not isinstance(error, BackendError):
            log.error("%s: %s failed", self.name, what, exc_info=error)
        for layer in self._layers:
            layer.joint._close()
        reason = f"{what}: {error}" if str(error) else f"{what}: {error!r}"
        self._set_up(False, reason)
        self.reason, self._broken = reason, True


def _nothing() -> None:
    return


def _ignore(up: bool) -> None:
    return


def _take_all(burst: Burst) -> int:
    return len(burst)


def _has_none(room: Room) -> int:
    return 0
