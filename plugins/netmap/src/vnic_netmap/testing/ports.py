"""What all ports have in common: rings, and syncs of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from ctypes import Structure
from typing import Final, NoReturn, Self

import attrs

from vnic_netmap.testing.memory import Memory
from vnic_netmap.testing.rings import Kring

ENCODING: Final = "latin-1"
"""Of names: any bytes."""


def refuse(number: int) -> NoReturn:
    """Raises: OSError, with this number."""
    raise OSError(number, os.strerror(number))


def bounded(value: int, default: int, limit: int) -> int:
    """Return what the module makes of a number asked for: 0 is the default, too many the limit."""
    return min(value or default, limit)


@attrs.frozen(kw_only=True)
class Shape:
    """How many rings a port has, and slots in each."""

    tx_slots: int
    rx_slots: int
    tx_rings: int = 1
    rx_rings: int = 1
    host_tx_rings: int = 0
    host_rx_rings: int = 0

    def n_nic(self, *, is_tx: bool) -> int:
        """Return how many rings there are one way."""
        return self.tx_rings if is_tx else self.rx_rings

    def n_host(self, *, is_tx: bool) -> int:
        """Return how many of the host's there are one way."""
        return self.host_tx_rings if is_tx else self.host_rx_rings

    def tell(self, request: Structure) -> None:
        """Fill in the fields of a request that say the same: ``nr_tx_slots`` and so on."""
        for field, value in attrs.asdict(self).items():
            if hasattr(request, f"nr_{field}"):
                setattr(request, f"nr_{field}", value)

    def swapped(self) -> Self:
        """Return what the other end of a pipe has."""
        return attrs.evolve(
            self,
            tx_slots=self.rx_slots,
            rx_slots=self.tx_slots,
            tx_rings=self.rx_rings,
            rx_rings=self.tx_rings,
        )


class Port:
    """A port: ``struct netmap_adapter``.  It is there as long as somebody has got it."""

    def __init__(self, name: str, memory: Memory, shape: Shape) -> None:
        self.name = name
        self.memory = memory.get()
        self.shape = shape
        self.hdr_len = 0
        """Bytes of virtio-net header in front of each frame."""
        self.tx: list[Kring] = []
        self.rx: list[Kring] = []
        self.n_bound = 0
        self.n_holders = 0
        self.on_end: Callable[[], object] | None = None
        self.gone = False
        """Whether the interface was deleted, under those who have it open."""

    def get(self) -> Self:
        """Have it until `put`."""
        self.n_holders += 1
        return self

    def put(self) -> None:
        """Have it no more."""
        self.n_holders -= 1
        if self.n_holders == 0:
            self.end()

    def end(self) -> None:
        """Nobody has it: leave."""
        if self.on_end is not None:
            self.on_end()
        self.memory.put()

    # ---- what kinds of ports do differently ------------------------------------------------------

    def txsync(self, ring: Kring) -> None:
        """Take the slots that user space has filled, and give back those that were sent."""
        raise NotImplementedError

    def rxsync(self, ring: Kring) -> None:
        """Take back the slots that user space has read, and fill slots."""
        raise NotImplementedError

    def reach(self, ring: Kring) -> int:
        """Return where the tail would be after a sync."""
        return ring.hwtail

    def check(self, *, receives: bool) -> None:
        """Raises: OSError, if it can't be opened just now."""

    def make_rings(self) -> None:
        """Be opened for the first time."""
        for is_tx, rings in ((True, self.tx), (False, self.rx)):
            n = self.shape.n_nic(is_tx=is_tx) + self.shape.n_host(is_tx=is_tx)
            n_slots = self.shape.tx_slots if is_tx else self.shape.rx_slots
            rings += [Kring(self, i, n_slots, is_tx=is_tx) for i in range(n)]

    def drop_rings(self) -> None:
        """Be closed by the last."""
        self.tx.clear()
        self.rx.clear()

    def create(self, ring: Kring) -> None:
        """Lay out a ring that somebody needs, if it isn't there."""
        ring.create(self.memory)

    def release(self, ring: Kring) -> None:
        """Free a ring that nobody uses."""
        ring.delete()

    def sync(self, ring: Kring) -> bool:
        """Sync one ring; return whether head and cur were good."""
        if not ring.take():
            return False
        if ring.is_tx:
            self.txsync(ring)
        else:
            self.rxsync(ring)
        ring.publish()
        return True
