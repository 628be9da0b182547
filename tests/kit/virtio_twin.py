"""A virtio-net device in plain Python, slow and exact, for drivers to be tried against."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Final, Literal

import attrs
from hypothesis import strategies as st
from vnic.features import Features
from vnic.hookspecs import QueueAddresses
from vnic.loop import Loop
from vnic.memory import Memory
from vnic.testing import SoftwareHost
from vnic_virtio_net.testing import DRIVER_FEATURES, Driver
from vnic_virtio_net.testing.hostile import INDIRECT, NEXT, WRITE

RX: Final = 0
TX: Final = 1
PLAIN: Final = bytes(12)
"""A virtio-net header that asks for nothing."""
MODERN: Final = Features.VERSION_1


@attrs.define
class TwinQueue:
    """The device's side of a ring, word by word and slowly."""

    memory: Memory
    at: QueueAddresses
    interrupt: Callable[[], None]
    taken: int = 0
    in_order: bool = False

    def words(self, gpa: int, n: int, code: Literal["H", "I", "Q"] = "H") -> memoryview:
        return self.memory.view(gpa, n * struct.calcsize(code)).cast(code)

    @property
    def avail(self) -> memoryview:
        return self.words(self.at.avail_gpa, 3 + self.at.size)

    @property
    def used(self) -> memoryview:
        return self.words(self.at.used_gpa, 3 + 4 * self.at.size)

    def waiting(self) -> int:
        return (self.avail[1] - self.taken) & 0xFFFF

    def pop(self) -> tuple[int, list[tuple[int, int, int]]]:
        """Take a chain: its head, and its (gpa, n, flags)."""
        head = self.avail[2 + self.taken % self.at.size]
        self.taken = (self.taken + 1) & 0xFFFF
        table, i = self.at.desc_gpa, head
        chain: list[tuple[int, int, int]] = []
        while True:
            gpa = self.words(table + 16 * i, 1, "Q")[0]
            n = self.words(table + 16 * i + 8, 1, "I")[0]
            flags, next_ = self.words(table + 16 * i + 12, 2)
            if flags & INDIRECT:
                assert not flags & NEXT
                assert n % 16 == 0
                assert n // 16 <= self.at.size
                table, i = gpa, 0
                continue
            chain.append((gpa, n, flags))
            assert len(chain) <= self.at.size
            if not flags & NEXT:
                return head, chain
            if self.in_order:
                assert next_ == (i + 1) % (self.at.size if table == self.at.desc_gpa else 1 << 16)
            i = next_

    def entry(self, ahead: int, id_: int, n: int) -> None:
        at = 4 + 8 * ((self.used[1] + ahead) % self.at.size)
        self.words(self.at.used_gpa + at, 2, "I")[0] = id_
        self.words(self.at.used_gpa + at, 2, "I")[1] = n

    def advance(self, n: int) -> None:
        self.used[1] = (self.used[1] + n) & 0xFFFF

    def use(self, *entries: tuple[int, int]) -> None:
        for ahead, (id_, n) in enumerate(entries):
            self.entry(ahead, id_, n)
        self.advance(len(entries))


