"""Pipes: ``x{1`` and ``x}1`` are the two ends of pipe 1 of port x.

The buffers themselves go from one end to the other, and come back when they were read: a pipe that
is not read is full, and nothing is lost.
"""

from __future__ import annotations

from typing import Final

from vnic_netmap.testing.ports import Port, Shape
from vnic_netmap.testing.rings import MOREFRAG, Kring

RINGS_MAX: Final = 256
SLOTS_MAX: Final = 4096


class PipeEnd(Port):
    """One end of a pipe.  What it sends is in the rings of its peer at the same slots."""

    peer: PipeEnd

    def __init__(self, parent: Port, name: str, shape: Shape) -> None:
        super().__init__(name, parent.memory, shape)
        self._parent = parent.get()
        self._tails: dict[Kring, int] = {}
        """How far the peer has got with each ring: where its tail can be."""

    def join(self, peer: PipeEnd) -> None:
        """Make two ends a pipe."""
        self.peer, peer.peer = peer, self

    def end(self) -> None:
        """Nobody has this end: the pipe goes, unless somebody has the other."""
        if self.peer.n_holders == 0:
            for pipe_end in (self, self.peer):
                super(PipeEnd, pipe_end).end()
                pipe_end._parent.put()

    def make_rings(self) -> None:
        """Lay out the rings of both ends; this end's begin with the buffers."""
        if self.peer.n_bound:
            return
        for pipe_end in (self, self.peer):
            super(PipeEnd, pipe_end).make_rings()
            for ring in (*pipe_end.tx, *pipe_end.rx):
                ring.create(self.memory, empty=pipe_end is self.peer)
                pipe_end._tails[ring] = ring.hwtail
        for ring in (*self.tx, *self.rx):
            other = self._opposite(ring)
            for i in range(ring.n_slots):
                other.set_slot(i, *ring.slot(i))

    def drop_rings(self) -> None:
        """Free the rings of both ends, if the peer isn't open any more either."""
        if self.peer.n_bound:
            return
        for pipe_end in (self, self.peer):
            for ring in (*pipe_end.tx, *pipe_end.rx):
                ring.delete()
            pipe_end._tails.clear()
            super(PipeEnd, pipe_end).drop_rings()

    def release(self, ring: Kring) -> None:
        """A ring stays as long as the pipe is open at either end."""

    def _opposite(self, ring: Kring) -> Kring:
        return (self.peer.rx if ring.is_tx else self.peer.tx)[ring.index]

    def reach(self, ring: Kring) -> int:
        """Return where the peer lets the tail be."""
        return self._tails[ring]

    def txsync(self, ring: Kring) -> None:
        """Show the peer what was sent; a frame whose end is missing waits for it."""
        other = self._opposite(ring)
        ring.hwtail = self._tails[ring]
        complete = None
        for i in ring.released():
            slot = ring.slot(i)
            other.set_slot(i, *slot)
            ring.clear_changed(i)
            if not slot[2] & MOREFRAG:
                complete = ring.next(i)
        ring.hwcur = ring.rhead
        if complete is not None:
            self.peer._tails[other] = complete
            other.notify()

    def rxsync(self, ring: Kring) -> None:
        """Give the peer the buffers back that were read."""
        other = self._opposite(ring)
        ring.hwtail = self._tails[ring]
        if ring.hwcur == ring.rhead:
            return
        for i in ring.released():
            other.set_slot(i, *ring.slot(i))
            ring.clear_changed(i)
        ring.hwcur = ring.rhead
        self.peer._tails[other] = other.prev(ring.hwcur)
        other.notify()
