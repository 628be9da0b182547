"""A guest that keeps to no rule: each register and each descriptor written by hand.

For example::

    guest = HostileGuest(nic, host)
    guest.tx_desc(0, guest.buffer(frame), len(frame) | EOP | IFCS)
    guest.write("TDT", 1)
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from vnic.testing import DriverError, SoftwareHost

from vnic_e1000.registers import OFFSETS

if TYPE_CHECKING:
    from typing_extensions import Buffer
    from vnic.nic import Nic
    from vnic.pci import Function

EOP: Final = 1 << 24
IFCS: Final = 1 << 25
IC: Final = 1 << 26
TSE: Final = 1 << 26
RS: Final = 1 << 27
DEXT: Final = 1 << 29
VLE: Final = 1 << 30
IDE: Final = 1 << 31
DATA: Final = DEXT | 1 << 20
IXSM: Final = 1 << 40
TXSM: Final = 1 << 41

RCTL_EN: Final = 1 << 1
RCTL_SBP: Final = 1 << 2
RCTL_UPE: Final = 1 << 3
RCTL_MPE: Final = 1 << 4
RCTL_LPE: Final = 1 << 5
RCTL_BAM: Final = 1 << 15
TCTL_EN: Final = 1 << 1
TCTL_PSP: Final = 1 << 3


class HostileGuest:
    """Two rings of ``size`` descriptors that the device is told of, and nothing in them."""

    def __init__(self, nic: Nic, host: SoftwareHost, size: int = 8, *, start: bool = True) -> None:
        """Allow the device the bus; ``start`` it, with all filters open.

        Raises: DriverError, for a NIC without a PCI face.
        """
        if nic.pci is None:
            raise DriverError(f"{nic.name}: has no PCI face")
        self.pci: Function = nic.pci
        self.host = host
        self.size = size
        self.tx_gpa = host.alloc(16 * size, 16)
        self.rx_gpa = host.alloc(16 * size, 16)
        self._tx = host.memory.view(self.tx_gpa, 16 * size).cast("Q")
        self._rx = host.memory.view(self.rx_gpa, 16 * size).cast("Q")
        self.pci.write_config(4, struct.pack("<H", 7))
        if start:
            self.start()

    def start(self, rctl: int = RCTL_UPE | RCTL_MPE | RCTL_BAM) -> None:
        """Tell the device of the rings, and turn receiver and transmitter on."""
        self.write("CTRL", 1 << 6)
        for prefix, gpa in (("TD", self.tx_gpa), ("RD", self.rx_gpa)):
            self.write(f"{prefix}BAL", gpa & 0xFFFF_FFFF)
            self.write(f"{prefix}BAH", gpa >> 32)
            self.write(f"{prefix}LEN", 16 * self.size)
            self.write(f"{prefix}H", 0)
            self.write(f"{prefix}T", 0)
        self.write("TCTL", TCTL_EN | TCTL_PSP)
        self.write("RCTL", rctl | RCTL_EN)

    # ---- registers

    def read(self, register: str | int, i: int = 0) -> int:
        """Read a register, by name or offset."""
        offset = OFFSETS[register] if isinstance(register, str) else register
        return self.pci.read_bar(0, offset + 4 * i, 4)

    def write(self, register: str | int, value: int, i: int = 0) -> None:
        """Write a register, by name or offset."""
        offset = OFFSETS[register] if isinstance(register, str) else register
        self.pci.write_bar(0, offset + 4 * i, 4, value)

    # ---- descriptors

    def buffer(self, content: Buffer | int) -> int:
        """Allocate a buffer of so many bytes, or with these bytes; return its gpa."""
        data = None if isinstance(content, int) else bytes(content)
        n = content if isinstance(content, int) else len(data or b"")
        gpa = self.host.alloc(max(n, 1), 8)
        if data:
            self.host.memory.view(gpa, len(data))[:] = data
        return gpa

    def tx_desc(self, i: int, low: int, high: int) -> None:
        """Write both words of a transmit descriptor."""
        self._tx[2 * i] = low
        self._tx[2 * i + 1] = high

    def tx_status(self, i: int) -> int:
        """Return the status bits of a transmit descriptor."""
        return self._tx[2 * i + 1] >> 32 & 0xF

    def rx_desc(self, i: int, gpa: int) -> None:
        """Write a receive descriptor."""
        self._rx[2 * i] = gpa
        self._rx[2 * i + 1] = 0

    def rx_word(self, i: int) -> int:
        """Return the second word of a receive descriptor, as the device left it."""
        return self._rx[2 * i + 1]

    def post(self, *sizes: int) -> list[int]:
        """Post receive buffers from descriptor 0 on; return their gpas."""
        gpas = [self.buffer(n) for n in sizes]
        for i, gpa in enumerate(gpas):
            self.rx_desc(i, gpa)
        self.write("RDT", len(gpas))
        return gpas

    def bytes_at(self, gpa: int, n: int) -> bytes:
        """Return what is in memory."""
        return bytes(self.host.memory.view(gpa, n))
