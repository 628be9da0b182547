"""One open tap: the descriptor that frames go through, and the ioctls that shape it."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import struct
from typing import Final

from vnic.errors import BackendError
from vnic.features import NONE, Features, coherent


def _ioc(direction: int, number: int) -> int:
    """Return ``_IOR`` or ``_IOW('T', number, int)``, as <asm-generic/ioctl.h> encodes it."""
    return direction << 30 | 4 << 16 | ord("T") << 8 | number


# linux/if_tun.h; a macvtap (linux/drivers/net/tap.c) answers to the same, where it says so here
TUNSETIFF: Final = _ioc(1, 202)
TUNSETPERSIST: Final = _ioc(1, 203)  # tap only
TUNSETOWNER: Final = _ioc(1, 204)  # tap only
TUNSETOFFLOAD: Final = _ioc(1, 208)
TUNGETIFF: Final = _ioc(2, 210)
TUNSETSNDBUF: Final = _ioc(1, 212)
TUNSETVNETHDRSZ: Final = _ioc(1, 216)
TUNSETVNETLE: Final = _ioc(1, 220)
SIOCGIFHWADDR: Final = 0x8927  # linux/sockios.h

IFF_TUN: Final = 0x0001
IFF_TAP: Final = 0x0002
IFF_MULTI_QUEUE: Final = 0x0100
IFF_DETACH_QUEUE: Final = 0x0400
IFF_PERSIST: Final = 0x0800
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
FLAGS: Final = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
"""What a tap has to be for us: Ethernet frames behind a virtio-net header and nothing else."""

TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_TSO_ECN: Final = 0x08
TUN_F_USO4: Final = 0x20
TUN_F_USO6: Final = 0x40

_IFREQ: Final = struct.Struct("=16sH22x")
"""``struct ifreq``: a name and, of its union, the flags."""
_TUN_DEVICE: Final = os.makedev(10, 200)
"""/dev/net/tun.  Spec: Linux, Documentation/admin-guide/devices.txt, "misc"."""
_VNET_HEADER_LEN: Final = 12
_SNDBUF_UNLIMITED: Final = 2**31 - 1

_USO: Final = Features.GUEST_USO4 | Features.GUEST_USO6
_TSO: Final = Features.GUEST_CSUM | Features.GUEST_TSO4 | Features.GUEST_TSO6 | Features.GUEST_ECN
_HOST_TSO: Final = Features.CSUM | Features.HOST_TSO4 | Features.HOST_TSO6 | Features.HOST_ECN

_OFFLOADS: Final = (
    (Features.GUEST_CSUM, TUN_F_CSUM),
    (Features.GUEST_TSO4, TUN_F_TSO4),
    (Features.GUEST_TSO6, TUN_F_TSO6),
    (Features.GUEST_ECN, TUN_F_TSO_ECN),
    (_USO, TUN_F_USO4 | TUN_F_USO6),  # the kernel takes both of them or neither
)


class Device:
    """A tap or a macvtap: ``fd`` reads and writes frames, each behind a 12-byte header.

    It never blocks.  Errors name it by its label.
    """

    def __init__(self, label: str, fd: int) -> None:
        """The descriptor is the device's from now on."""
        self.label = label
        self.fd = fd

    def close(self) -> None:
        """Detach.  Twice is allowed."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    # ---- what it is attached to

    def attach(self, name: str) -> None:
        """Attach to the tap of that name, or make it.  A macvtap only takes the flags from it.

        Raises: OSError.
        """
        fcntl.ioctl(self.fd, TUNSETIFF, _IFREQ.pack(name.encode(), FLAGS))

    def interface(self) -> tuple[str, int]:
        """Return the name of the interface that it is attached to, and its IFF_* flags.

        Raises: OSError: EBADFD (tap) or ENOLINK (macvtap), if there is none, or no more.
        """
        name, flags = _IFREQ.unpack(fcntl.ioctl(self.fd, TUNGETIFF, bytes(_IFREQ.size)))
        return name.rstrip(b"\0").decode(errors="replace"), flags

    def address(self) -> bytes:
        """Return the interface's address.

        Raises: OSError, as `interface` does.
        """
        request = fcntl.ioctl(self.fd, SIOCGIFHWADDR, bytes(_IFREQ.size))
        return request[18:24]  # of the union, behind the address's family

    @property
    def is_there(self) -> bool:
        """Whether it still has its interface."""
        try:
            self.interface()
        except OSError:
            return False
        return True

    @property
    def is_macvtap(self) -> bool:
        """Whether it is no tap.  A macvtap says nothing when its interface is deleted."""
        return os.fstat(self.fd).st_rdev != _TUN_DEVICE

    # ---- how it is

    def take_over(self, sndbuf: int | None) -> None:
        """Set all that a tap keeps from its last user, whatever it may be.

        ``sndbuf`` limits the bytes that are on their way from us; beyond it the tap is full.
        None: it never is, and the queues behind it drop, as queues do.

        Raises: BackendError.
        """
        self._set(TUNSETVNETHDRSZ, "header size", _VNET_HEADER_LEN)
        self._set(TUNSETVNETLE, "header's byte order", 1)
        self._set(TUNSETSNDBUF, "send buffer", sndbuf or _SNDBUF_UNLIMITED)
        self.set_offloads(NONE)

    def persist(self, stays: bool) -> None:
        """Have the interface stay or go when we detach.  One that we made is our user's then.

        Raises: BackendError.
        """
        try:
            _, flags = self.interface()
            if stays and not flags & IFF_PERSIST:
                # A tap without an owner is everybody's who can open /dev/net/tun.
                fcntl.ioctl(self.fd, TUNSETOWNER, os.geteuid())
            fcntl.ioctl(self.fd, TUNSETPERSIST, int(stays))
        except OSError as error:
            what = "on" if stays else "off"
            raise BackendError(f"{self.label}: persist={what}: {why(error.errno)}") from None

    def capabilities(self) -> Features:
        """Ask the kernel which offloads it has.  None is in force afterwards.

        It can only be asked for GUEST_*.  HOST_* are what the same kernels take in a frame's
        header.

        Raises: BackendError.
        """
        for guest, host in (
            (_TSO | _USO, _HOST_TSO | Features.HOST_USO),
            (_TSO, _HOST_TSO),  # before Linux 6.2
        ):
            if self._takes(guest):
                self.set_offloads(NONE)
                return guest | host
        return NONE

    def set_offloads(self, features: Features) -> None:
        """Have the kernel give us frames with exactly these GUEST_*; the rest it does itself.

        Raises: BackendError.
        """
        try:
            self._set_offloads(features)
        except OSError as error:
            raise BackendError(
                f"{self.label}: cannot set its offloads: {why(error.errno)}"
            ) from None

    def _takes(self, features: Features) -> bool:
        try:
            self._set_offloads(features)
        except OSError:
            return False
        return True

    def _set_offloads(self, features: Features) -> None:
        features = coherent(features)
        bits = sum(bit for feature, bit in _OFFLOADS if feature in features)
        fcntl.ioctl(self.fd, TUNSETOFFLOAD, bits)

    def _set(self, request: int, what: str, value: int) -> None:
        try:
            fcntl.ioctl(self.fd, request, struct.pack("=i", value))
        except OSError as error:
            raise BackendError(
                f"{self.label}: cannot set its {what} to {value}: {why(error.errno)}"
            ) from None


def user(uid: int) -> str:
    """Return the user's name, or the number of one who has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def why(number: int | None) -> str:
    """Return what the kernel says by an errno, fit for the middle of a sentence."""
    text = os.strerror(number or errno.EIO)
    return text[:1].lower() + text[1:]
