"""A macvtap by its name: a NIC of its own, with an address of its own, on another interface.

Its frames go through a device file that is named after the interface's index, /dev/tap17, and
behaves as /dev/net/tun does once it is attached, with one difference: it never tells that its
interface was deleted, and takes frames as if nothing had happened.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

from vnic.errors import BackendError, ConfigError

from vnic_tap.device import Device, user, why
from vnic_tap.interface import Interface, add_macvtap, delete_macvtap, look, set_up
from vnic_tap.options import MacvtapOptions

log = logging.getLogger("vnic.tap")


def open_macvtap(
    name: str, options: MacvtapOptions, default_mac: bytes
) -> tuple[Device, int | None]:
    """Attach to the macvtap of that name, or make it; set it up.  For `Namespace.call`.

    Returns the index, too, of one that is to be deleted in the end: it outlives its descriptor.

    Raises: ConfigError or BackendError, with nothing left open.
    """
    there = look(name)
    was_there = there is not None
    if there is None:
        there = _make(name, options, options.mac or default_mac)
    try:
        _check_as_asked(name, there, options)
        interface = set_up(name, mtu=options.mtu, mac=options.mac, all_multicast=True)
        device = _attach(name, interface, options)
    except BaseException:
        if not was_there:
            delete_macvtap(name, there.index)
        raise
    if options.mac is None:
        warn_of_address(name, interface.mac)
    stays = was_there if options.persist is None else options.persist
    return device, None if stays else there.index


def warn_of_address(name: str, mac: bytes) -> None:
    """Say what address a guest needs that was given none."""
    address = mac.hex(":")
    log.warning(
        "%s: it has frames for %s and for no other guest; give the guest that address: mac=%s",
        name,
        address,
        address,
    )


def _make(name: str, options: MacvtapOptions, mac: bytes) -> Interface:
    if options.parent is None:
        raise ConfigError(
            f"{name}: there is no such interface; say parent=INTERFACE to have it made there, "
            f"or make it:\n  ip link add link INTERFACE name {name} type macvtap mode bridge"
        )
    add_macvtap(name, options.parent, options.mode or "bridge", mac)
    made = look(name)
    if made is None:
        raise BackendError(f"{name}: the interface was deleted while it was made; try again")
    return made


def _check_as_asked(name: str, there: Interface, options: MacvtapOptions) -> None:
    """Refuse an interface that is another one than the options describe.

    Raises: ConfigError.
    """
    if there.kind == "tun":
        raise ConfigError(f"{name}: this interface is a tap, not a macvtap; write tap:{name}")
    if there.kind != "macvtap":
        raise ConfigError(
            f"{name}: this interface is {there.what}, not a macvtap; choose another name"
        )
    if options.mode not in (None, there.mode):
        raise ConfigError(
            f"{name}: mode={options.mode}: it was made with mode {there.mode}; leave the option "
            f"out, or delete the interface to have it made again: ip link del {name}"
        )
    parent = look(options.parent) if options.parent is not None else None
    if options.parent is not None and (parent is None or parent.index != there.parent):
        raise ConfigError(
            f"{name}: parent={options.parent}: it is on another one; leave the option out, "
            f"or delete the interface to have it made again: ip link del {name}"
        )


def _attach(name: str, interface: Interface, options: MacvtapOptions) -> Device:
    path = Path(f"/dev/tap{interface.index}")
    try:
        device = Device(name, os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        raise BackendError(f"{name}: cannot open {path}: {_why_not(path, error)}") from None
    try:
        _check_whose(device, path, interface)
        _lock(device)
        device.attach(name)
        device.take_over(options.sndbuf)
    except BaseException:
        device.close()
        raise
    return device


def _why_not(path: Path, error: OSError) -> str:
    text = why(error.errno)
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{text}; give it to this user: chown {user(os.geteuid())} {path}"
    if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
        return (
            f"{text}; this /dev hasn't got it: run where /dev is the kernel's (devtmpfs), "
            "or have the descriptor passed: macvtap:fd=N"
        )
    return f"{text}; free what this process or the host has too many of"


def _check_whose(device: Device, path: Path, interface: Interface) -> None:
    """Refuse a device file that leads to an interface of the same index in another namespace.

    The interface whose file it is had a second queue, and lost to it what came meanwhile: some
    microseconds' worth.  There is no way to know before it is opened.

    Raises: BackendError.
    """
    try:
        (name, _), mac = device.interface(), device.address()
    except OSError:
        name, mac = "", b""
    if (name, mac) != (device.label, interface.mac):
        raise BackendError(
            f"{device.label}: {path} belongs to another interface ({name or 'deleted'}), which has "
            "the same index in another network namespace; make this one with an index of its own: "
            f"ip link add ... name {device.label} index 471100 type macvtap ..."
        )


def _lock(device: Device) -> None:
    """Keep other vnics away: opened twice, a macvtap shares its frames out among two queues.

    Raises: BackendError.
    """
    try:
        fcntl.flock(device.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BackendError(
            f"{device.label}: another vnic has it open; end that, or choose another name"
        ) from None
