"""What follows a message's header: bytes on one side, attrs objects on the other.

Sizes and reserved bits are checked here; what is refused is named by `messages`.

Spec: vhost-user protocol (QEMU, docs/interop), "Message Specification".
"""

from __future__ import annotations

import struct
from typing import ClassVar, Final, Protocol, Self

import attrs
from vnic.errors import PeerError

MAX_TABLE_REGIONS: Final = 8
"""Regions in one SET_MEM_TABLE.  Spec: "Multiple Memory regions description"."""

MAX_CONFIG: Final = 256
"""Bytes of configuration space; the size of QEMU's buffer, and of every other VMM's."""

U64_END: Final = 1 << 64


class Payload(Protocol):
    """What follows a header; each class below is one."""

    SIZES: ClassVar[tuple[int, int]]
    """The least and the most bytes that it takes."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; the size is within SIZES.

        Raises: PeerError, without the request's name.
        """

    def encode(self) -> bytes:
        """Return its bytes."""


@attrs.frozen
class Empty:
    """No payload."""

    SIZES: ClassVar = (0, 0)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return it."""
        return cls()

    def encode(self) -> bytes:
        """Return no bytes."""
        return b""


@attrs.frozen
class U64:
    """A number.  Spec: vhost-user, "A single 64-bit integer"."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=Q")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size)

    value: int

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the number."""
        return cls(*cls.LAYOUT.unpack(data))

    def encode(self) -> bytes:
        """Return the 8 bytes."""
        return self.LAYOUT.pack(self.value)


@attrs.frozen(kw_only=True)
class VringState:
    """A number for one queue.

    Layout: two native-endian u32, 8 bytes.
    Spec: vhost-user, "A vring state description"; "A vring descriptor index for split virtqueues".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=II")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size)

    index: int
    """The queue."""
    num: int = 0
    """Its size, its next avail index, or whether it is enabled."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read queue and number."""
        index, num = cls.LAYOUT.unpack(data)
        return cls(index=index, num=num)

    def encode(self) -> bytes:
        """Return the 8 bytes."""
        return self.LAYOUT.pack(self.index, self.num)


@attrs.frozen(kw_only=True)
class VringDescriptor:
    """Which queue the descriptor that comes along is for, or that none comes.

    Layout: a native-endian u64: the queue in bits 0 to 7, NOFD in bit 8.
    Spec: vhost-user, "Front-end message types", ``VHOST_USER_SET_VRING_KICK``.
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=Q")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size)
    INDEX_MASK: ClassVar = 0xFF
    NOFD: ClassVar = 1 << 8

    index: int
    nofd: bool = False
    """No descriptor: poll instead of waiting for a kick; make no call."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read queue and flag.

        Raises: PeerError, for bits beyond the two: a queue that is cut to 8 bits is another one.
        """
        (value,) = cls.LAYOUT.unpack(data)
        if value & ~(cls.INDEX_MASK | cls.NOFD):
            raise PeerError(f"{value:#x} has bits beyond the queue (0-7) and NOFD (8)")
        return cls(index=value & cls.INDEX_MASK, nofd=bool(value & cls.NOFD))

    def encode(self) -> bytes:
        """Return the 8 bytes."""
        return self.LAYOUT.pack(self.index | (self.NOFD if self.nofd else 0))


@attrs.frozen(kw_only=True)
class VringAddress:
    """Where a queue lies, in the VMM's own addresses.

    Layout: two native-endian u32, four u64, 40 bytes.
    Spec: vhost-user, "A vring address description".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IIQQQQ")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size)

    index: int
    flags: int = 0
    """Bit 0: log what is written to the used ring."""
    desc_user_addr: int
    used_user_addr: int
    avail_user_addr: int
    log_guest_addr: int = 0

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the six fields."""
        index, flags, desc, used, avail, log = cls.LAYOUT.unpack(data)
        return cls(
            index=index,
            flags=flags,
            desc_user_addr=desc,
            used_user_addr=used,
            avail_user_addr=avail,
            log_guest_addr=log,
        )

    def encode(self) -> bytes:
        """Return the 40 bytes."""
        return self.LAYOUT.pack(
            self.index,
            self.flags,
            self.desc_user_addr,
            self.used_user_addr,
            self.avail_user_addr,
            self.log_guest_addr,
        )


@attrs.frozen(kw_only=True)
class MemoryRegion:
    """One stretch of guest memory that the VMM shares.

    Layout: four native-endian u64, 32 bytes.
    Spec: vhost-user, "Memory region description".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=QQQQ")

    guest_addr: int
    """Guest-physical address of the first byte."""
    size: int
    """Bytes; not 0, and neither address space wraps within them."""
    user_addr: int
    """Where the VMM has the first byte; ring addresses refer to it."""
    mmap_offset: int = 0
    """Offset of the first byte in the file."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the four fields.

        Raises: PeerError, for a size of 0 or a range that wraps.
        """
        guest_addr, size, user_addr, mmap_offset = cls.LAYOUT.unpack(data)
        region = cls(guest_addr=guest_addr, size=size, user_addr=user_addr, mmap_offset=mmap_offset)
        if not size or max(guest_addr, user_addr, mmap_offset) > U64_END - size:
            raise PeerError(f"{region}: is empty, or wraps beyond 64 bits")
        return region

    def encode(self) -> bytes:
        """Return the 32 bytes."""
        return self.LAYOUT.pack(self.guest_addr, self.size, self.user_addr, self.mmap_offset)

    def __str__(self) -> str:
        return (
            f"region {self.guest_addr:#x} of {self.size:#x} bytes "
            f"(user address {self.user_addr:#x}, offset {self.mmap_offset:#x})"
        )


