"""A tap by its name: attached to, or made; and what can keep it from us."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from vnic.errors import BackendError, ConfigError

from vnic_tap.device import Device, user, why
from vnic_tap.interface import Interface, look, set_up
from vnic_tap.options import TapOptions

TUN_PATH: Final = Path("/dev/net/tun")


def open_tap(name: str, options: TapOptions) -> Device:
    """Attach to the tap of that name, or make it; set it up.  For `Namespace.call`.

    Raises: ConfigError or BackendError, with nothing left open.
    """
    try:
        fd = os.open(TUN_PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BackendError(_not_opened(name, error)) from None
    device = Device(name, fd)
    try:
        try:
            device.attach(name)
        except OSError as error:
            raise _not_attached(name, error) from None
        device.take_over(options.sndbuf)
        set_up(name, mtu=options.mtu)
        if options.persist is not None:
            device.persist(options.persist)
    except BaseException:
        device.close()
        raise
    return device


# ---- what is wrong, and what to do ------------------------------------------------------------


def _not_opened(name: str, error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        remedy = "load the kernel's module (modprobe tun), or give this container the device"
    elif error.errno in (errno.EACCES, errno.EPERM):
        remedy = f"let everybody open it, since each tap has an owner: chmod 0666 {TUN_PATH}"
    else:
        remedy = "free what this process or the host has too many of"
    return f"{name}: cannot open {TUN_PATH}: {why(error.errno)}; {remedy}"


def _not_attached(name: str, error: OSError) -> ConfigError | BackendError:
    """Tell why TUNSETIFF refused.  It says little itself: look at what has that name."""
    there = look(name)
    what = f"{name}: cannot attach: "
    if error.errno == errno.EPERM:
        return BackendError(f"{what}{why(error.errno)}{_how_permitted(name, there)}")
    if error.errno == errno.EBUSY:
        return BackendError(
            f"{what}{why(error.errno)}: another program has it open; "
            "end that, or choose another name"
        )
    if error.errno == errno.EINVAL and there is not None:
        if there.kind == "macvtap":
            return ConfigError(f"{what}it is a macvtap, not a tap; write macvtap:{name}")
        if there.kind != "tun":
            return ConfigError(
                f"{what}this interface is {there.what}, not a tap; choose another name"
            )
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
    return BackendError(f"{what}{why(error.errno)}; look at it with: ip -d link show {name}")


def _how_permitted(name: str, there: Interface | None) -> str:
    if there is None:
        return f"; run with CAP_NET_ADMIN, or pre-create it for this user:\n  {_make(name)}"
    owners = [f"user {user(there.owner)}"] if there.owner is not None else []
    owners += [f"group {there.group}"] if there.group is not None else []
    whose = f", it belongs to {' and '.join(owners)}" if owners else ""
    return f"{whose}; run with CAP_NET_ADMIN, or make it this user's:\n  {_make_again(name, 'tap')}"


def _make_again(name: str, mode: str) -> str:
    return f"ip tuntap del {name} mode {mode} && {_make(name)}"


def _make(name: str) -> str:
    return f"ip tuntap add {name} mode tap user {user(os.geteuid())}"
