"""NICs without netmap support of their own, as the module emulates it, and the wire behind them.

A test makes a NIC, and holds what is at its other sides: the wire, and the host's network stack.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Sequence
from typing import Final

from vnic_netmap.testing import headers
from vnic_netmap.testing.memory import BUF_SIZE, Memory
from vnic_netmap.testing.ports import Port, Shape, refuse
from vnic_netmap.testing.rings import Kring
from vnic_netmap.testing.vale import MFS, Frame, Member, Switch

MIN_LEN: Final = 14
"""Of a frame for the host: shorter ones are lost."""


class Nic(Port):
    """An interface of the host, netmap's or not, and its port."""

    def __init__(self, name: str, memory: Memory, shape: Shape, *, mtu: int) -> None:
        super().__init__(name, memory, shape)
        self.mtu = mtu
        self.to_wire: deque[bytes] = deque()
        """Frames that left."""
        self.to_host: deque[bytes] = deque()
        """Frames that the host's network stack got."""
        self.stalled = False
        """Whether the wire takes nothing: then frames stay in the ring."""
        self._own_memory = memory
        self._pending: dict[Kring, deque[bytes]] = {}
        self._bridged: list[BridgedNic] = []
        """While a switch has it: what stands for the wire there, and for the host."""

    # ---- the test's side -------------------------------------------------------------------------

    def from_wire(self, frame: bytes, ring: int = 0) -> None:
        """A frame arrives.  Netmap gets it, or else the host."""
        if self._bridged:
            self._bridged[0].forward(frame)
        elif self._is_bound(self.rx, n := ring % self.shape.rx_rings):
            self._queue(self.rx[n], frame)
        else:
            self.to_host.append(frame)

    def from_host(self, frame: bytes) -> None:
        """The host sends a frame.  Netmap gets it, or else the wire."""
        n = self.shape.rx_rings
        if len(self._bridged) > 1:
            self._bridged[1].forward(frame)
        elif self._is_bound(self.rx, n):
            self._queue(self.rx[n], frame)
        else:
            self.to_wire.append(frame)

    def resume(self) -> None:
        """Have the wire take frames again."""
        self.stalled = False
        for ring in self.tx:
            if ring.users:
                ring.notify()

    @staticmethod
    def _is_bound(rings: Sequence[Kring], n: int) -> bool:
        return n < len(rings) and bool(rings[n].users)

    def _queue(self, ring: Kring, frame: bytes) -> None:
        pending = self._pending.setdefault(ring, deque())
        if len(frame) <= BUF_SIZE and len(pending) <= ring.n_slots:
            pending.append(frame)
            ring.notify()

    # ---- at a switch -----------------------------------------------------------------------------

    @property
    def is_attached(self) -> bool:
        """Whether a switch has it."""
        return bool(self._bridged)

    def attach(self, name: str, switch: Switch, *, with_host: bool) -> None:
        """Be at a switch: the wire, and the host if it is to be."""
        sides = [self.to_wire, self.to_host] if with_host else [self.to_wire]
        for to in sides:
            self._bridged.append(BridgedNic(name, switch, switch.members.index(None), to))
            name = f"{self.name}^"

    def leave(self) -> None:
        """Leave the switch, if it is at one."""
        for bridged in self._bridged:
            bridged.leave()
        self._bridged.clear()

    # ---- the module's side -----------------------------------------------------------------------

    def use(self, memory: Memory) -> None:
        """Have other memory while it is open: that of the port which it passes buffers on to."""
        if self.n_bound == 0:
            self.memory = memory.get()

    def check(self, *, receives: bool) -> None:
        """Raises: OSError, EINVAL: a frame might not fit into a buffer."""
        if receives and self.mtu > BUF_SIZE:
            refuse(errno.EINVAL)

    def drop_rings(self) -> None:
        """Closed by the last: frames that nobody read are lost."""
        super().drop_rings()
        self._pending.clear()
        if self.memory is not self._own_memory:
            self.memory.put()
            self.memory = self._own_memory

    def txsync(self, ring: Kring) -> None:
        """Send each slot, as a frame of its own, whatever its flags say."""
        if ring.index >= self.shape.tx_rings:
            self._send_up(ring)
        elif self.stalled:
            return
        else:
            self.to_wire += _frames(ring)
        ring.hwcur = ring.rhead
        ring.hwtail = ring.prev(ring.hwcur)

    def _send_up(self, ring: Kring) -> None:
        self.to_host += [frame for frame in _frames(ring) if len(frame) >= MIN_LEN]

    def rxsync(self, ring: Kring) -> None:
        """Take back slots, and fill those that are free."""
        for i in ring.released():
            ring.clear_changed(i)
        ring.hwcur = ring.rhead
        pending = self._pending.get(ring, ())
        while pending and ring.n_free:
            ring.fill(ring.hwtail, pending.popleft(), 0)
            ring.hwtail = ring.next(ring.hwtail)

    def reach(self, ring: Kring) -> int:
        """Return how far the frames that wait would get, and what was sent would make room."""
        if ring.is_tx:
            is_stuck = self.stalled and ring.index < self.shape.tx_rings
            return ring.hwtail if is_stuck else ring.prev(ring.rhead)
        n = min(len(self._pending.get(ring, ())), ring.n_free)
        return (ring.hwtail + n) % ring.n_slots


def _frames(ring: Kring) -> list[bytes]:
    """Return what is in the slots that user space has let go of; a bad one is skipped."""
    frames = []
    for i in ring.released():
        buf_idx, length, _, _ = ring.slot(i)
        ring.clear_changed(i)
        if length <= BUF_SIZE and ring.has_buffer(buf_idx):
            frames.append(bytes(ring.read(buf_idx, length)))
    return frames


class BridgedNic:
    """A NIC's wire, or its host, at a switch."""

    hdr_len = 0
    mfs = MFS

    def __init__(self, name: str, switch: Switch, place: int, to: deque[bytes]) -> None:
        self.name = name
        self.switch, self.place = switch, place
        self._to = to
        switch.members[place] = self

    def forward(self, frame: bytes) -> None:
        """Send a frame to the switch."""
        self.switch.forward(self.place, [[frame]], 0)

    def leave(self) -> None:
        """Leave the switch."""
        self.switch.members[self.place] = None

    def deliver(self, frames: Sequence[Frame], sender: Member, ring: int) -> None:
        """Have frames leave, each slot by itself."""
        for frame in frames:
            if sender.hdr_len:
                slots = [data for data, _ in headers.convert(frame, sender.hdr_len, 0, self.mfs)]
            else:
                slots = list(frame)
            self._to += [bytes(data) for data in slots]
