"""Where the structures are, in capabilities; and the one capability that is a way to them.

Spec: Virtio 1.3, "Virtio Structure PCI Capabilities".
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

from vnic.pci import Function

VIRTIO_PCI_CAP: Final = struct.Struct("<BBBB2xII")
"""Length, type, BAR, id, offset, length of the structure: what follows the next pointer."""


class CfgType(IntEnum):
    """What a capability tells the place of: VIRTIO_PCI_CAP_*."""

    COMMON = 1
    NOTIFY = 2
    ISR = 3
    DEVICE = 4
    PCI = 5


class ConfigWindow:
    """A way to a BAR for drivers that have not mapped it: firmware.

    Layout, whole: u8 id, u8 next, u8 length, u8 type, u8 bar, u8 id, u16 padding, u32 offset,
    u32 length of the access, u8[4] data.
    Spec: "PCI configuration access capability".
    """

    _PLACE: Final = struct.Struct("<B3xII")
    _BAR: Final = range(4, 5)
    _OFFSET: Final = range(8, 16)
    _DATA: Final = range(16, 20)

    function: Function

    def __init__(self) -> None:
        self.reset()

    @property
    def body(self) -> bytes:
        """What the capability holds after identifier and next pointer, at reset."""
        return bytes(self._bytes[2:])

    def reset(self) -> None:
        """Forget where the driver looked: a length of 0 accesses nothing."""
        self._bytes = bytearray(self._DATA.stop)
        self._bytes[2:4] = self._DATA.stop, CfgType.PCI

    def read(self, offset: int, n: int) -> int:
        """Read a byte of the capability, or through it from the BAR."""
        if offset in self._DATA and (place := self._place()) is not None:
            _, _, length = place
            value = self.function.read_bar(*place)
            self._bytes[16 : 16 + length] = value.to_bytes(length, "little")
        return int.from_bytes(self._bytes[offset : offset + n], "little")

    def write(self, offset: int, n: int, value: int) -> None:
        """Choose a place in the BAR, or write there."""
        for i, byte in enumerate(value.to_bytes(n, "little"), offset):
            if i in self._BAR or i in self._OFFSET or i in self._DATA:
                self._bytes[i] = byte
        if offset in self._DATA and (place := self._place()) is not None:
            _, _, length = place
            data = self._bytes[16 : 16 + length]
            self.function.write_bar(*place, int.from_bytes(data, "little"))

    def _place(self) -> tuple[int, int, int] | None:
        """Return (BAR, offset, length), if an access there is one that a driver may make."""
        bar, offset, length = self._PLACE.unpack_from(self._bytes, self._BAR.start)
        return (bar, offset, length) if length in (1, 2, 4) and offset % length == 0 else None
