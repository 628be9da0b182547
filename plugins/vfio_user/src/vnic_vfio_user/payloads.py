"""What follows a message's header: bytes on one side, attrs objects on the other.

Sizes and counts are checked here; what is refused is named by `messages`.  What a VMM asks of the
device itself is in `device_payloads`.

Spec: vfio-user protocol (QEMU, docs/interop), "Protocol Specification".
"""

from __future__ import annotations

import json
import struct
from enum import IntFlag
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self

import attrs
from vnic.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAJOR: Final = 0
MINOR: Final = 0

MAX_DATA: Final = 4096
"""Bytes in one region access: all of configuration space, and as much of a BAR as a thousand
register accesses, a millisecond's work, return."""

MAX_CAPABILITIES: Final = 4096
"""Bytes of JSON in VERSION; QEMU's are some 200."""

MAX_WRITES: Final = 1024
"""Writes in one REGION_WRITE_MULTI; QEMU puts 200 in one."""

U64_END: Final = 1 << 64


class Payload(Protocol):
    """What follows a header; each class below is one, and each in `device_payloads`."""

    SIZES: ClassVar[tuple[int, int]]
    """The least and the most bytes that it takes."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read it; the size is within SIZES.

        Raises: PeerError, without the command's name.
        """

    def encode(self) -> bytes:
        """Return its bytes."""


@attrs.frozen
class Raw:
    """Bytes that nobody here reads: of a command that is refused, or of a test."""

    SIZES: ClassVar = (0, 65536)

    data: bytes = b""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Keep them."""
        return cls(data)

    def encode(self) -> bytes:
        """Return them."""
        return self.data


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


@attrs.frozen(kw_only=True)
class Version:
    """What a side speaks.

    Layout: two native-endian u16, then JSON with a NUL at its end, or nothing.
    Spec: vfio-user, "VFIO_USER_VERSION".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=HH")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size + MAX_CAPABILITIES)

    major: int = MAJOR
    minor: int = MINOR
    capabilities: Mapping[str, Any] | None = None
    """None: there is no JSON."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read numbers and capabilities.

        Raises: PeerError, for what is no JSON object with an object ``capabilities``.
        """
        major, minor = cls.LAYOUT.unpack_from(data)
        text = data[cls.LAYOUT.size :]
        if not text:
            return cls(major=major, minor=minor)
        if text.find(0) != len(text) - 1:
            raise PeerError("its JSON does not end with the message's only NUL")
        try:
            value = json.loads(text[:-1])
        except (ValueError, RecursionError) as error:
            raise PeerError(f"its capabilities are no JSON: {error}") from None
        capabilities = value.get("capabilities", {}) if isinstance(value, dict) else None
        if not isinstance(capabilities, dict):
            raise PeerError('its JSON is no object with an object "capabilities"')
        return cls(major=major, minor=minor, capabilities=capabilities)

    def encode(self) -> bytes:
        """Return numbers and JSON."""
        head = self.LAYOUT.pack(self.major, self.minor)
        if self.capabilities is None:
            return head
        text = json.dumps({"capabilities": dict(self.capabilities)}, separators=(",", ":"))
        return head + text.encode() + b"\0"


# ---- memory --------------------------------------------------------------------------------------


class DmaFlags(IntFlag):
    """What the device may do with a range."""

    READ = 1 << 0
    WRITE = 1 << 1


class UnmapFlags(IntFlag):
    """VFIO's; the specification of vfio-user has none, QEMU sends ALL."""

    GET_DIRTY_BITMAP = 1 << 0
    ALL = 1 << 1


