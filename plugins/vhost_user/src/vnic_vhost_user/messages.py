"""The protocol's messages: bytes on one side, attrs objects on the other.

Syntax is checked here (sizes, reserved bits, how many descriptors belong to a message); what a
message means for the device is `connection`'s business.  ``request`` stands for the
specification's ``VHOST_USER_`` names without that prefix.

Spec: vhost-user protocol (QEMU, docs/interop), "Message Specification".
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self

import attrs
from vnic.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION: Final = 1
"""The only version there is; the lower two bits of a header's flags."""

F_PROTOCOL_FEATURES: Final = 1 << 30
"""The bit among the virtio features that says: protocol features can be negotiated."""

MAX_TABLE_REGIONS: Final = 8
"""Regions in one SET_MEM_TABLE.  Spec: "Multiple Memory regions description"."""

MAX_CONFIG: Final = 256
"""Bytes of configuration space; the size of QEMU's buffer, and of every other VMM's."""

U64_END: Final = 1 << 64


class Request(IntEnum):
    """What a VMM can ask.  Spec: "Front-end message types"."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SEND_RARP = 19
    NET_SET_MTU = 20
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    SET_VRING_ENDIAN = 23
    GET_CONFIG = 24
    SET_CONFIG = 25
    CREATE_CRYPTO_SESSION = 26
    CLOSE_CRYPTO_SESSION = 27
    POSTCOPY_ADVISE = 28
    POSTCOPY_LISTEN = 29
    POSTCOPY_END = 30
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    VRING_KICK = 35
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    GET_SHARED_OBJECT = 41
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43
    GET_SHMEM_CONFIG = 44


class ProtocolFeatures(IntFlag):
    """Extensions of the protocol.  Spec: "Protocol features"."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    RARP = 1 << 2
    REPLY_ACK = 1 << 3
    NET_MTU = 1 << 4
    BACKEND_REQ = 1 << 5
    CROSS_ENDIAN = 1 << 6
    CRYPTO_SESSION = 1 << 7
    PAGEFAULT = 1 << 8
    CONFIG = 1 << 9
    BACKEND_SEND_FD = 1 << 10
    HOST_NOTIFIER = 1 << 11
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    INBAND_NOTIFICATIONS = 1 << 14
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


class HeaderFlags(IntFlag):
    """A header's flags above the version."""

    REPLY = 1 << 2
    """On every message from us, and on none to us."""
    NEED_REPLY = 1 << 3
    """Tell whether it worked.  Means something once REPLY_ACK is negotiated."""


NO_FLAGS: Final = HeaderFlags(0)
NO_FEATURES: Final = ProtocolFeatures(0)

_VERSION_MASK: Final = 0b11
_FLAGS_MASK: Final = _VERSION_MASK | int(HeaderFlags.REPLY | HeaderFlags.NEED_REPLY)


