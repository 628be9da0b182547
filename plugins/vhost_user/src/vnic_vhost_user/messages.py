"""The protocol's messages: their header, and which payload belongs to which request.

Syntax is checked here and in `payloads` (sizes, reserved bits, how many descriptors belong to a
message); what a message means for the device is `connection`'s business.  ``request`` stands for
the specification's ``VHOST_USER_`` names without that prefix.

Spec: vhost-user protocol (QEMU, docs/interop), "Message Specification".
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import attrs
from vnic.errors import PeerError

from vnic_vhost_user.payloads import (
    U64,
    ConfigSpace,
    Empty,
    MemoryTable,
    Payload,
    SingleRegion,
    VringAddress,
    VringDescriptor,
    VringState,
)

if TYPE_CHECKING:
    from collections.abc import Callable

VERSION: Final = 1
"""The only version there is; the lower two bits of a header's flags."""

F_PROTOCOL_FEATURES: Final = 1 << 30
"""The bit among the virtio features that says: protocol features can be negotiated."""


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
