"""Message-signalled interrupts: what is enabled, masked and pending."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import attrs

from vnic.pci.description import Msi, MsiX

if TYPE_CHECKING:
    from collections.abc import Callable

    from vnic.pci.config_space import ConfigSpace
    from vnic.pci.description import Bar


@attrs.frozen
class Message:
    """What a vector's interrupt writes, and where."""

    address: int
    data: int


class MsiVectors:
    """The state behind an MSI capability."""

    def __init__(self, description: Msi, config: ConfigSpace, tell: Callable[[int], None]) -> None:
        self.n = description.vectors
        self._maskable = description.maskable
        self._config = config
        self._at = config.places[id(description)]
        self._tell = tell

    @property
    def enabled(self) -> bool:
        """Whether the driver has chosen MSI."""
        return bool(self._control & Msi.ENABLE)

    @property
    def allocated(self) -> int:
        """How many vectors the driver allows."""
        return min(self.n, 1 << (self._control >> 4 & 0b111))

    def signal(self, vector: int) -> None:
        """Interrupt, or remember it while masked.  Vectors beyond those allowed share them."""
        vector %= self.allocated
        if self._maskable and self._get(Msi.MASK, 4) >> vector & 1:
            self._put_pending(self._pending | 1 << vector)
        else:
            self._tell(vector)

    def message(self, vector: int) -> Message:
        """Return what the vector's interrupt writes."""
        data = self._get(Msi.DATA, 2) & -self.allocated | vector % self.allocated
        return Message(self._get(Msi.ADDRESS, 8), data)

    def config_written(self) -> None:
        """Interrupt for what is pending and no longer masked."""
        if not (self._maskable and self.enabled):
            return
        due = self._pending & ~self._get(Msi.MASK, 4)
        if due:
            self._put_pending(self._pending & ~due)
            for vector in range(self.n):
                if due >> vector & 1:
                    self._tell(vector)

    def reset(self) -> None:
        """Nothing is pending: that is in configuration space."""

    @property
    def _control(self) -> int:
        return self._get(Msi.CONTROL, 2)

    @property
    def _pending(self) -> int:
        return self._get(Msi.PENDING, 4)

    def _put_pending(self, bits: int) -> None:
        self._config.put(self._at + Msi.PENDING, 4, bits)

    def _get(self, offset: int, n: int) -> int:
        return self._config.get(self._at + offset, n)


class MsiXVectors:
    """The state behind an MSI-X capability: table and pending bits."""

    _ENTRY = struct.Struct("<QII")
    _MASK_BYTE = 12
    _MASKED = 1

    def __init__(self, description: MsiX, config: ConfigSpace, tell: Callable[[int], None]) -> None:
        self.n = description.vectors
        self._config = config
        self._at = config.places[id(description)]
        self._tell = tell
        self._table = bytearray()
        self._pending = bytearray(description.pba_size)
        self.reset()

    @property
    def enabled(self) -> bool:
        """Whether the driver has chosen MSI-X."""
        return bool(self._control & MsiX.ENABLE)

    def signal(self, vector: int) -> None:
        """Interrupt, or remember it while masked."""
        if vector >= self.n:
            return
        if self._control & MsiX.FUNCTION_MASK or self._is_masked(vector):
            self._pending[vector >> 3] |= 1 << (vector & 7)
        else:
            self._tell(vector)

    def message(self, vector: int) -> Message:
        """Return what the vector's interrupt writes."""
        address, data, _ = self._ENTRY.unpack_from(self._table, MsiX.ENTRY * vector)
        return Message(address, data)

    def config_written(self) -> None:
        """Interrupt for what is pending and no longer masked."""
        if self.enabled and not self._control & MsiX.FUNCTION_MASK and any(self._pending):
            for vector in range(self.n):
                self._flush(vector)

    def reset(self) -> None:
        """Mask every vector, and forget what is pending."""
        self._table[:] = self._ENTRY.pack(0, 0, self._MASKED) * self.n
        self._pending[:] = bytes(len(self._pending))

    # ---- table and pending bits, as registers

    def read_table(self, offset: int, n: int) -> int:
        """Read it."""
        return int.from_bytes(self._table[offset : offset + n], "little")

    def write_table(self, offset: int, n: int, value: int) -> None:
        """Write to it; a vector that is unmasked so is interrupted for, if it is pending."""
        self._table[offset : offset + n] = value.to_bytes(n, "little")
        if self.enabled and not self._control & MsiX.FUNCTION_MASK:
            self._flush(offset // MsiX.ENTRY)

    def read_pba(self, offset: int, n: int) -> int:
        """Read them."""
        return int.from_bytes(self._pending[offset : offset + n], "little")

    @property
    def _control(self) -> int:
        return self._config.get(self._at + MsiX.CONTROL, 2)

    def _is_masked(self, vector: int) -> bool:
        return bool(self._table[MsiX.ENTRY * vector + self._MASK_BYTE] & self._MASKED)

    def _flush(self, vector: int) -> None:
        byte, bit = vector >> 3, 1 << (vector & 7)
        if self._pending[byte] & bit and not self._is_masked(vector):
            self._pending[byte] &= ~bit
            self._tell(vector)


class MsiXWindow:
    """A BAR that holds table or pending bits among its own registers.

    Accesses come naturally aligned, and both places are whole 64-bit words: none straddles an end.
    """

    def __init__(self, bar: Bar, description: MsiX, vectors: MsiXVectors) -> None:
        self._registers = bar.registers
        self._vectors = vectors
        self._table = self._pba = range(0)
        if bar.index == description.table_bar:
            at = description.table_offset
            self._table = range(at, at + description.table_size)
        if bar.index == description.pba_bar:
            at = description.pba_offset
            self._pba = range(at, at + description.pba_size)
        if max(self._table.stop, self._pba.stop) > bar.size:
            raise ValueError(f"MSI-X: table or pending bits end beyond BAR {bar.index}")

    def read(self, offset: int, n: int) -> int:
        """Read table, pending bits, or a register."""
        if offset in self._table:
            return self._vectors.read_table(offset - self._table.start, n)
        if offset in self._pba:
            return self._vectors.read_pba(offset - self._pba.start, n)
        return self._registers.read(offset, n)

    def write(self, offset: int, n: int, value: int) -> None:
        """Write to the table or a register; pending bits are read-only."""
        if offset in self._table:
            self._vectors.write_table(offset - self._table.start, n, value)
        elif offset not in self._pba:
            self._registers.write(offset, n, value)