@attrs.frozen(kw_only=True)
class Header:
    """What every message begins with.

    Layout: three native-endian u32, 12 bytes.
    Spec: vhost-user, "Header".
    """

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=III")

    request: int
    """A `Request`, or a number that no specification knows."""
    flags: HeaderFlags = NO_FLAGS
    size: int = 0
    """Bytes of payload that follow."""

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read the 12 bytes.

        Raises: PeerError, for another version or flags that do not exist.
        """
        request, flags, size = cls.LAYOUT.unpack(data)
        if flags & _VERSION_MASK != VERSION or flags & ~_FLAGS_MASK:
            raise PeerError(
                f"{request_name(request)}: flags are {flags:#x}; this is version {VERSION}, with "
                f"REPLY {int(HeaderFlags.REPLY):#x} and NEED_REPLY {int(HeaderFlags.NEED_REPLY):#x}"
            )
        return cls(request=request, flags=HeaderFlags(flags & ~_VERSION_MASK), size=size)

    def encode(self) -> bytes:
        """Return the 12 bytes."""
        return self.LAYOUT.pack(self.request, self.flags | VERSION, self.size)


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


# ---- which payload and how many descriptors belong to which request ------------------------------


@attrs.frozen
class Form:
    """What a request looks like."""

    payload: type[Payload]
    needs: ProtocolFeatures = NO_FEATURES
    """The protocol feature that it belongs to."""
    n_fds: Callable[[Any], range] = attrs.field(default=lambda payload: range(1))
    """How many descriptors may come along, given the decoded payload."""


def _one_unless_nofd(payload: VringDescriptor) -> range:
    return range(1) if payload.nofd else range(1, 2)


def _one_per_region(payload: MemoryTable) -> range:
    return range(len(payload.regions), len(payload.regions) + 1)


_Needs = ProtocolFeatures
FORMS: Final[dict[int, Form]] = {
    Request.GET_FEATURES: Form(Empty),
    Request.SET_FEATURES: Form(U64),
    Request.SET_OWNER: Form(Empty),
    Request.RESET_OWNER: Form(Empty),
    Request.SET_MEM_TABLE: Form(MemoryTable, n_fds=_one_per_region),
    Request.SET_VRING_NUM: Form(VringState),
    Request.SET_VRING_ADDR: Form(VringAddress),
    Request.SET_VRING_BASE: Form(VringState),
    Request.GET_VRING_BASE: Form(VringState),
    Request.SET_VRING_KICK: Form(VringDescriptor, n_fds=_one_unless_nofd),
    Request.SET_VRING_CALL: Form(VringDescriptor, n_fds=_one_unless_nofd),
    Request.SET_VRING_ERR: Form(VringDescriptor, n_fds=_one_unless_nofd),
    Request.GET_PROTOCOL_FEATURES: Form(Empty),
    Request.SET_PROTOCOL_FEATURES: Form(U64),
    Request.GET_QUEUE_NUM: Form(Empty, _Needs.MQ),
    Request.SET_VRING_ENABLE: Form(VringState),
    Request.NET_SET_MTU: Form(U64, _Needs.NET_MTU),
    Request.GET_CONFIG: Form(ConfigSpace, _Needs.CONFIG),
    Request.SET_CONFIG: Form(ConfigSpace, _Needs.CONFIG),
    Request.RESET_DEVICE: Form(Empty, _Needs.RESET_DEVICE),
    Request.GET_MAX_MEM_SLOTS: Form(Empty, _Needs.CONFIGURE_MEM_SLOTS),
    Request.ADD_MEM_REG: Form(
        SingleRegion, _Needs.CONFIGURE_MEM_SLOTS, lambda payload: range(1, 2)
    ),
    # Some VMMs pass a descriptor with this one too; it is closed unused, as the
    # specification of the message asks.
    Request.REM_MEM_REG: Form(SingleRegion, _Needs.CONFIGURE_MEM_SLOTS, lambda payload: range(2)),
    Request.SET_STATUS: Form(U64, _Needs.STATUS),
    Request.GET_STATUS: Form(Empty, _Needs.STATUS),
}
"""The requests that are served.  Every other one ends the session: none of the features that
would allow them is offered.
"""


def request_name(number: int) -> str:
    """Return ``SET_MEM_TABLE``, or ``request 99`` for one that does not exist."""
    try:
        return Request(number).name
    except ValueError:
        return f"request {number}"


def check_header(header: Header, offered: ProtocolFeatures) -> Form:
    """Return the form of the message that this header begins.

    Raises: PeerError, for a reply, a request that is not served, or a size that can't be: before
        a byte of the payload is read.
    """
    name = request_name(header.request)
    if header.flags & HeaderFlags.REPLY:
        raise PeerError(f"{name}: is marked as a reply, and nothing was asked")
    form = FORMS.get(header.request)
    if form is None or form.needs & ~offered:
        raise PeerError(f"{name}: is not served; nothing that was offered allows it")
    least, most = form.payload.SIZES
    if not least <= header.size <= most:
        sizes = f"{most}" if least == most else f"{least} to {most}"
        raise PeerError(f"{name}: payload is {header.size} bytes, needs {sizes}")
    return form


def decode_payload(request: int, form: Form, data: bytes, n_fds: int) -> Payload:
    """Return the message's payload, all syntax checked.

    Raises: PeerError, naming the request.
    """
    try:
        payload = form.payload.decode(data)
        allowed = form.n_fds(payload)
        if n_fds not in allowed:
            counts = " or ".join(map(str, allowed))
            raise PeerError(f"{n_fds} descriptors came along, {counts} belong to it")
    except PeerError as error:
        raise PeerError(f"{request_name(request)}: {error}") from None
    return payload


def encode_message(request: int, payload: Payload, flags: HeaderFlags) -> bytes:
    """Return header and payload in one."""
    content = payload.encode()
    return Header(request=request, flags=flags, size=len(content)).encode() + content
