"""What a frontend says about its PCI function.

A description that can't be is its author's mistake: ValueError.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import ClassVar, Final, Protocol

import attrs

PAGE: Final = 0x1000
"""The grain of what a host can map."""

N_BARS: Final = 6


class Registers(Protocol):
    """Answers the guest's accesses to a BAR, or to a capability.

    ``n`` is 1, 2 or 4 (8 as well, in a BAR of ``width`` 8), ``offset`` a multiple of it, and both
    lie within the BAR: accesses of other sizes and alignments arrive in pieces, lowest first.
    """

    def read(self, offset: int, n: int) -> int:
        """Return the value of ``n`` bytes, little-endian; bits beyond them are cut off."""

    def write(self, offset: int, n: int, value: int) -> None:
        """Take a value of ``n`` bytes.  What it sets in motion is scheduled, not done here."""


@attrs.frozen(kw_only=True)
class Identity:
    """Who the function says it is.  Spec: PCI 3.0, "Device Identification"."""

    vendor: int
    device: int
    revision: int = 0
    class_code: int
    """24 bits: base class, subclass, programming interface; 0x020000 is Ethernet."""
    subsystem_vendor: int = 0
    subsystem: int = 0
    min_grant: int = 0
    max_latency: int = 0

    def __attrs_post_init__(self) -> None:
        bits = {"revision": 8, "class_code": 24, "min_grant": 8, "max_latency": 8}
        for field in attrs.fields(Identity):
            value, width = getattr(self, field.name), bits.get(field.name, 16)
            if not 0 <= value < 1 << width:
                raise ValueError(f"{field.name}: {value:#x} does not fit in {width} bits")


# ---- base address registers ----------------------------------------------------------------------


class BarKind(Enum):
    """Which address space a BAR lies in."""

    MEMORY = "memory"
    IO = "io"


@attrs.frozen
class Area:
    """A part of a BAR that is plain memory."""

    offset: int
    """Within the BAR, and within the descriptor that it is mapped from; whole pages."""
    size: int


@attrs.frozen(kw_only=True)
class Mappable:
    """Memory that a host may map into the guest in place of parts of a BAR.

    An access there then reaches nobody: whoever described it looks at the memory.  A host that
    doesn't map it passes accesses to the BAR's registers as everywhere else.
    """

    fd: int
    """A file at least as large as the last area's end; the frontend's, open as long as the
    function lives."""
    areas: Sequence[Area]


@attrs.frozen(kw_only=True)
class Bar:
    """A stretch of registers, somewhere in memory or I/O space."""

    index: int
    """0 to 5; one with ``wide`` addresses takes the next index as well."""
    size: int
    """A power of two; at least 16 bytes in memory, 4 to 256 in I/O space."""
    registers: Registers
    kind: BarKind = BarKind.MEMORY
    wide: bool = False
    """Its address has 64 bits."""
    prefetchable: bool = False
    width: int = 4
    """The widest access that the registers take: 4 or 8."""
    mappable: Mappable | None = None

    def __attrs_post_init__(self) -> None:
        io = self.kind is BarKind.IO
        what = f"BAR {self.index}"
        if not 0 <= self.index < N_BARS - self.wide:
            raise ValueError(f"{what}: there are BARs 0 to {N_BARS - 1}")
        least, most = (4, 256) if io else (16, 1 << (63 if self.wide else 31))
        if self.size & (self.size - 1) or not least <= self.size <= most:
            raise ValueError(f"{what}: size {self.size:#x} is no power of two in {least} to {most}")
        if io and (self.wide or self.prefetchable or self.mappable):
            raise ValueError(f"{what}: I/O space is 32 bits wide and can't be mapped")
        if self.width not in (4, 8):
            raise ValueError(f"{what}: width {self.width}; 4 or 8")
        for area in self.mappable.areas if self.mappable else ():
            if (area.offset | area.size) % PAGE or not area.size:
                raise ValueError(f"{what}: {area} is not of whole pages")
            if area.offset + area.size > self.size:
                raise ValueError(f"{what}: {area} ends beyond {self.size:#x}")

    def encode(self) -> Iterator[tuple[int, int]]:
        """Yield (value at reset, writable bits) of each 32-bit register that it takes.

        That the address bits below the size can't be written is how its size is found out.
        """
        address_mask = -self.size
        if self.kind is BarKind.IO:
            yield 0b01, address_mask & 0xFFFF_FFFC
        else:
            kind = (0b100 if self.wide else 0) | (0b1000 if self.prefetchable else 0)
            yield kind, address_mask & 0xFFFF_FFF0
            if self.wide:
                yield 0, address_mask >> 32 & 0xFFFF_FFFF


# ---- capabilities --------------------------------------------------------------------------------


class Capability(Protocol):
    """An entry of the list of capabilities.  Spec: PCI 3.0, "Capabilities List"."""

    ID: ClassVar[int]

    @property
    def at(self) -> int | None:
        """Where in configuration space; None: behind the one before."""

    def encode(self) -> tuple[bytes, bytes]:
        """Return (bytes at reset, writable bits) of what follows identifier and next pointer."""


@attrs.frozen(kw_only=True)
class PowerManagement:
    """D0 and D3hot.  Back from D3hot to D0 the function is reset, unless it says otherwise.

    Layout: u16 capabilities, u16 control and status, u8 bridge, u8 data, after the header.
    Spec: PCI Power Management 1.2, "Power Management Register Block Definition".
    """

    ID: ClassVar = 0x01
    CONTROL: ClassVar = 4
    STATE_MASK: ClassVar = 0b11
    D3HOT: ClassVar = 0b11
    NO_SOFT_RESET: ClassVar = 1 << 3

    no_soft_reset: bool = False
    at: int | None = None

    def encode(self) -> tuple[bytes, bytes]:
        """Return the six bytes, version 1.2, no PME#."""
        control = self.NO_SOFT_RESET if self.no_soft_reset else 0
        return struct.pack("<HHBB", 3, control, 0, 0), struct.pack("<HHBB", 0, 0b11, 0, 0)