@attrs.frozen(kw_only=True)
class DmaMap:
    """A range of guest memory; its descriptor may come along.

    Layout: two native-endian u32, three u64, 32 bytes.
    Spec: vfio-user, "VFIO_USER_DMA_MAP".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IIQQQ")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size)

    argsz: int = LAYOUT.size
    flags: int
    """`DmaFlags`."""
    offset: int = 0
    """Of the range's first byte in the file."""
    address: int
    """Guest-physical, where no IOMMU is between."""
    size: int

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the five fields."""
        argsz, flags, offset, address, size = cls.LAYOUT.unpack(data)
        return cls(argsz=argsz, flags=flags, offset=offset, address=address, size=size)

    def encode(self) -> bytes:
        """Return the 32 bytes."""
        return self.LAYOUT.pack(self.argsz, self.flags, self.offset, self.address, self.size)


@attrs.frozen(kw_only=True)
class DmaUnmap:
    """A range that goes.  The reply says the same.

    Layout: two native-endian u32, two u64, 24 bytes.
    Spec: vfio-user, "VFIO_USER_DMA_UNMAP".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IIQQ")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size)

    argsz: int = LAYOUT.size
    flags: int = 0
    """`UnmapFlags`."""
    address: int
    size: int

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the four fields."""
        argsz, flags, address, size = cls.LAYOUT.unpack(data)
        return cls(argsz=argsz, flags=flags, address=address, size=size)

    def encode(self) -> bytes:
        """Return the 24 bytes."""
        return self.LAYOUT.pack(self.argsz, self.flags, self.address, self.size)


# ---- accesses ------------------------------------------------------------------------------------


@attrs.frozen
class RegionAccess:
    """A stretch of a region; with the bytes, in a request to write or a reply to a read.

    Layout: native-endian u64, two u32, 16 bytes, then the bytes.
    Spec: vfio-user, "VFIO_USER_REGION_READ"; "VFIO_USER_REGION_WRITE".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=QII")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size)

    offset: int
    region: int
    count: int
    data: bytes = b""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the three fields, and what follows."""
        offset, region, count = cls.LAYOUT.unpack_from(data)
        return cls(offset, region, count, data[16:])

    def encode(self) -> bytes:
        """Return fields and bytes."""
        return self.LAYOUT.pack(self.offset, self.region, self.count) + self.data


@attrs.frozen
class RegionWrite(RegionAccess):
    """A request to write: as many bytes as ``count`` says."""

    SIZES: ClassVar = (RegionAccess.LAYOUT.size, RegionAccess.LAYOUT.size + MAX_DATA)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read fields and bytes.

        Raises: PeerError, when there are not as many bytes as the count says.
        """
        offset, region, count = cls.LAYOUT.unpack_from(data)
        if len(data) != 16 + count:
            raise PeerError(f"{len(data) - 16} bytes of data, its count says {count}")
        return cls(offset, region, count, data[16:])


@attrs.frozen
class WriteMulti:
    """Several short writes, in order.  The reply is their number alone.

    Layout: native-endian u64 count; then for each u64, two u32, 8 bytes.
    Spec: vfio-user, "VFIO_USER_REGION_WRITE_MULTI".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=Q")
    WRITE: ClassVar[struct.Struct] = struct.Struct("=QII8s")
    SIZES: ClassVar = (LAYOUT.size, LAYOUT.size + MAX_WRITES * WRITE.size)

    writes: tuple[RegionWrite, ...]

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the writes.

        Raises: PeerError, when they don't fill the payload, and for one of more than 8 bytes.
        """
        (n,) = cls.LAYOUT.unpack_from(data)
        content = data[cls.LAYOUT.size :]
        if len(content) != n * cls.WRITE.size:
            raise PeerError(f"{len(content)} bytes of writes, {n} of them have {cls.WRITE.size}")
        writes = []
        for offset, region, count, word in cls.WRITE.iter_unpack(content):
            if count > len(word):
                raise PeerError(f"a write of {count} bytes, at most {len(word)} have room")
            writes.append(RegionWrite(offset, region, count, word[:count]))
        return cls(tuple(writes))

    def encode(self) -> bytes:
        """Return count and writes."""
        return self.LAYOUT.pack(len(self.writes)) + b"".join(
            self.WRITE.pack(write.offset, write.region, write.count, write.data)
            for write in self.writes
        )
