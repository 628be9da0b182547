"""The protocol's messages: bytes on one side, attrs objects on the other.

Syntax is checked here (sizes, flags, how many descriptors belong to a message); what a message
means for the device is `connection`'s business.  ``command`` stands for the specification's
``VFIO_USER_`` names without that prefix.

Spec: vfio-user protocol (QEMU, docs/interop), "Protocol Specification"; what it takes from Linux's
``<linux/vfio.h>`` keeps the names of there.
"""

from __future__ import annotations

import json
import struct
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self

import attrs
from vnic.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAJOR: Final = 0
MINOR: Final = 0

MAX_DATA: Final = 4096
"""Bytes in one region access: all of configuration space, and as much of a BAR as a thousand
register accesses, a millisecond's work, return."""

MAX_FDS: Final = 16
"""Descriptors with one message: the most that QEMU lets a server ask for."""

MAX_CAPABILITIES: Final = 4096
"""Bytes of JSON in VERSION; QEMU's are some 200."""

MAX_WRITES: Final = 1024
"""Writes in one REGION_WRITE_MULTI; QEMU puts 200 in one."""

MAX_VECTORS: Final = 2048
"""Spec: PCI 3.0, "MSI-X Capability Structure"."""

U64_END: Final = 1 << 64


class Command(IntEnum):
    """What a VMM can ask.  Spec: "Commands"."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    DIRTY_PAGES = 14
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18


class HeaderFlags(IntFlag):
    """A header's flags."""

    REPLY = 1 << 0
    """The type, four bits wide: a reply.  On every message from us, and on none to us."""
    NO_REPLY = 1 << 4
    ERROR = 1 << 5
    """In a reply: it could not be done, and the error field may say why."""


NO_FLAGS: Final = HeaderFlags(0)
_FLAGS_MASK: Final = int(HeaderFlags.REPLY | HeaderFlags.NO_REPLY | HeaderFlags.ERROR)


@attrs.frozen(kw_only=True)
class Header:
    """What every message begins with.

    Layout: two native-endian u16, three u32, 16 bytes.
    Spec: vfio-user, "Header".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=HHIII")
    SIZE: ClassVar[int] = LAYOUT.size

    id: int
    """The sender's; the reply has the same."""
    command: int
    """A `Command`, or a number that no specification knows."""
    size: int
    """Bytes of the whole message, this header among them."""
    flags: HeaderFlags = NO_FLAGS
    error: int = 0
    """In a reply that failed: an errno, positive."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the 16 bytes.

        Raises: PeerError, for flags that do not exist, and a size that leaves no room for it.
        """
        number, command, size, flags, error = cls.LAYOUT.unpack(data)
        if flags & ~_FLAGS_MASK:
            raise PeerError(f"{command_name(command)}: there are no flags {flags:#x}")
        if size < cls.SIZE:
            raise PeerError(
                f"{command_name(command)}: size is {size} bytes, its header alone has {cls.SIZE}"
            )
        return cls(id=number, command=command, size=size, flags=HeaderFlags(flags), error=error)

    def encode(self) -> bytes:
        """Return the 16 bytes."""
        return self.LAYOUT.pack(self.id, self.command, self.size, self.flags, self.error)


class Payload(Protocol):
    """What follows a header; each class below is one."""

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


# ---- what the device has -------------------------------------------------------------------------


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


# ---- which payload and how many descriptors belong to which command ------------------------------


@attrs.frozen
class Form:
    """What a request looks like."""

    payload: type[Payload]
    max_fds: int = 0


FORMS: Final[dict[int, Form]] = {
    Command.VERSION: Form(Version),
    Command.DMA_MAP: Form(DmaMap, 1),
    Command.DMA_UNMAP: Form(DmaUnmap),
    Command.DEVICE_GET_INFO: Form(DeviceInfo),
    Command.DEVICE_GET_REGION_INFO: Form(RegionInfo),
    Command.DEVICE_GET_IRQ_INFO: Form(IrqInfo),
    Command.DEVICE_SET_IRQS: Form(IrqSet, MAX_FDS),
    Command.REGION_READ: Form(RegionAccess),
    Command.REGION_WRITE: Form(RegionWrite),
    Command.DEVICE_RESET: Form(Empty),
    Command.REGION_WRITE_MULTI: Form(WriteMulti),
}
"""The commands that are served."""

UNSERVED: Final = Form(Raw)
"""Every other one is answered with an error, whatever it carries: that is how a VMM finds out."""


def command_name(number: int) -> str:
    """Return ``DMA_MAP``, or ``command 99`` for one that does not exist."""
    try:
        return Command(number).name
    except ValueError:
        return f"command {number}"


def check_header(header: Header) -> Form:
    """Return the form of the message that this header begins.

    Raises: PeerError, for a reply, or a size that can't be: before a byte of the payload is read.
    """
    if header.flags & ~HeaderFlags.NO_REPLY:
        raise PeerError(
            f"{command_name(header.command)}: is marked as a reply, and nothing was asked"
        )
    form = FORMS.get(header.command, UNSERVED)
    least, most = form.payload.SIZES
    size = header.size - Header.SIZE
    if not least <= size <= most:
        sizes = f"{most}" if least == most else f"{least} to {most}"
        raise PeerError(f"{command_name(header.command)}: payload is {size} bytes, needs {sizes}")
    return form


def decode_payload(command: int, form: Form, data: bytes, n_fds: int) -> Payload:
    """Return the message's payload, all syntax checked.

    Raises: PeerError, naming the command.
    """
    try:
        if n_fds > form.max_fds:
            raise PeerError(f"{n_fds} descriptors came along, at most {form.max_fds} belong to it")
        return form.payload.decode(data)
    except PeerError as error:
        raise PeerError(f"{command_name(command)}: {error}") from None


def encode_message(
    number: int,
    command: int,
    payload: Payload | None = None,
    flags: HeaderFlags = NO_FLAGS,
    error: int = 0,
) -> bytes:
    """Return header and payload in one."""
    content = payload.encode() if payload is not None else b""
    size = Header.SIZE + len(content)
    return Header.LAYOUT.pack(number, command, size, flags, error) + content
