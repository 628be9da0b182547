"""A guest that keeps to no rule: each word of a ring written by hand.

    guest = HostileGuest(nic, host)
    guest.tx.desc(0, guest.buffer(64), 0xFFFF_FFFF, flags=NEXT, next_=0)
    guest.tx.publish(0)
    guest.kick(TX)

Words are written whole (``memoryview.cast``); ``struct.pack_into`` writes zeroes first, which a
device in another thread would see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from vnic.features import Features
from vnic.hookspecs import QueueAddresses
from vnic.testing import DriverError, SoftwareHost

if TYPE_CHECKING:
    from typing_extensions import Buffer
    from vnic.nic import Nic

NEXT: Final = 1
WRITE: Final = 2
INDIRECT: Final = 4
"""VIRTQ_DESC_F_*"""

NO_INTERRUPT: Final = 1
NO_NOTIFY: Final = 1

RX: Final = 0
TX: Final = 1


class Ring:
    """A split virtqueue as memory: what is assigned is written, what is read is what is there."""

    def __init__(self, host: SoftwareHost, size: int = 256) -> None:
        """Allocate it, all zero."""
        self.size = size
        self._host = host
        self.desc_gpa = host.alloc(16 * size, 16)
        self.avail_gpa = host.alloc(6 + 2 * size, 2)
        self.used_gpa = host.alloc(6 + 8 * size, 4)
        view = host.memory.view
        self._desc = view(self.desc_gpa, 16 * size)
        self._avail = view(self.avail_gpa, 6 + 2 * size).cast("H")
        self._used16 = view(self.used_gpa, 6 + 8 * size).cast("H")
        self._used32 = view(self.used_gpa, 4 + 8 * size).cast("I")
        self._taken = 0

    @property
    def addresses(self) -> QueueAddresses:
        """Where it lies, for `VhostFace.start_queue`; `attrs.evolve` makes it wrong."""
        return QueueAddresses(
            size=self.size,
            desc_gpa=self.desc_gpa,
            avail_gpa=self.avail_gpa,
            used_gpa=self.used_gpa,
        )

    # ---- descriptors

    def desc(self, i: int, gpa: int, n_bytes: int, flags: int = 0, next_: int = 0) -> None:
        """Write descriptor ``i`` of the ring's table."""
        _write_desc(self._desc, i, gpa, n_bytes, flags, next_)

    def table(self, *descs: tuple[int, int, int, int]) -> int:
        """Allocate a table of descriptors (gpa, n_bytes, flags, next) and return its gpa."""
        n = max(16, 16 * len(descs))
        gpa = self._host.alloc(n, 16)
        view = self._host.memory.view(gpa, n)
        for i, desc in enumerate(descs):
            _write_desc(view, i, *desc)
        return gpa

    def chain(self, start: int, buffers: Iterable[tuple[int, int]], flags: int = 0) -> int:
        """Write a well-formed chain of (gpa, n_bytes) from descriptor ``start`` on; return it."""
        buffers = list(buffers)
        for i, (gpa, n_bytes) in enumerate(buffers):
            last = i == len(buffers) - 1
            self.desc(start + i, gpa, n_bytes, flags | (0 if last else NEXT), start + i + 1)
        return start

    # ---- what the driver writes

    def publish(self, *heads: int) -> None:
        """Enter heads in the avail ring, and move its index on."""
        for head in heads:
            self.entry(self.avail_idx % self.size, head)
            self.avail_idx += 1

    def entry(self, i: int, head: int) -> None:
        """Write entry ``i`` of the avail ring."""
        self._avail[2 + i] = head

    @property
    def avail_idx(self) -> int:
        """The avail index; what is assigned is taken modulo 65536."""
        return self._avail[1]

    @avail_idx.setter
    def avail_idx(self, value: int) -> None:
        self._avail[1] = value & 0xFFFF

    @property
    def avail_flags(self) -> int:
        """VIRTQ_AVAIL_F_*, as a number."""
        return self._avail[0]

    @avail_flags.setter
    def avail_flags(self, value: int) -> None:
        self._avail[0] = value

    @property
    def used_event(self) -> int:
        """With EVENT_IDX: interrupt when the used index passes it."""
        return self._avail[2 + self.size]

    @used_event.setter
    def used_event(self, value: int) -> None:
        self._avail[2 + self.size] = value & 0xFFFF

    # ---- what the device writes

    @property
    def used_idx(self) -> int:
        """The used index.  It can be assigned, to begin elsewhere than at 0."""
        return self._used16[1]

    @used_idx.setter
    def used_idx(self, value: int) -> None:
        self._used16[1] = value & 0xFFFF
        self._taken = value & 0xFFFF

    @property
    def used_flags(self) -> int:
        """VIRTQ_USED_F_*, as a number."""
        return self._used16[0]

    @property
    def avail_event(self) -> int:
        """With EVENT_IDX: kick when the avail index passes it."""
        return self._used16[2 + 4 * self.size]

    def used(self) -> list[tuple[int, int]]:
        """Return (id, len) of what was used since the last call, as it is, believed or not."""
        entries: list[tuple[int, int]] = []
        while self._taken != self.used_idx and len(entries) < 65536:
            at = 1 + 2 * (self._taken % self.size)
            entries.append((self._used32[at], self._used32[at + 1]))
            self._taken = (self._taken + 1) & 0xFFFF
        return entries


class HostileGuest:
    """Two rings of a NIC, started, empty, and buffers to go with them."""

    def __init__(
        self,
        nic: Nic,
        host: SoftwareHost,
        *,
        features: Features = Features.VERSION_1,
        size: int = 256,
    ) -> None:
        """Negotiate ``features`` as far as they are offered; make and start both queues."""
        if nic.vhost is None:
            raise DriverError(f"{nic.name}: has no vhost face")
        self.face = nic.vhost
        self.host = host
        self.features = features & self.face.get_features()
        self.face.set_features(self.features)
        self.rings = (Ring(host, size), Ring(host, size))
        self.rx, self.tx = self.rings
        self.interrupts = [0, 0]
        for index in (RX, TX):
            self.start(index)

    def start(self, index: int, queue: QueueAddresses | None = None) -> None:
        """Start and enable a queue, where its ring lies or where ``queue`` says."""

        def interrupt() -> None:
            self.interrupts[index] += 1

        self.face.start_queue(index, queue or self.rings[index].addresses, interrupt)
        self.face.enable_queue(index, True)

    def kick(self, index: int) -> None:
        """Tell the device, wanted or not."""
        self.face.kick(index)

    def buffer(self, content: int | Buffer) -> int:
        """Allocate a buffer of so many zeroes, or with this content; return its gpa."""
        data = bytes(content)
        gpa = self.host.alloc(max(1, len(data)), 1)
        self.host.memory.view(gpa, len(data))[:] = data
        return gpa

    def bytes_at(self, gpa: int, n: int) -> bytes:
        """Return what is in memory there."""
        return bytes(self.host.memory.view(gpa, n))


def _write_desc(table: memoryview, i: int, gpa: int, n_bytes: int, flags: int, next_: int) -> None:
    words = table[16 * i : 16 * i + 16]
    words[:8].cast("Q")[0] = gpa & 0xFFFF_FFFF_FFFF_FFFF
    words[8:12].cast("I")[0] = n_bytes
    words[12:14].cast("H")[0] = flags
    words[14:].cast("H")[0] = next_
