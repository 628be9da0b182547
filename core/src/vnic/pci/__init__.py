"""A PCI function: what a frontend describes, a driver configures and a host drives.

A frontend says what it is, and handles its own registers::

    class Counter:
        def __init__(self, host: Host) -> None:
            self.count = 0
            self.pci = Function(
                host,
                Identity(vendor=0x1234, device=0x0001, class_code=0xFF0000),
                [Bar(index=0, size=0x1000, registers=self)],
            )

        def read(self, offset: int, n: int) -> int:
            return self.count

        def write(self, offset: int, n: int, value: int) -> None:
            self.count = value
            self.pci.set_irq(bool(value))

A host reads and writes configuration space and BARs on behalf of the guest; whatever it passes on,
nothing raises but what the frontend's own registers raise.

Spec: PCI Local Bus 3.0; PCI Bus Power Management Interface 1.2.
"""

from vnic.pci.description import (
    Area,
    Bar,
    BarKind,
    Capability,
    FunctionLevelReset,
    Identity,
    Mappable,
    Msi,
    MsiX,
    PowerManagement,
    Registers,
    VendorSpecific,
)
from vnic.pci.function import Function
from vnic.pci.registers import CONFIG_SIZE, Command, Status
from vnic.pci.vectors import Message

__all__ = [
    "CONFIG_SIZE",
    "Area",
    "Bar",
    "BarKind",
    "Capability",
    "Command",
    "Function",
    "FunctionLevelReset",
    "Identity",
    "Mappable",
    "Message",
    "Msi",
    "MsiX",
    "PowerManagement",
    "Registers",
    "Status",
    "VendorSpecific",
]
