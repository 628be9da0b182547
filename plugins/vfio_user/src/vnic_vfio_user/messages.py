"""The protocol's messages: their header, and which payload belongs to which command.

Syntax is checked here and where the payloads are (sizes, flags, how many descriptors belong to a
message); what a message means for the device is `connection`'s business.  ``command`` stands for
the specification's ``VFIO_USER_`` names without that prefix.

Spec: vfio-user protocol (QEMU, docs/interop), "Protocol Specification".
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import ClassVar, Final, Self

import attrs
from vnic.errors import PeerError

from vnic_vfio_user.device_payloads import DeviceInfo, IrqInfo, IrqSet, RegionInfo
from vnic_vfio_user.payloads import (
    DmaMap,
    DmaUnmap,
    Empty,
    Payload,
    Raw,
    RegionAccess,
    RegionWrite,
    Version,
    WriteMulti,
)

MAX_FDS: Final = 16
"""Descriptors with one message: the most that QEMU lets a server ask for."""


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
