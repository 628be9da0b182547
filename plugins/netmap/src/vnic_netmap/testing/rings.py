"""A ring as the module keeps it: what user space may write is checked, what it wrote is copied.

User space owns the slots [head, tail); the module moves tail, only inside system calls.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from vnic_netmap.abi import NetmapRing, SlotFlag
from vnic_netmap.testing.memory import BUF_SIZE, RING_SIZE, SLOT_SIZE, Memory

if TYPE_CHECKING:
    from vnic_netmap.testing.descriptor import Descriptor
    from vnic_netmap.testing.ports import Port

# As plain numbers: an IntFlag costs more than the rest of a slot.
BUF_CHANGED: Final = int(SlotFlag.BUF_CHANGED)
INDIRECT: Final = int(SlotFlag.INDIRECT)
MOREFRAG: Final = int(SlotFlag.MOREFRAG)

_POINTERS: Final = struct.Struct("=III")
_HEAD: Final = int(NetmapRing.head.offset)
_CUR: Final = int(NetmapRing.cur.offset)
_TAIL: Final = int(NetmapRing.tail.offset)
_SLOT: Final = struct.Struct("=IHHQ")
_U32: Final = struct.Struct("=I")
_LEN_FLAGS: Final = struct.Struct("=HH")


class Kring:
    """One ring of a port; ``struct netmap_kring``.

    Slots from ``hwcur`` to ``hwtail`` are user space's.  ``rhead``, ``rcur`` and ``rtail`` are what
    the ring showed when it was last looked at.
    """

    def __init__(self, port: Port, index: int, n_slots: int, *, is_tx: bool) -> None:
        self.port = port
        self.index = index
        self.n_slots = n_slots
        self.is_tx = is_tx
        self.hwcur = self.rhead = self.rcur = 0
        self.hwtail = self.rtail = n_slots - 1 if is_tx else 0
        self.users: list[Descriptor] = []
        self.exclusive = False
        self.in_memory: int | None = None
        """The ring's index in the memory's pool: None while nobody needs it."""

    # ---- life ------------------------------------------------------------------------------------

    def create(self, memory: Memory, *, empty: bool = False) -> None:
        """Lay the ring out, if it isn't there."""
        if self.in_memory is None:
            self.in_memory = memory.new_ring(
                self.index, self.n_slots, is_tx=self.is_tx, empty=empty
            )
            self._memory = memory
            self.view = memory.view
            self.at = memory.rings.at(self.in_memory)

    def delete(self) -> None:
        """Free the ring and the buffers that are in it by now."""
        if self.in_memory is not None:
            for i in range(self.n_slots):
                if self.has_buffer(buf_idx := self.slot(i)[0]):
                    self._memory.bufs.give_back(buf_idx)
            self._memory.rings.give_back(self.in_memory)
            self.in_memory = None

    # ---- head, cur, tail -------------------------------------------------------------------------

    def take(self) -> bool:
        """Take over head and cur; return whether they can be.

        If not, nothing happens to the ring's frames.  What lies outside of the ring is put right.
        """
        head, cur, tail = _POINTERS.unpack_from(self.view, self.at + _HEAD)
        n = self.n_slots
        first, last = (self.rhead, self.rtail) if self.is_tx else (self.hwcur, self.hwtail)
        owned = (last - first) % n
        if max(head, cur) >= n or not (head - first) % n <= (cur - first) % n <= owned:
            if max(head, cur, tail) >= n:
                self.rhead = self.rcur = self.hwcur
                self.rtail = self.hwtail
                _POINTERS.pack_into(self.view, self.at + _HEAD, self.hwcur, self.hwcur, self.hwtail)
            return False
        if tail != self.rtail:
            _U32.pack_into(self.view, self.at + _TAIL, self.rtail)
        self.rhead, self.rcur = head, cur
        return True

    def publish(self) -> None:
        """Move the tail that user space sees."""
        self.rtail = self.hwtail
        _U32.pack_into(self.view, self.at + _TAIL, self.hwtail)

    def is_ready(self) -> bool:
        """Whether there is a slot from cur on, if the port were to look now."""
        (cur,) = _U32.unpack_from(self.view, self.at + _CUR)
        return bool(cur != self.port.reach(self))

    @property
    def is_used_up(self) -> bool:
        """Whether user space knows of no slot from cur on."""
        _, cur, tail = _POINTERS.unpack_from(self.view, self.at + _HEAD)
        return bool(cur == tail)

    @property
    def wants_sync(self) -> bool:
        """Of a receive ring: whether user space has no frames left, or slots to give back."""
        head, cur, tail = _POINTERS.unpack_from(self.view, self.at + _HEAD)
        return bool(cur == tail or head != self.rhead)

    @property
    def is_flushed(self) -> bool:
        """Whether the port has all slots that user space has let go of."""
        (head,) = _U32.unpack_from(self.view, self.at + _HEAD)
        return bool(head == self.hwcur)

    def next(self, i: int) -> int:
        """Return the slot after this one."""
        return i + 1 if i + 1 < self.n_slots else 0

    def prev(self, i: int) -> int:
        """Return the slot before this one."""
        return (i or self.n_slots) - 1

    def released(self) -> Iterator[int]:
        """Yield the slots that user space has let go of since the last time."""
        i = self.hwcur
        while i != self.rhead:
            yield i
            i = self.next(i)

    @property
    def n_free(self) -> int:
        """Of a receive ring: how many slots can be filled.  One always stays empty."""
        return (self.hwcur - self.hwtail - 1) % self.n_slots

    def notify(self) -> None:
        """Wake who waits for this ring."""
        for user in self.users:
            user.notify(is_tx=self.is_tx)

    # ---- slots -----------------------------------------------------------------------------------

    def slot(self, i: int) -> tuple[int, int, int, int]:
        """Return buf_idx, len, flags and ptr."""
        return _SLOT.unpack_from(self.view, self.at + RING_SIZE + SLOT_SIZE * i)

    def set_slot(self, i: int, buf_idx: int, length: int, flags: int, ptr: int) -> None:
        """Write a slot."""
        at = self.at + RING_SIZE + SLOT_SIZE * i
        _SLOT.pack_into(self.view, at, buf_idx, length, flags, ptr)

    def set_flags(self, i: int, length: int, flags: int) -> None:
        """Write what a slot says of its buffer."""
        _LEN_FLAGS.pack_into(
            self.view, self.at + RING_SIZE + SLOT_SIZE * i + 4, length, flags & 0xFFFF
        )

    def clear_changed(self, i: int) -> None:
        """Forget that the slot got another buffer."""
        _, length, flags, _ = self.slot(i)
        if flags & BUF_CHANGED:
            self.set_flags(i, length, flags & ~BUF_CHANGED)

    def has_buffer(self, buf_idx: int) -> bool:
        """Whether there is a buffer of this index for user space."""
        return self._memory.has_buffer(buf_idx)

    def read(self, buf_idx: int, length: int) -> memoryview:
        """Return the first bytes of a buffer, as they are and will be."""
        at = self._memory.buffer_at(buf_idx)
        return self.view[at : at + min(length, BUF_SIZE)]

    def fill(self, i: int, data: memoryview | bytes, flags: int) -> None:
        """Put bytes into a slot's buffer, even beyond its end, never beyond that of the memory."""
        n = len(data)
        at = self._memory.buffer_at(self.slot(i)[0])
        if at + n > self._memory.size:
            data = data[: self._memory.size - at]
        self.view[at : at + len(data)] = data
        self.set_flags(i, n, flags)
