"""One open tap: the descriptor that frames go through, and the ioctls that shape it."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import struct
from pathlib import Path
from typing import Final, Self

from vnic.errors import BackendError, ConfigError
from vnic.features import NONE, Features, coherent

from vnic_tap.interface import Interface, look

TUN_PATH: Final = Path("/dev/net/tun")


def _iow(number: int) -> int:
    """Return ``_IOW('T', number, int)``, as <asm-generic/ioctl.h> encodes it."""
    return 1 << 30 | 4 << 16 | ord("T") << 8 | number


# linux/if_tun.h
TUNSETIFF: Final = _iow(202)
TUNSETOFFLOAD: Final = _iow(208)
TUNSETSNDBUF: Final = _iow(212)
TUNSETVNETHDRSZ: Final = _iow(216)
TUNSETVNETLE: Final = _iow(220)

IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000

TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_TSO_ECN: Final = 0x08
TUN_F_USO4: Final = 0x20
TUN_F_USO6: Final = 0x40

_IFREQ: Final = struct.Struct("=16sH22x")
"""``struct ifreq``: a name and, of its union, the flags."""
_NAME_MAX: Final = 15
"""IFNAMSIZ less the zero at its end.  TUNSETIFF cuts a longer name in silence."""
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
    """A tap that is attached: ``fd`` reads and writes frames, each behind a 12-byte header.

    It never blocks.  A tap that was made persistent keeps header size, byte order, offloads and
    send buffer when it is closed, so each is set, whatever it may be already.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd

    @classmethod
    def open(cls, name: str, sndbuf: int | None = None) -> Self:
        """Attach to the tap of that name; make it if there is none, to go with the descriptor.

        ``sndbuf`` limits the bytes that are on their way from us; beyond it the tap is full.
        None: it never is, and the queues behind it drop, as queues do.

        Raises: ConfigError or BackendError, with nothing left open.
        """
        _check_name(name)
        try:
            fd = os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise BackendError(_not_opened(name, error)) from None
        device = cls(name, fd)
        try:
            device._attach()
            device._set(TUNSETVNETHDRSZ, "header size", _VNET_HEADER_LEN)
            device._set(TUNSETVNETLE, "header's byte order", 1)
            device._set(TUNSETSNDBUF, "send buffer", sndbuf or _SNDBUF_UNLIMITED)
            device.set_offloads(NONE)
        except BaseException:
            device.close()
            raise
        return device

    def close(self) -> None:
        """Detach.  Twice is allowed."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

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
            raise BackendError(f"{self.name}: cannot set its offloads: {_why(error)}") from None

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

    def _attach(self) -> None:
        request = _IFREQ.pack(self.name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        try:
            fcntl.ioctl(self.fd, TUNSETIFF, request)
        except OSError as error:
            raise _not_attached(self.name, error) from None

    def _set(self, request: int, what: str, value: int) -> None:
        try:
            fcntl.ioctl(self.fd, request, struct.pack("=i", value))
        except OSError as error:
            raise BackendError(
                f"{self.name}: cannot set its {what} to {value}: {_why(error)}"
            ) from None


# ---- what is wrong, and what to do ------------------------------------------------------------


def _why(error: OSError) -> str:
    """Return what the kernel says, fit for the middle of a sentence."""
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def _check_name(name: str) -> None:
    """Refuse what the kernel would, and what it would take for something else.

    Raises: ConfigError.
    """
    bad = sorted({c for c in name if c in "/:%" or not "!" <= c <= "~"})
    if bad:
        shown = " ".join(ascii(c) for c in bad)
        raise ConfigError(
            f"{name!a}: the name of an interface can't have {shown}; use letters, digits, - and _"
        )
    if name in ("", ".", ".."):
        raise ConfigError(f'"{name}": no name for an interface; give one like tap0')
    if len(name) > _NAME_MAX:
        raise ConfigError(
            f"{name}: the name has {len(name)} characters, an interface's at most {_NAME_MAX}; "
            "choose a shorter one"
        )


def _not_opened(name: str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        remedy = "load the kernel's module (modprobe tun), or give this container the device"
    elif error.errno in (errno.EACCES, errno.EPERM):
        remedy = f"let everybody open it, since each tap has an owner: chmod 0666 {TUN_PATH}"
    else:
        remedy = "free what this process or the host has too many of"
    return f"{name}: cannot open {TUN_PATH}: {_why(error)}; {remedy}"


def _not_attached(name: str, error: OSError) -> ConfigError | BackendError:
    """Tell why TUNSETIFF refused.  It says little itself: look at what has that name."""
    there = look(name)
    what = f"{name}: cannot attach: "
    if error.errno == errno.EPERM:
        return BackendError(f"{what}{_why(error)}{_how_permitted(name, there)}")
    if error.errno == errno.EBUSY:
        return BackendError(
            f"{what}{_why(error)}: another program has it open; end that, or choose another name"
        )
    if error.errno == errno.EINVAL and there is not None:
        if there.kind != "tun":
            kind = f"of kind {there.kind}" if there.kind else "no virtual one"
            return ConfigError(f"{what}this interface is {kind}, not a tap; choose another name")
        if there.is_tun:
            return ConfigError(
                f"{what}it is a tun, which carries IP packets and no Ethernet frames; "
                f"choose another name, or make it a tap:\n  {_make_again(name, 'tun')}"
            )
        if there.is_multi_queue:
            return ConfigError(
                f"{what}it was made with multi_queue, and only one queue is used here; "
                f"make it without:\n  {_make_again(name, 'tap multi_queue')}"
            )
    return BackendError(f"{what}{_why(error)}; look at it with: ip -d link show {name}")


def _how_permitted(name: str, there: Interface | None) -> str:
    if there is None:
        return (
            "; run with CAP_NET_ADMIN, or pre-create it for this user:\n"
            f"  ip tuntap add {name} mode tap user $USER"
        )
    owners = [f"user {_user(there.owner)}"] if there.owner is not None else []
    owners += [f"group {there.group}"] if there.group is not None else []
    whose = f", it belongs to {' and '.join(owners)}" if owners else ""
    return f"{whose}; run with CAP_NET_ADMIN, or make it this user's:\n  {_make_again(name, 'tap')}"


def _make_again(name: str, mode: str) -> str:
    return f"ip tuntap del {name} mode {mode} && ip tuntap add {name} mode tap user $USER"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
