"""The network interface that a tap is to the host: looked at and changed through netlink.

All of it is for `Namespace.call`: in the namespace that the interface is in, and in a thread in
which no asyncio loop runs, since pyroute2 runs one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import attrs
from vnic.errors import BackendError, ConfigError

from vnic_tap.device import why

log = logging.getLogger("vnic.tap")

_IFF_UP: Final = 1
_IFF_ALLMULTI: Final = 0x200
_IFF_TUN: Final = 1
"""What IFLA_TUN_TYPE says of a tun; of a tap it says 2."""


@attrs.frozen(kw_only=True)
class Interface:
    """An interface as it is at one moment."""

    index: int
    is_up: bool
    mac: bytes
    mtu: int
    mtu_min: int
    mtu_max: int
    all_multicast: bool
    """Whether it has frames for every multicast address."""
    kind: str | None
    """What made it: ``tun`` (taps as well), ``veth``, ...; None for hardware and loopback."""
    is_tun: bool
    """Of those of kind ``tun``: a tun, not a tap."""
    is_multi_queue: bool
    owner: int | None
    """The user who may attach to it.  With no group either: anybody may."""
    group: int | None
    parent: int | None
    """Of those of kind ``macvtap``: the index of what it is on, if that is in this namespace."""
    mode: str | None
    """Of those of kind ``macvtap``."""

    @property
    def what(self) -> str:
        """What it is, for an error that says what it is not."""
        return f"of kind {self.kind}" if self.kind else "hardware or loopback"


def look(name: str) -> Interface | None:
    """Return the interface of that name; None if there is none.  Needs no permission.

    Raises: BackendError.
    """
    with _netlink(name) as netlink:
        return _look(netlink, name, ifname=name)


def set_up(
    name: str, *, mtu: int | None = None, mac: bytes | None = None, all_multicast: bool = False
) -> Interface:
    """Bring an interface up, with that MTU and address unless they are None; return how it is then.

    What is as it shall be is left alone: an interface that is up already needs no permission.
    Without permission for ``all_multicast`` a warning says what the guest will miss.

    Raises: ConfigError, for an MTU that it can't have; BackendError.
    """
    with _netlink(name) as netlink:
        there = _look(netlink, name, ifname=name)
        if there is None:
            raise BackendError(f"{name}: the interface was deleted while it was set up; try again")
        change = functools.partial(_change, netlink, name, there)
        if mac is not None and mac != there.mac:
            address = mac.hex(":")
            what = f"set its address to {address} (it is {there.mac.hex(':')})"
            change(what, f"address {address}", address=address)
        if mtu is not None and mtu != there.mtu:
            if not there.mtu_min <= mtu <= there.mtu_max:
                raise ConfigError(
                    f"{name}: mtu={mtu}: this interface can't have it; "
                    f"give {there.mtu_min} to {there.mtu_max}"
                )
            change(f"set its MTU to {mtu} (it is {there.mtu})", f"mtu {mtu}", mtu=mtu)
        if all_multicast and not there.all_multicast:
            try:
                what = "have it take all multicast frames, which IPv6 needs"
                change(what, "allmulticast on", flags=_IFF_ALLMULTI, change=_IFF_ALLMULTI)
            except BackendError as error:
                log.warning("%s", error)
        if not there.is_up:
            change("bring it up", "up", state="up")
        return _look(netlink, name, ifname=name) or there


def add_macvtap(name: str, parent: str, mode: str, mac: bytes) -> None:
    """Make a macvtap on a parent.

    Raises: ConfigError, when there is no such parent; BackendError.
    """
    with _netlink(name) as netlink:
        there = _look(netlink, name, ifname=parent)
        if there is None:
            raise ConfigError(
                f"{name}: parent={parent}: there is no such interface; see those that are: ip link"
            )
        try:
            netlink.link(
                "add",
                ifname=name,
                kind="macvtap",
                link=there.index,
                macvtap_mode=mode,
                address=mac.hex(":"),
                index=_free_index(),
            )
        except _netlink_error() as error:
            raise BackendError(
                f"{name}: cannot make it on {parent}: {why(error.code)}; "
                f"{_who(error.code)} it made beforehand:\n"
                f"  ip link add link {parent} name {name} type macvtap mode {mode}"
            ) from None


def delete_macvtap(name: str, index: int) -> None:
    """Delete a macvtap, if it is still there: under that name, with that index.

    Raises: BackendError.
    """
    with _netlink(name) as netlink:
        there = _look(netlink, name, ifname=name)
        if there is None or (there.kind, there.index) != ("macvtap", index):
            return
        try:
            netlink.link("del", index=index)
        except _netlink_error() as error:
            raise BackendError(
                f"{name}: cannot delete it: {why(error.code)}; delete it by hand:\n"
                f"  ip link del {name}"
            ) from None


def _free_index() -> int:
    """Return an index for a macvtap, whose device file is named after it.

    Namespaces count their interfaces each for itself, but share /dev: with the next index the file
    may be there already, and lead to somebody else's macvtap.
    """
    while True:
        index = random.randrange(1 << 20, 1 << 24)
        if not Path(f"/dev/tap{index}").exists():
            return index


def _look(netlink: Any, name: str, **which: int | str) -> Interface | None:
    try:
        (link,) = netlink.link("get", **which)
    except _netlink_error() as error:
        if error.code == errno.ENODEV:
            return None
        raise BackendError(f"{name}: cannot look at it: {why(error.code)}; try again") from None
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    data = info.get_attr("IFLA_INFO_DATA") if kind in ("tun", "macvtap") else None

    def of(attribute: str) -> Any:
        return data.get_attr(attribute) if data is not None else None

    parent = link.get_attr("IFLA_LINK") if kind == "macvtap" else None
    mtu_max = link.get_attr("IFLA_MAX_MTU")
    if link.get_attr("IFLA_LINK_NETNSID") is not None:
        parent = None  # an index there says nothing here
    if parent is not None:
        (beneath,) = netlink.link("get", index=parent)
        mtu_max = min(mtu_max, beneath.get_attr("IFLA_MTU"))
    return Interface(
        index=link["index"],
        is_up=bool(link["flags"] & _IFF_UP),
        mac=bytes.fromhex((link.get_attr("IFLA_ADDRESS") or "").replace(":", "")),
        mtu=link.get_attr("IFLA_MTU"),
        mtu_min=link.get_attr("IFLA_MIN_MTU"),
        mtu_max=mtu_max,
        all_multicast=bool(link["flags"] & _IFF_ALLMULTI),
        kind=kind,
        is_tun=of("IFLA_TUN_TYPE") == _IFF_TUN,
        is_multi_queue=bool(of("IFLA_TUN_MULTI_QUEUE")),
        owner=of("IFLA_TUN_OWNER"),
        group=of("IFLA_TUN_GROUP"),
        parent=parent,
        mode=of("IFLA_MACVTAP_MODE"),
    )


def _change(
    netlink: Any, name: str, there: Interface, what: str, command: str, **changes: int | str
) -> None:
    try:
        netlink.link("set", index=there.index, **changes)
    except _netlink_error() as error:
        if error.code == errno.EADDRINUSE:
            raise ConfigError(
                f"{name}: cannot {what}: another interface on its parent has the same address; "
                "give this NIC one of its own: mac=..."
            ) from None
        raise BackendError(
            f"{name}: cannot {what}: {why(error.code)}; {_who(error.code)} it done beforehand:\n"
            f"  ip link set {name} {command}"
        ) from None


def _who(number: int) -> str:
    return "run with CAP_NET_ADMIN, or have" if number == errno.EPERM else "have"


@contextlib.contextmanager
def _netlink(name: str) -> Iterator[Any]:
    """Open a netlink socket.

    Raises: BackendError.
    """
    # Here, not above: it takes half a second, and whoever lists plugins needs none of it.
    from pyroute2 import IPRoute  # type: ignore[import-untyped, unused-ignore]

    try:
        netlink = IPRoute()
    except OSError as error:
        raise BackendError(
            f"{name}: cannot open netlink: {why(error.errno)}; free what there is too much of"
        ) from None
    with netlink:
        yield netlink


def _netlink_error() -> type[Any]:
    from pyroute2 import NetlinkError

    return NetlinkError  # type: ignore[no-any-return, unused-ignore]
