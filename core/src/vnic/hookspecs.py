"""Everything that a plugin author implements, on one screen.

A backend or a filter is a class whose methods carry ``@hookimpl`` and match `BackendHooks`; a
frontend's match `FrontendHooks`.  (Core's own ``null`` and ``loop``, in `vnic.backends`, are two
backends to begin with.)  The class stands behind an entry point (``vnic.backends``,
``vnic.filters``, ``vnic.frontends``) whose name is its prefix; one instance is made per link or
NIC, with no arguments.  A class may have an ``Options`` attribute, an attrs class whose fields are
its options and whose converters read them from text.

A server (``vnic.servers``) is a plain class that follows `Server`.  It is a `Host`, as is any
application that embeds a NIC, and drives the frontend through one of its faces.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import attrs
import pluggy

if TYPE_CHECKING:
    from vnic.burst import Burst, Room
    from vnic.features import Features
    from vnic.link import Joint, Link
    from vnic.loop import Loop
    from vnic.memory import Memory
    from vnic.nic import Nic

hookspec: Final = pluggy.HookspecMarker("vnic")
hookimpl: Final = pluggy.HookimplMarker("vnic")
"""Marks the methods of a plugin that answer a hook."""


class BackendHooks:
    """The host network behind a NIC.  ``send`` is from the guest, ``recv`` is to the guest."""

    @hookspec(firstresult=True)
    def init(self, name: str, options: Any, link: Joint) -> None:
        """Open what the name says (``tap0``, ``vale0:1``).

        Raises: ConfigError or BackendError, with nothing left open.
        """

    @hookspec(firstresult=True)
    def cleanup(self) -> None:
        """Close.  May be called twice, while frames flow, and after a failed ``init``."""

    @hookspec(firstresult=True)
    def send(self, burst: Burst) -> int:
        """Take frames from the guest, oldest first; return how many were taken.

        Taken means sent, or dropped and counted.  Fewer than ``len(burst)`` means *full*, and
        only that: the rest stays in the guest's ring, and is offered again after
        ``link.writable()``.  Never blocks, and keeps no reference to the burst.
        """

    @hookspec(firstresult=True)
    def recv(self, room: Room) -> int:
        """Offer what is pending to the guest's room; return how many frames were consumed.

        Nothing pending: 0, at once.  ``room.full`` tells afterwards whether the room ran out.
        """

    @hookspec(firstresult=True)
    def recv_discard(self) -> int:
        """Throw pending frames away, a bounded number; return how many.

        Optional: without it the link gives ``recv`` a room that keeps nothing.
        """

    @hookspec(firstresult=True)
    def recv_enable(self) -> None:
        """The guest wants frames (again).  Optional: the link watches the descriptors again."""

    @hookspec(firstresult=True)
    def recv_disable(self) -> None:
        """The guest can take no more.  Optional: the link stops watching, and ``readable()``
        reaches nobody until ``recv_enable``.
        """

    @hookspec(firstresult=True)
    def get_capabilities(self) -> Features:
        """Return what it can do: HOST_* accepted in ``send``, GUEST_* produced in ``recv``.

        Optional: none.
        """

    @hookspec(firstresult=True)
    def set_capabilities(self, features: Features) -> None:
        """Take the exact set in force from the next burst on.  Optional.

        HOST_*: what ``send`` may meet.  GUEST_*: all that ``recv`` may offer.
        """


class ResetKind(Enum):
    """Why a frontend is reset; all end with the state of a device just powered on."""

    DEVICE = "device"
    """The driver or the VMM asked for it."""
    SESSION = "session"
    """The VMM has gone; memory and interrupts are gone with it."""


class FrontendHooks:
    """The NIC that a guest's driver sees.  Besides these it has ``faces``."""

    @hookspec(firstresult=True)
    def init(self, options: Any, link: Link, host: Host) -> None:
        """Build the device, at rest.

        Raises: ConfigError.
        """

    @hookspec(firstresult=True)
    def cleanup(self) -> None:
        """Forget the guest.  May be called twice."""

    @hookspec(firstresult=True)
    def reset(self, kind: ResetKind) -> None:
        """Return to the state after ``init``.  No guest memory is touched from then on."""

    @hookspec(firstresult=True)
    def transmit(self) -> None:
        """Take bursts from the ring, give them to ``link.send``, complete what was taken.

        Called by the loop, after a kick and when a full backend has room; bounded work.
        """

    @hookspec(firstresult=True)
    def receive(self) -> None:
        """Open a room over what the guest has posted, and give it to ``link.recv``.

        Called when the link is readable, also from within another NIC's ``transmit``: it starts
        no transmission, and raises at most one interrupt.
        """

    @hookspec(firstresult=True)
    def link_changed(self, up: bool) -> None:
        """The carrier came or went: tell the guest, where the face can."""


