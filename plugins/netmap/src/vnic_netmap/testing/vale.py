"""VALE: a learning switch, its ports, and what it does when one of them is full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from vnic_netmap.testing import headers
from vnic_netmap.testing.memory import BUF_SIZE, Memory
from vnic_netmap.testing.ports import Port, Shape
from vnic_netmap.testing.rings import BUF_CHANGED, INDIRECT, MOREFRAG, Kring
from vnic_netmap.testing.user_memory import UserMemory

PORTS_MAX: Final = 254
RINGS_MAX: Final = 16
SLOTS_MAX: Final = 4096
EXTRA_BUFS_MAX: Final = 128 * SLOTS_MAX
SLOTS: Final = 1024
"""Of a ring, if nobody says."""

BATCH: Final = 1024
"""Slots after which frames are forwarded."""
ETH_LEN: Final = 14
MFS: Final = 1514
"""The longest frame that segmentation makes."""
HEADERS_MAX: Final = 114
"""The longest headers that it repeats: Ethernet, IPv6, TCP with options."""

Frame = Sequence[memoryview | bytes]
"""A frame, slot for slot, virtio-net header included."""


class Member(Protocol):
    """What is at a switch."""

    name: str
    hdr_len: int
    mfs: int

    def deliver(self, frames: Sequence[Frame], sender: Member, ring: int) -> None:
        """Take frames, or lose them."""


class Switch:
    """One switch: ``struct nm_bridge``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.members: list[Member | None] = [None] * PORTS_MAX
        self._behind: dict[bytes, int] = {}

    @property
    def is_empty(self) -> bool:
        """Whether nobody is there: then the switch is not, either."""
        return not any(self.members)

    def forward(self, place: int, frames: Sequence[Frame], ring: int) -> None:
        """Send frames from a place on, each to whoever its address is behind.

        One ring's frames go to the ring of that number, those for all to the first.
        """
        sender = self.members[place]
        assert sender is not None
        out: dict[tuple[int, int], list[Frame]] = {}
        for frame in frames:
            addresses = bytes(_start(frame, sender.hdr_len)[:ETH_LEN])
            if len(addresses) < ETH_LEN:
                continue
            if not addresses[6] & 1:
                self._behind[addresses[6:12]] = place
            to = None if addresses[0] & 1 else self._behind.get(addresses[:6])
            if to is None:
                for i, member in enumerate(self.members):
                    if member is not None and i != place:
                        out.setdefault((i, 0), []).append(frame)
            elif to != place:
                out.setdefault((to, ring), []).append(frame)
        for (i, to_ring), lane in out.items():
            if (member := self.members[i]) is not None:
                member.deliver(lane, sender, to_ring)


def _start(frame: Frame, hdr_len: int) -> memoryview | bytes:
    """Return what begins with the Ethernet header: the rest of the first slot, or the second."""
    if len(frame[0]) > hdr_len:
        return frame[0][hdr_len:]
    if len(frame[0]) == hdr_len and len(frame) > 1:
        return frame[1]
    return b""


class ValePort(Port):
    """A port of a switch: ephemeral, or an interface that NEWIF made."""

    def __init__(self, name: str, memory: Memory, shape: Shape, user_memory: UserMemory) -> None:
        super().__init__(name, memory, shape)
        self.mfs = MFS
        self.switch: Switch | None = None
        self.place = -1
        self._user_memory = user_memory

    def set_hdr_len(self, hdr_len: int) -> None:
        """Have a virtio-net header in front of each frame.

        A header makes segments as long as a buffer; without one again they stay so.  That is the
        module's fault, not ours.
        """
        self.hdr_len = hdr_len
        if hdr_len:
            self.mfs = BUF_SIZE

    def txsync(self, ring: Kring) -> None:
        """Forward all frames: what can't be delivered is lost."""
        batch: list[Frame] = []
        n_slots = 0
        for frame in self._frames(ring):
            batch.append(frame)
            n_slots += len(frame)
            if n_slots >= BATCH:
                self._forward(batch, ring)
                batch, n_slots = [], 0
        self._forward(batch, ring)
        ring.hwcur = ring.rhead
        ring.hwtail = ring.prev(ring.hwcur)

    def _forward(self, batch: Sequence[Frame], ring: Kring) -> None:
        if self.switch is not None:
            self.switch.forward(self.place, batch, ring.index)

    def _frames(self, ring: Kring) -> list[Frame]:
        """Gather frames from slots; one whose end is missing ends where it is."""
        frames: list[Frame] = []
        frame: list[memoryview | bytes] = []
        dropped = False
        for i in ring.released():
            buf_idx, length, flags, ptr = ring.slot(i)
            if flags & BUF_CHANGED:
                ring.set_flags(i, length, flags & ~BUF_CHANGED)
            if length > BUF_SIZE or not (flags & INDIRECT or ring.has_buffer(buf_idx)):
                dropped |= not frame
                frame.append(b"")
            elif flags & INDIRECT:
                frame.append(self._user_memory.read_or_nothing(ptr, length))
            else:
                frame.append(ring.read(buf_idx, length))
            if not flags & MOREFRAG:
                if not dropped:
                    frames.append(frame)
                frame, dropped = [], False
        if frame and not dropped:
            frames.append(frame)
        return frames

    def rxsync(self, ring: Kring) -> None:
        """Take back slots; frames are in the ring already."""
        for i in ring.released():
            ring.clear_changed(i)
        ring.hwcur = ring.rhead

    def deliver(self, frames: Sequence[Frame], sender: Member, ring: int) -> None:
        """Copy frames into a ring.  From the first that doesn't fit on, they are lost."""
        if not self.rx or not (kring := self.rx[ring % len(self.rx)]).users:
            return
        n_wanted = sum(len(frame) for frame in frames)
        differs = sender.hdr_len != self.hdr_len
        if differs and self.mfs < sender.mfs:
            n_wanted = n_wanted * sender.mfs // (self.mfs - HEADERS_MAX) + 1
        room = min(n_wanted, kring.n_free)
        before = at = kring.hwtail
        for frame in frames:
            if len(frame) > room:
                break
            if differs:
                slots = headers.convert(frame, sender.hdr_len, self.hdr_len, self.mfs)
                if len(slots) > room:
                    continue  # segments for which there are no slots: they are lost, others not
            else:
                slots = headers.flagged(frame)
            for data, flags in slots:
                kring.fill(at, data, flags)
                at = kring.next(at)
            room -= len(slots)
        if at != before:
            kring.hwtail = at
            kring.notify()

    @property
    def is_attached(self) -> bool:
        """Whether it is at a switch."""
        return self.switch is not None

    def join(self, switch: Switch, place: int) -> None:
        """Take a place at a switch."""
        self.switch, self.place = switch, place
        switch.members[place] = self

    def leave(self) -> None:
        """Leave it; who is behind this port stays known, and frames for them are lost."""
        if self.switch is not None:
            self.switch.members[self.place] = None
            self.switch = None

    def end(self) -> None:
        """Nobody has it: leave the switch."""
        self.leave()
        super().end()
