"""A tap or macvtap that somebody else opened, and passed to this process.

``tap:fd=7``, ``macvtap:fd=7``.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from vnic.errors import BackendError, ConfigError

from vnic_tap.device import (
    IFF_DETACH_QUEUE,
    IFF_MULTI_QUEUE,
    IFF_TUN,
    IFF_VNET_HDR,
    Device,
    why,
)
from vnic_tap.macvtap import warn_of_address
from vnic_tap.options import MacvtapOptions, TapOptions

_ANOTHER: Final = "pass one that was opened with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR"


def open_passed(fd: int, options: TapOptions) -> Device:
    """Take over a descriptor that is attached to its interface already.

    It stays its owner's: what is used, and closed in the end, is a duplicate.  So does the
    interface: whether it is up, stays, and how long its frames may be isn't changed from here.
    Both descriptors are non-blocking from now on.  Needs no permission.

    Raises: ConfigError or BackendError, with nothing left open.
    """
    wants_macvtap = isinstance(options, MacvtapOptions)
    label = f"{'macvtap' if wants_macvtap else 'tap'}:fd={fd}"
    _refuse_options(label, options)
    try:
        own = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except (OSError, OverflowError) as error:
        number = error.errno if isinstance(error, OSError) else errno.EBADF
        if number == errno.EBADF:
            raise ConfigError(
                f"{label}: this process has no descriptor {fd}; "
                "have whoever starts it pass one on, and give its number"
            ) from None
        raise BackendError(f"{label}: cannot duplicate it: {why(number)}") from None
    device = Device(label, own)
    try:
        name, flags = _attached_to(device, fd)
        device.label = f"{label} ({name})"
        if device.is_macvtap != wants_macvtap:
            is_, write = ("a tap", "tap") if wants_macvtap else ("a macvtap", "macvtap")
            raise ConfigError(f"{device.label}: it is {is_}; write {write}:fd={fd}")
        if isinstance(options, MacvtapOptions):
            _check_address(device, options.mac)
            device.attach(name)  # for its flags alone, which may be set at any time
        else:
            _check_flags(device.label, flags)
        os.set_blocking(own, False)
        device.take_over(options.sndbuf)
    except BaseException:
        device.close()
        raise
    return device


def _refuse_options(label: str, options: TapOptions) -> None:
    """Refuse what would change an interface that isn't ours.

    Raises: ConfigError.
    """
    given: list[object] = [options.persist, options.netns]
    names = ["persist", "netns"]
    if isinstance(options, MacvtapOptions):
        given += [options.parent, options.mode]
        names += ["parent", "mode"]
    wrong = [name for name, value in zip(names, given, strict=True) if value is not None]
    if wrong:
        raise ConfigError(
            f"{label}: {' and '.join(wrong)}: that is for whoever opened the descriptor to decide; "
            f"leave {'them' if len(wrong) > 1 else 'it'} out"
        )


def _attached_to(device: Device, fd: int) -> tuple[str, int]:
    """Return the name and flags of the interface behind a descriptor.

    Raises: ConfigError.
    """
    try:
        return device.interface()
    except OSError as error:
        if error.errno in (errno.EBADFD, errno.ENOLINK):
            raise ConfigError(
                f"{device.label}: it is attached to no interface; attach it (TUNSETIFF) before it "
                "is passed, or, if its interface was deleted, pass a new one"
            ) from None
        what = Path(f"/proc/self/fd/{device.fd}").readlink()
        raise ConfigError(
            f"{device.label}: descriptor {fd} is no tap, but {what}; give the tap's number"
        ) from None


def _check_flags(label: str, flags: int) -> None:
    """Refuse a tap whose frames aren't ours to read, or not as we read them.

    That IFF_NO_PI is missing can't be seen: TUNGETIFF says IFF_NOFILTER with the same bit.

    Raises: ConfigError.
    """
    if flags & IFF_TUN:
        what = "it is a tun, which carries IP packets and no Ethernet frames"
    elif flags & IFF_DETACH_QUEUE:
        what = "its queue is detached (TUNSETQUEUE), so it has no frames"
    elif flags & IFF_MULTI_QUEUE:
        what = "it is one queue of a multi-queue tap, whose frames may go to others"
    elif not flags & IFF_VNET_HDR:
        what = "its frames have no virtio-net header (IFF_VNET_HDR)"
    else:
        return
    raise ConfigError(f"{label}: {what}; {_ANOTHER}")


def _check_address(device: Device, mac: bytes | None) -> None:
    """Refuse a guest that the macvtap has no frames for.

    Raises: ConfigError.
    """
    has = device.address()
    if mac is None:
        warn_of_address(device.label, has)
    elif mac != has:
        raise ConfigError(
            f"{device.label}: mac={mac.hex(':')}: it has frames for {has.hex(':')} alone; "
            f"give the guest that address: mac={has.hex(':')}"
        )