# ---- faces: how a host drives a frontend ---------------------------------------------------------
#
# A frontend has attributes named after its faces: ``vhost``, a `VhostFace`, which may be the
# frontend itself; and ``pci``, a `vnic.pci.Function` that it builds in ``init`` and resets in
# ``reset``.


@attrs.frozen(kw_only=True)
class QueueAddresses:
    """Where a split virtqueue lies.  Spec: Virtio 1.3, "Split Virtqueues"."""

    size: int
    """Entries: a power of two, at most 32768."""
    desc_gpa: int
    avail_gpa: int
    used_gpa: int
    base: int = 0
    """The first avail index to take; the used index starts there as well."""


@runtime_checkable
class VhostFace(Protocol):
    """A virtio device as vhost sees it: features, queues, configuration space.

    Queues are given by index: 0 receives (to the guest), 1 transmits.  All calls come on the
    loop, or with its lock.
    """

    n_queues: int

    def get_features(self) -> Features:
        """Return what the device offers, its link's offloads included."""

    def set_features(self, features: Features) -> None:
        """Take the driver's choice.

        Raises: PeerError, for a bit that was not offered.
        """

    def start_queue(self, index: int, queue: QueueAddresses, interrupt: Callable[[], None]) -> None:
        """Begin to serve a queue.  ``interrupt`` is called after a burst, at most once for it.

        Raises: PeerError, for addresses outside memory, misaligned, or a size that can't be.
        """

    def stop_queue(self, index: int) -> int:
        """Stop it at once and return the avail index where it may go on.  Twice is allowed."""

    def enable_queue(self, index: int, enabled: bool) -> None:
        """A queue that is started and not enabled takes no frames: transmit drains to nowhere."""

    def kick(self, index: int) -> None:
        """The driver has made buffers available.  Only schedules."""

    def read_config(self, offset: int, n: int) -> bytes:
        """Read ``struct virtio_net_config``; bytes beyond its end are zero."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Write to it; what is read-only stays as it is."""


class Host(Protocol):
    """What gives a frontend memory and takes its interrupts: a server, or an application."""

    memory: Memory
    loop: Loop

    def interrupt(self, vector: int) -> None:
        """Raise a message-signalled interrupt."""

    def set_irq(self, level: bool) -> None:
        """Set the level of the pin."""

    def schedule(self, callback: Callable[[], None]) -> None:
        """Have the callback called soon, on the loop, once however often it was asked for."""

    def failed(self, reason: str) -> None:
        """The guest's driver broke the device: it has stopped, until it is reset."""


class Server(Protocol):
    """Shows one frontend to a VMM.  ``Server(options, loop)``; it is a `Host`.

    `vnic.server` has all of one on a UNIX socket but what is said there.
    """

    def serve(self, nic: Nic) -> None:
        """Take the face that it speaks, and begin to listen or connect.

        Raises: ConfigError, when the frontend has no such face; BackendError, when the socket
        can't be had.
        """

    def close(self) -> None:
        """End the session, remove what was made.  Twice is allowed."""