@attrs.frozen(kw_only=True)
class Msi:
    """Interrupts as messages.  64-bit addresses.  Spec: PCI 3.0, "MSI Capability Structure".

    Layout: u16 control, u64 address, u16 data; and u16, u32 mask, u32 pending where maskable.
    """

    ID: ClassVar = 0x05
    CONTROL: ClassVar = 2
    ADDRESS: ClassVar = 4
    DATA: ClassVar = 12
    MASK: ClassVar = 16
    PENDING: ClassVar = 20
    ENABLE: ClassVar = 1 << 0
    WIDE: ClassVar = 1 << 7
    MASKABLE: ClassVar = 1 << 8

    vectors: int = 1
    """A power of two up to 32."""
    maskable: bool = False
    """Each vector can be masked."""
    at: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.vectors not in (1, 2, 4, 8, 16, 32):
            raise ValueError(f"MSI: {self.vectors} vectors; a power of two up to 32 is needed")

    def encode(self) -> tuple[bytes, bytes]:
        """Return control, address and data; and masks."""
        capable = self.vectors.bit_length() - 1
        control = self.WIDE | capable << 1 | (self.MASKABLE if self.maskable else 0)
        body = struct.pack("<HQH", control, 0, 0)
        writable = struct.pack("<HQH", self.ENABLE | 0b111 << 4, (1 << 64) - 4, 0xFFFF)
        if self.maskable:
            body += bytes(10)
            writable += struct.pack("<HII", 0, (1 << self.vectors) - 1, 0)
        return body, writable


@attrs.frozen(kw_only=True)
class MsiX:
    """Interrupts as messages, by a table in a BAR.  Spec: PCI 3.0, "MSI-X Capability Structure".

    Table and pending bits are the function's: the BAR's registers never see accesses there.
    Layout: u16 control, u32 table, u32 pending bits (each: BAR in bits 0 to 2, offset above).
    """

    ID: ClassVar = 0x11
    CONTROL: ClassVar = 2
    FUNCTION_MASK: ClassVar = 1 << 14
    ENABLE: ClassVar = 1 << 15
    ENTRY: ClassVar = 16

    vectors: int
    """1 to 2048."""
    table_bar: int
    table_offset: int = 0
    pba_bar: int
    pba_offset: int
    at: int | None = None

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.vectors <= 2048:
            raise ValueError(f"MSI-X: {self.vectors} vectors; 1 to 2048 are possible")
        if (self.table_offset | self.pba_offset) % 8:
            raise ValueError("MSI-X: the offsets of table and pending bits are multiples of 8")

    @property
    def table_size(self) -> int:
        """Bytes of the table."""
        return self.ENTRY * self.vectors

    @property
    def pba_size(self) -> int:
        """Bytes of the pending bits: whole 64-bit words."""
        return -(-self.vectors // 64) * 8

    def encode(self) -> tuple[bytes, bytes]:
        """Return control and the two places."""
        table, pba = self.table_offset | self.table_bar, self.pba_offset | self.pba_bar
        body = struct.pack("<HII", self.vectors - 1, table, pba)
        return body, struct.pack("<HII", self.ENABLE | self.FUNCTION_MASK, 0, 0)


@attrs.frozen(kw_only=True)
class FunctionLevelReset:
    """Lets the driver reset the function.  Spec: PCI ECN "Advanced Capabilities", 2006.

    Layout: u8 length, u8 capabilities, u8 control, u8 status.
    """

    ID: ClassVar = 0x13
    CONTROL: ClassVar = 4
    INITIATE: ClassVar = 1 << 0

    at: int | None = None

    def encode(self) -> tuple[bytes, bytes]:
        """Return the four bytes: transactions-pending and reset are offered."""
        return bytes((6, 0b11, 0, 0)), bytes((0, 0, self.INITIATE, 0))


@attrs.frozen(kw_only=True)
class VendorSpecific:
    """Whatever a vendor, or another standard, puts there.

    Spec: PCI 3.0, "Capability IDs", 9: the byte after the header is the whole's length.
    """

    ID: ClassVar = 0x09

    body: bytes
    """What follows identifier and next pointer, the length byte first."""
    writable: bytes = b""
    """Bits that the driver can write; none beyond its end."""
    registers: Registers | None = None
    """Answers all accesses behind the length byte, instead of the bytes above; offsets count from
    the capability's start, at most 4 bytes each."""
    at: int | None = None

    def __attrs_post_init__(self) -> None:
        if not self.body or self.body[0] != len(self.body) + 2:
            raise ValueError(
                f"vendor-specific capability: its first byte is its length, {len(self.body) + 2}"
            )
        if len(self.writable) > len(self.body):
            raise ValueError("vendor-specific capability: writable bits beyond its end")

    def encode(self) -> tuple[bytes, bytes]:
        """Return body and writable bits."""
        return self.body, self.writable.ljust(len(self.body), b"\0")
