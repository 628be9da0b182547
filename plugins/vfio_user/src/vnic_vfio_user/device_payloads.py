"""What follows a header where a VMM asks what the device has, and sets its interrupts.

The names are those of Linux's ``<linux/vfio.h>``, which the protocol has all this from.

Spec: vfio-user protocol (QEMU, docs/interop), "Protocol Specification".
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, ClassVar, Final, Self

import attrs
from vnic.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_VECTORS: Final = 2048
"""Spec: PCI 3.0, "MSI-X Capability Structure"."""

# ---- device and regions --------------------------------------------------------------------------


class DeviceFlags(IntFlag):
    """VFIO_DEVICE_FLAGS_*."""

    RESET = 1 << 0
    PCI = 1 << 1


@attrs.frozen(kw_only=True)
class DeviceInfo:
    """How many regions and kinds of interrupts there are; zero in the request.

    Layout: four native-endian u32, 16 bytes.
    Spec: vfio-user, "VFIO_USER_DEVICE_GET_INFO".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IIII")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size)

    argsz: int = LAYOUT.size
    """In a request: the longest payload that the sender takes; in a reply: what all of it has."""
    flags: int = 0
    num_regions: int = 0
    num_irqs: int = 0

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the four fields."""
        argsz, flags, num_regions, num_irqs = cls.LAYOUT.unpack(data)
        return cls(argsz=argsz, flags=flags, num_regions=num_regions, num_irqs=num_irqs)

    def encode(self) -> bytes:
        """Return the 16 bytes."""
        return self.LAYOUT.pack(self.argsz, self.flags, self.num_regions, self.num_irqs)


class Region(IntEnum):
    """VFIO_PCI_*_REGION_INDEX; BARs 0 to 5 are regions 0 to 5."""

    ROM = 6
    CONFIG = 7
    VGA = 8


N_REGIONS: Final = 9


class RegionFlags(IntFlag):
    """VFIO_REGION_INFO_FLAG_*."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


@attrs.frozen(kw_only=True)
class RegionInfo:
    """How large a region is, and what of it can be mapped.

    Layout: four native-endian u32, two u64, 32 bytes; where ``areas`` follow, a capability header
    (two u16, u32), two u32, and two u64 for each.
    Spec: vfio-user, "VFIO_USER_DEVICE_GET_REGION_INFO"; "Region Capabilities".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IIIIQQ")
    SPARSE_MMAP: ClassVar[struct.Struct] = struct.Struct("=HHIII")
    AREA: ClassVar[struct.Struct] = struct.Struct("=QQ")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size)
    CAP_SPARSE_MMAP: ClassVar = 1

    argsz: int = LAYOUT.size
    flags: int = 0
    index: int
    cap_offset: int = 0
    size: int = 0
    offset: int = 0
    """Where in the descriptor the region begins."""
    areas: Sequence[tuple[int, int]] = ()
    """(offset, size) of what can be mapped, in a reply."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the six fields; and the areas, in a reply."""
        fields = dict(
            zip(
                ("argsz", "flags", "index", "cap_offset", "size", "offset"),
                cls.LAYOUT.unpack_from(data),
                strict=True,
            )
        )
        rest = data[cls.LAYOUT.size + cls.SPARSE_MMAP.size :]
        return cls(**fields, areas=tuple(cls.AREA.iter_unpack(rest)))

    def encode(self) -> bytes:
        """Return the fields, and the areas if there are any."""
        head = self.LAYOUT.pack(
            self.argsz, self.flags, self.index, self.cap_offset, self.size, self.offset
        )
        if not self.areas:
            return head
        n = len(self.areas)
        cap = self.SPARSE_MMAP.pack(self.CAP_SPARSE_MMAP, 1, 0, n, 0)
        return head + cap + b"".join(self.AREA.pack(*area) for area in self.areas)


# ---- interrupts ----------------------------------------------------------------------------------


class Irq(IntEnum):
    """VFIO_PCI_*_IRQ_INDEX."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


class IrqFlags(IntFlag):
    """VFIO_IRQ_INFO_*."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


@attrs.frozen(kw_only=True)
class IrqInfo:
    """How many interrupts of a kind there are.

    Layout: four native-endian u32, 16 bytes.
    Spec: vfio-user, "VFIO_USER_DEVICE_GET_IRQ_INFO".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IIII")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size)

    argsz: int = LAYOUT.size
    flags: int = 0
    index: int
    count: int = 0

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the four fields."""
        argsz, flags, index, count = cls.LAYOUT.unpack(data)
        return cls(argsz=argsz, flags=flags, index=index, count=count)

    def encode(self) -> bytes:
        """Return the 16 bytes."""
        return self.LAYOUT.pack(self.argsz, self.flags, self.index, self.count)


class IrqSetFlags(IntFlag):
    """VFIO_IRQ_SET_*: one of DATA, and one of ACTION."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5


@attrs.frozen(kw_only=True)
class IrqSet:
    """What is to happen with interrupts ``start`` to ``start + count``.

    Layout: five native-endian u32, then a byte each with DATA_BOOL.
    Spec: vfio-user, "VFIO_USER_DEVICE_SET_IRQS".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IIIII")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size + MAX_VECTORS)

    argsz: int = LAYOUT.size
    flags: int
    """`IrqSetFlags`."""
    index: int
    """`Irq`."""
    start: int = 0
    count: int
    data: bytes = b""
    """With DATA_BOOL: which of them."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the fields and the bytes behind them.

        Raises: PeerError, when there are not as many as the flags and the count say.
        """
        argsz, flags, index, start, count = cls.LAYOUT.unpack_from(data)
        content = data[cls.LAYOUT.size :]
        needs = count if flags & IrqSetFlags.DATA_BOOL else 0
        if len(content) != needs:
            raise PeerError(f"{len(content)} bytes of data, needs {needs}")
        return cls(argsz=argsz, flags=flags, index=index, start=start, count=count, data=content)

    def encode(self) -> bytes:
        """Return fields and bytes."""
        head = self.LAYOUT.pack(self.argsz, self.flags, self.index, self.start, self.count)
        return head + self.data