class Twin:
    """A virtio-net device over the vhost face: frames it gets are in `sent`."""

    n_queues = 2

    def __init__(self, host: SoftwareHost, offered: Features, mtu: int = 1500) -> None:
        self.host = host
        self.offered = offered
        self.features = Features(0)
        self.config = b"\x52\x54\0\1\2\3" + b"\1\0" + b"\1\0" + mtu.to_bytes(2, "little")
        self.queues: dict[int, TwinQueue] = {}
        self.sent: list[tuple[bytes, bytes]] = []
        self.kicks = [0, 0]
        self.mute = False
        self.random = random.Random(7)

    # ---- vhost face

    def get_features(self) -> Features:
        return self.offered

    def set_features(self, features: Features) -> None:
        assert not features & ~self.offered
        self.features = features

    def start_queue(self, index: int, queue: QueueAddresses, interrupt: Callable[[], None]) -> None:
        in_order = Features.IN_ORDER in self.features
        self.queues[index] = TwinQueue(
            self.host.memory, queue, interrupt, taken=queue.base, in_order=in_order
        )
        assert self.queues[index].used[1] == queue.base

    def stop_queue(self, index: int) -> int:
        return self.queues[index].taken

    def enable_queue(self, index: int, enabled: bool) -> None:
        assert index in self.queues

    def kick(self, index: int) -> None:
        self.kicks[index] += 1

    def read_config(self, offset: int, n: int) -> bytes:
        return self.config[offset : offset + n].ljust(n, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        raise AssertionError("the configuration is read-only")

    # ---- a device's work

    @property
    def hdr_len(self) -> int:
        return 12 if self.features & (MODERN | Features.MRG_RXBUF) else 10

    def transmit(self, limit: int = 65536) -> None:
        """Take frames, and complete them in an order of the twin's choice."""
        queue = self.queues[TX]
        heads: list[int] = []
        while queue.waiting() and len(heads) < limit:
            head, chain = queue.pop()
            assert not any(flags & WRITE for _, _, flags in chain)
            data = b"".join(bytes(self.host.memory.view(gpa, n)) for gpa, n, _ in chain)
            self.sent.append((data[self.hdr_len :], data[: self.hdr_len].ljust(12, b"\0")))
            heads.append(head)
        if Features.IN_ORDER not in self.features:
            self.random.shuffle(heads)
        elif heads and self.random.random() < 0.5:
            # One entry for all of them.
            queue.entry(0, heads[-1], 0)
            queue.advance(len(heads))
            self.notify(TX, len(heads))
            return
        queue.use(*((head, 0) for head in heads))
        self.notify(TX, len(heads))

    def deliver(self, frame: bytes, header: bytes = PLAIN) -> bool:
        """Write a frame to as many buffers as it takes; whether there were enough."""
        queue = self.queues[RX]
        start, size = queue.taken, 0
        used: list[tuple[int, int]] = []
        data = header[: self.hdr_len] + frame
        places: list[tuple[int, int]] = []
        while size < len(data):
            if not queue.waiting() or (used and Features.MRG_RXBUF not in self.features):
                queue.taken = start
                return False
            head, chain = queue.pop()
            assert all(flags & WRITE for _, _, flags in chain)
            capacity = sum(n for _, n, _ in chain)
            used.append((head, min(capacity, len(data) - size)))
            places += [(gpa, n) for gpa, n, _ in chain]
            size += capacity
        if self.hdr_len == 12:
            data = data[:10] + len(used).to_bytes(2, "little") + data[12:]
        for gpa, n in places:
            piece, data = data[:n], data[n:]
            self.host.memory.view(gpa, len(piece))[:] = piece
        queue.use(*used)
        self.notify(RX, len(used))
        return True

    def notify(self, index: int, n: int) -> None:
        queue = self.queues[index]
        wanted = not queue.avail[0] & 1
        if Features.EVENT_IDX in self.features:
            assert queue.avail[0] == 0
            new, event = queue.used[1], queue.avail[2 + queue.at.size]
            wanted = (new - event - 1) & 0xFFFF < n
        if wanted and n and not self.mute:
            queue.interrupt()


def make(
    features: Features = DRIVER_FEATURES, size: int = 8 << 20, **options: Any
) -> tuple[Driver, Twin]:
    """Return a driver, and the device that it drives."""
    host = SoftwareHost(Loop(), size)
    host.loop.close()
    twin = Twin(host, features)
    nic: Any = SimpleNamespace(vhost=twin, name="twin")
    return Driver(nic, host, features=features, **options), twin


def numbered(n: int, start: int = 0, length: int = 60) -> list[bytes]:
    """Return frames that differ."""
    return [i.to_bytes(4, "big").ljust(length, bytes([i % 251])) for i in range(start, start + n)]


ring_features = st.sets(
    st.sampled_from(
        [MODERN, Features.MRG_RXBUF, Features.EVENT_IDX, Features.IN_ORDER, Features.INDIRECT_DESC]
    )
).map(lambda bits: Features(sum(bits)))
