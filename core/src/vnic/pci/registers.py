"""The registers that every function has.  Spec: PCI 3.0, "Configuration Space Organization"."""

from __future__ import annotations

from enum import IntFlag
from typing import Final

CONFIG_SIZE: Final = 256
"""Bytes of configuration space."""

VENDOR_ID: Final = 0x00
COMMAND: Final = 0x04
STATUS: Final = 0x06
REVISION_ID: Final = 0x08
CACHE_LINE_SIZE: Final = 0x0C
LATENCY_TIMER: Final = 0x0D
BASE_ADDRESS: Final = 0x10
SUBSYSTEM_VENDOR_ID: Final = 0x2C
CAPABILITIES: Final = 0x34
INTERRUPT_LINE: Final = 0x3C
INTERRUPT_PIN: Final = 0x3D
MIN_GRANT: Final = 0x3E
HEADER_END: Final = 0x40
"""Where capabilities can begin."""


class Command(IntFlag):
    """What the driver allows the function.  Spec: PCI 3.0, "Device Control"."""

    IO = 1 << 0
    MEMORY = 1 << 1
    BUS_MASTER = 1 << 2
    INVALIDATE = 1 << 4
    PARITY = 1 << 6
    SERR = 1 << 8
    INTERRUPT_DISABLE = 1 << 10


class Status(IntFlag):
    """Spec: PCI 3.0, "Device Status"."""

    INTERRUPT = 1 << 3
    """The function asks for its pin, whether or not it may."""
    CAPABILITIES = 1 << 4
