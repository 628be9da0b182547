"""A patch: two backends joined, what one receives is what the other sends.

It is how a switch gets an uplink: ``Patch("vale0:up", "tap0", loop)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vnic.burst import Burst, Room
from vnic.config import structure
from vnic.features import GUEST_OFFLOADS, HOST_OFFLOADS, NONE, Features
from vnic.link import Link
from vnic.loop import Loop
from vnic.pool_kernel import Pool
from vnic.registry import Registry

if TYPE_CHECKING:
    from typing_extensions import Buffer

_PAIRS = (
    (Features.GUEST_CSUM, Features.CSUM),
    (Features.GUEST_TSO4, Features.HOST_TSO4),
    (Features.GUEST_TSO6, Features.HOST_TSO6),
    (Features.GUEST_ECN, Features.HOST_ECN),
    (Features.GUEST_USO4 | Features.GUEST_USO6, Features.HOST_USO),
)


class Side:
    """One of the two: a link, and what moves its frames to the other.

    It is the room that its own backend is given, so it has a room's verbs.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self.full = False
        self._busy = False

    def join(self, other: Side) -> None:
        """Let frames flow to the other side."""
        self._other = other
        crosses = _what_crosses(self.link.capabilities, other.link.capabilities)
        self._as_it_is = crosses == GUEST_OFFLOADS
        self._pool = Pool(int(crosses))
        self._room = Room(self._pool.capsule, self._pool)
        self.link.set_features(
            crosses & self.link.capabilities
            | _what_crosses(other.link.capabilities, self.link.capabilities, HOST_OFFLOADS)
        )
        self.link.on_readable = self.readable
        self.link.on_writable = self.writable
        self.link.recv_enable()

    # ---- what the link calls

    def readable(self) -> None:
        """Move what this side's backend has to the other's."""
        if self._busy:
            return  # the other side's send came back to us: patches in a loop
        self._busy = True
        try:
            if self._flush():
                self.link.recv(self)  # type: ignore[arg-type]  # a room by its verbs
            else:
                self.link.recv_disable()
        finally:
            self._busy = False

    def writable(self) -> None:
        """This side's backend has room again: go on with what the other holds for it."""
        self._other.link.recv_enable()
        self.link.loop.schedule(self._other.readable)

    # ---- a room's verbs

    def put(self, burst: Burst, start: int = 0) -> int:
        """Send frames to the other side; return how many it took, or wait here in a copy."""
        if not self._flush():
            return 0  # in order: what waits here goes first
        n = len(burst) - start
        if self._as_it_is:
            taken = self._other.link.send(burst if start == 0 else burst.rest(start))
            self.full = taken < n
            return taken
        taken = 0
        while taken < n:  # cut into segments, a burst may fill the pool many times
            self._room.open()
            took = self._room.put(burst, start + taken)
            self._room.close()
            taken += took
            if not self._flush() or took == 0:
                break
        return taken

    def put_frame(self, buffer: Buffer, header: Buffer | None = None) -> bool:
        """Send one frame to the other side; whether it took it."""
        return self.put(Burst.of([buffer], [header])) == 1

    def readv(self, fd: int, limit: int = 256, header: bool = True) -> tuple[int, int]:
        """Read frames from a descriptor and send them to the other side.

        What it can't take now waits here.  Returns ``(consumed, error)`` as `Room.readv` does.
        """
        if not self._flush():
            return 0, 0
        self._room.open()
        n, error = self._room.readv(fd, limit, header)
        self._room.close()
        self._flush()
        return n, error

    def counters(self) -> dict[str, int]:
        """Return the link's counters, and what became of frames on their way to the other side."""
        counts = self.link.counters()
        for name, n in self._room.counters.items():
            if n and name not in ("rx_frames", "rx_bytes"):  # it has not got anywhere yet
                counts[name] = counts.get(name, 0) + n
        return counts

    def _flush(self) -> bool:
        """Send what waits here; whether nothing is left.  If not, this side is full."""
        burst = self._pool.burst
        while len(burst) or self._room.waiting:
            if not len(burst):
                # A frame that was to be cut found no room in the pool; now there is.
                self._room.open()
                self._room.readv(-1, 0)
                self._room.close()
            self._pool.drop(self._other.link.send(burst))
            if len(burst):
                break
        self.full = len(burst) > 0
        return not self.full


class Patch:
    """Two backends, joined until `close`."""

    def __init__(self, a: str, b: str, loop: Loop, registry: Registry | None = None) -> None:
        """Open both, and let frames flow.

        Raises: ConfigError or BackendError, with nothing left open.
        """
        registry = registry or Registry()
        self.name = f"{a}-{b}"
        self.sides = (Side(Link(a, loop)), Side(Link(b, loop)))
        first, second = self.sides
        try:
            for side in self.sides:
                _open(side.link, registry)
            first.join(second)
            second.join(first)
        except BaseException:
            self.close()
            raise

    def counters(self) -> Mapping[str, int]:
        """Return both sides' counters, by backend and name."""
        return {
            f"{side.link.name} {name}": n
            for side in self.sides
            for name, n in side.counters().items()
        }

    def close(self) -> None:
        """Close both.  Twice is allowed."""
        for side in self.sides:
            side.link.close()


def _open(link: Link, registry: Registry) -> None:
    backend = registry.load("backends", link.name)
    (options,) = structure({}, link.name, getattr(backend.cls, "Options", None))
    link.open([(backend.cls(), link.name, options)])


def _what_crosses(source: Features, target: Features, bits: Features = GUEST_OFFLOADS) -> Features:
    """Return the offloads of frames from source to target that need nothing done to them.

    As GUEST_* bits, what a receiver takes; or as HOST_* bits, what a sender may ask for.
    """
    crosses = NONE
    for guest, host in _PAIRS:
        if host in target and (bits is GUEST_OFFLOADS or guest & source):
            crosses |= guest | host
    return crosses & bits