@attrs.frozen(kw_only=True)
class MemoryTable:
    """All regions at once; as many descriptors come along, in the same order.

    Layout: native-endian u32 count, u32 padding, then the regions.
    Spec: vhost-user, "Multiple Memory regions description".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=II")
    SIZES: ClassVar = (
        LAYOUT.size,
        LAYOUT.size + MAX_TABLE_REGIONS * MemoryRegion.LAYOUT.size,
    )

    regions: tuple[MemoryRegion, ...]

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read count and regions.

        Raises: PeerError, when they don't fill the payload, and for a region that can't be.
        """
        (n, _padding), step = cls.LAYOUT.unpack_from(data), MemoryRegion.LAYOUT.size
        if n > MAX_TABLE_REGIONS:
            raise PeerError(f"{n} regions, at most {MAX_TABLE_REGIONS} are possible")
        needs = cls.LAYOUT.size + n * step
        if len(data) != needs:
            raise PeerError(f"payload is {len(data)} bytes, its {n} regions need {needs}")
        starts = range(cls.LAYOUT.size, needs, step)
        return cls(regions=tuple(MemoryRegion.decode(data[at : at + step]) for at in starts))

    def encode(self) -> bytes:
        """Return count, padding and regions."""
        head = self.LAYOUT.pack(len(self.regions), 0)
        return head + b"".join(region.encode() for region in self.regions)


@attrs.frozen(kw_only=True)
class SingleRegion:
    """One region that comes or goes.

    Layout: native-endian u64 padding, then the region, 40 bytes.
    Spec: vhost-user, "Single memory region description".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=Q")
    SIZES: ClassVar = (LAYOUT.size + MemoryRegion.LAYOUT.size,) * 2

    region: MemoryRegion

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the region.

        Raises: PeerError, for a region that can't be.
        """
        return cls(region=MemoryRegion.decode(data[cls.LAYOUT.size :]))

    def encode(self) -> bytes:
        """Return padding and region."""
        return self.LAYOUT.pack(0) + self.region.encode()


@attrs.frozen(kw_only=True)
class ConfigSpace:
    """A stretch of the device's configuration space.

    Layout: native-endian u32 offset, size, flags, then the bytes.
    Spec: vhost-user, "Virtio device config space".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=III")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size + MAX_CONFIG)

    offset: int
    flags: int = 0
    """1: for a migration, so that even what is read-only may be written."""
    data: bytes
    """Its length is the size field; in a request to read, the bytes mean nothing."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read offset, flags and bytes.

        Raises: PeerError, when they don't fill the payload, or reach beyond the space.
        """
        offset, size, flags = cls.LAYOUT.unpack_from(data)
        content = data[cls.LAYOUT.size :]
        if len(content) != size:
            raise PeerError(
                f"payload is {len(data)} bytes, its size field of {size} needs "
                f"{cls.LAYOUT.size + size}"
            )
        if offset + size > MAX_CONFIG:
            raise PeerError(f"{size} bytes at {offset:#x} end beyond {MAX_CONFIG:#x}")
        return cls(offset=offset, flags=flags, data=content)

    def encode(self) -> bytes:
        """Return header and bytes."""
        return self.LAYOUT.pack(self.offset, len(self.data), self.flags) + self.data
