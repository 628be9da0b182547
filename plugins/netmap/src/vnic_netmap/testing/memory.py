"""Shared memory: a pool of netmap_if, one of rings, one of buffers, one behind the other.

A VALE port has memory of its own, unless it asks for another's; all NICs share that with the id 1.
It is a memfd, and as sparse as the module's memory is not: a port takes what it touches.
"""

from __future__ import annotations

import errno
import heapq
import math
import mmap
import os
from ctypes import sizeof
from typing import TYPE_CHECKING, Final, Self

from vnic_netmap.abi import NetmapRing, NetmapSlot

if TYPE_CHECKING:
    from vnic_netmap.testing.ports import Shape

PAGE: Final = 4096
BUF_SIZE: Final = 2048
BAD_BUF: Final = 0
"""The buffer that stands in for an index that can't be; user space is given those from 2 on."""
FIRST_BUF: Final = 2
IF_SIZE: Final = 1024
"""For a ``struct netmap_if``, and the offsets of rings that follow it."""
RING_ALIGN: Final = 128
RING_SIZE: Final = sizeof(NetmapRing)
"""A ring's slots follow."""
SLOT_SIZE: Final = sizeof(NetmapSlot)
N_PIPES: Final = 2
"""For how many pipes there is room in a VALE port's memory."""


class Pool:
    """Objects of one size, of which the lowest that is free is given next."""

    def __init__(self, start: int, size: int, n: int) -> None:
        whole_pages = PAGE // math.gcd(size, PAGE)
        self.start = start
        self.size = size
        self.n = -(-n // whole_pages) * whole_pages
        self.end = start + self.n * size
        self.free_all()

    def free_all(self) -> None:
        """Free every object; what is in them stays."""
        self._never_taken = 0
        self._given_back: list[int] = []
        self.taken: set[int] = set()

    @property
    def n_free(self) -> int:
        """How many can be taken."""
        return self.n - len(self.taken)

    def take(self) -> int:
        """Return the index of an object.

        Raises: OSError, ENOMEM.
        """
        self.need(1)
        if self._given_back:
            index = heapq.heappop(self._given_back)
        else:
            index = self._never_taken
            self._never_taken += 1
        self.taken.add(index)
        return index

    def need(self, n: int) -> None:
        """Raises: OSError, ENOMEM, if there are not so many."""
        if n > self.n_free:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    def give_back(self, index: int) -> None:
        """Free an object, if it isn't free; what is in it stays."""
        if index in self.taken:
            self.taken.remove(index)
            heapq.heappush(self._given_back, index)

    def at(self, index: int) -> int:
        """Return where an object is in the memory."""
        return self.start + index * self.size


class Memory:
    """What one allocator of the module has, mapped once for the module itself."""

    def __init__(self, mem_id: int, *, ifs: Pool, rings: Pool, bufs: Pool) -> None:
        self.mem_id = mem_id
        self.ifs, self.rings, self.bufs = ifs, rings, bufs
        self._free_all()
        self.size = bufs.end
        self.fd = os.memfd_create(f"netmap{mem_id}", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self.size)
        self._map = mmap.mmap(self.fd, self.size)
        self.view = memoryview(self._map)
        self._n_users = self._n_bound = 0

    @classmethod
    def for_nics(cls) -> Self:
        """Return what all NICs share."""
        ifs = Pool(0, IF_SIZE, 100)
        rings = Pool(ifs.end, 9 * PAGE, 200)
        return cls(1, ifs=ifs, rings=rings, bufs=Pool(rings.end, BUF_SIZE, 163840))

    @classmethod
    def for_port(cls, mem_id: int, shape: Shape, n_extra: int) -> Self:
        """Return memory for a VALE port and pipes of it: some 40 MB for rings of 1024 slots."""
        n_tx, n_rx = shape.tx_rings + 1, shape.rx_rings + 1  # a host ring each, that is never there
        n_piped = 4 * N_PIPES
        n_bufs = (n_tx + n_piped) * shape.tx_slots + (n_rx + n_piped) * shape.rx_slots
        slots_size = SLOT_SIZE * max(shape.tx_slots, shape.rx_slots)
        ring_size = max(5 * PAGE, -(-(RING_SIZE + slots_size) // RING_ALIGN) * RING_ALIGN)
        ifs = Pool(0, IF_SIZE, 2 + n_piped)
        rings = Pool(ifs.end, ring_size, n_tx + n_rx + 2 * n_piped)
        bufs = Pool(rings.end, BUF_SIZE, max(4098, FIRST_BUF + n_bufs + n_extra))
        return cls(mem_id, ifs=ifs, rings=rings, bufs=bufs)

    def get(self) -> Self:
        """Use it until `put`."""
        self._n_users += 1
        return self

    def put(self) -> None:
        """Use it no more; the last to do so gives it back to the system."""
        self._n_users -= 1
        if self._n_users == 0:
            self.view.release()
            self._map.close()
            os.close(self.fd)

    @property
    def in_use(self) -> bool:
        """Whether somebody uses it."""
        return self._n_users > 0

    def bind(self) -> None:
        """A descriptor is bound to it."""
        self._n_bound += 1

    def unbind(self) -> None:
        """One less.  The last one gone, all is free again, wherever user space left buffers."""
        self._n_bound -= 1
        if self._n_bound == 0:
            self._free_all()

    def _free_all(self) -> None:
        for pool in (self.ifs, self.rings, self.bufs):
            pool.free_all()
        for _ in range(FIRST_BUF):
            self.bufs.take()

    def new_ring(self, ring_id: int, n_slots: int, *, is_tx: bool, empty: bool = False) -> int:
        """Lay out a ring, with a buffer in each slot unless it is to be empty; return its index.

        Raises: OSError, ENOMEM.
        """
        self.bufs.need(0 if empty else n_slots)
        index = self.rings.take()
        at = self.rings.at(index)
        ring = NetmapRing(
            buf_ofs=self.bufs.start - at,
            num_slots=n_slots,
            nr_buf_size=BUF_SIZE,
            ringid=ring_id,
            dir=int(is_tx),
            tail=n_slots - 1 if is_tx else 0,
        )
        slots = bytearray()
        for _ in range(n_slots):
            slots += NetmapSlot() if empty else NetmapSlot(self.bufs.take(), BUF_SIZE)
        self.view[at : at + RING_SIZE + len(slots)] = bytes(ring) + slots
        return index

    def has_buffer(self, index: int) -> bool:
        """Whether user space can have a buffer of this index."""
        return FIRST_BUF <= index < self.bufs.n

    def buffer_at(self, index: int) -> int:
        """Return where a buffer is; for an index that can't be, where the bad one is."""
        return self.bufs.at(index if self.has_buffer(index) else BAD_BUF)
