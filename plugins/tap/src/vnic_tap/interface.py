"""The network interface that a tap is to the host: looked at and set up through netlink."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import attrs
from vnic.errors import BackendError, ConfigError

T = TypeVar("T")

_IFF_UP: Final = 1
_IFF_TUN: Final = 1
"""What IFLA_TUN_TYPE says of a tun; of a tap it says 2."""


@attrs.frozen(kw_only=True)
class Interface:
    """An interface as it is at one moment."""

    index: int
    is_up: bool
    mtu: int
    mtu_min: int
    mtu_max: int
    kind: str | None
    """What made it: ``tun`` (taps as well), ``veth``, ...; None for hardware and loopback."""
    is_tun: bool
    """Of those of kind ``tun``: a tun, not a tap."""
    is_multi_queue: bool
    owner: int | None
    """The user who may attach to it.  With no group either: anybody may."""
    group: int | None


def look(name: str) -> Interface | None:
    """Return the interface of that name; None if there is none.  Needs no permission.

    Raises: BackendError.
    """
    return _with_netlink(name, lambda netlink: _look(netlink, name))


def set_up(name: str, mtu: int | None) -> None:
    """Bring an interface up, with that MTU unless it is None.

    What is as it shall be is left alone: an interface that is up already needs no permission.

    Raises: ConfigError, for an MTU that it can't have; BackendError.
    """
    _with_netlink(name, lambda netlink: _set_up(netlink, name, mtu))


def _look(netlink: Any, name: str) -> Interface | None:
    try:
        (link,) = netlink.link("get", ifname=name)
    except _netlink_error() as error:
        if error.code == errno.ENODEV:
            return None
        raise BackendError(f"{name}: cannot look at it: {_why(error)}; try again") from None
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    tun = info.get_attr("IFLA_INFO_DATA") if kind == "tun" else None

    def of_tun(attribute: str) -> Any:
        return tun.get_attr(attribute) if tun is not None else None

    return Interface(
        index=link["index"],
        is_up=bool(link["flags"] & _IFF_UP),
        mtu=link.get_attr("IFLA_MTU"),
        mtu_min=link.get_attr("IFLA_MIN_MTU"),
        mtu_max=link.get_attr("IFLA_MAX_MTU"),
        kind=kind,
        is_tun=of_tun("IFLA_TUN_TYPE") == _IFF_TUN,
        is_multi_queue=bool(of_tun("IFLA_TUN_MULTI_QUEUE")),
        owner=of_tun("IFLA_TUN_OWNER"),
        group=of_tun("IFLA_TUN_GROUP"),
    )


def _set_up(netlink: Any, name: str, mtu: int | None) -> None:
    there = _look(netlink, name)
    if there is None:
        raise BackendError(f"{name}: the interface was deleted while it was set up; try again")
    if mtu is not None and mtu != there.mtu:
        if not there.mtu_min <= mtu <= there.mtu_max:
            raise ConfigError(
                f"{name}: mtu={mtu}: this interface can't have it; "
                f"give {there.mtu_min} to {there.mtu_max}"
            )
        what = f"set its MTU to {mtu} (it is {there.mtu})"
        _change(netlink, name, there, what, f"mtu {mtu}", mtu=mtu)
    if not there.is_up:
        _change(netlink, name, there, "bring it up", "up", state="up")


def _change(
    netlink: Any, name: str, there: Interface, what: str, command: str, **changes: int | str
) -> None:
    try:
        netlink.link("set", index=there.index, **changes)
    except _netlink_error() as error:
        who = "run with CAP_NET_ADMIN, or have" if error.code == errno.EPERM else "have"
        raise BackendError(
            f"{name}: cannot {what}: {_why(error)}; {who} it done beforehand:\n"
            f"  ip link set {name} {command}"
        ) from None


def _with_netlink(name: str, work: Callable[[Any], T]) -> T:
    """Call with an open netlink socket, in the calling thread's network namespace.

    In a thread of its own, which starts in that namespace too: pyroute2 runs an asyncio loop, and
    whoever opens a NIC may be running one already.

    Raises: what the work does; BackendError, when there is no netlink.
    """

    def inside() -> T:
        # Here, not above: it takes half a second, and whoever lists plugins needs none of it.
        from pyroute2 import IPRoute  # type: ignore[import-untyped, unused-ignore]

        try:
            netlink = IPRoute()
        except OSError as error:
            raise BackendError(
                f"{name}: cannot open netlink: {error}; free what there is too much of"
            ) from None
        with netlink:
            return work(netlink)

    with ThreadPoolExecutor(1, thread_name_prefix="netlink") as thread:
        return thread.submit(inside).result()


def _netlink_error() -> type[Any]:
    from pyroute2 import NetlinkError

    return NetlinkError  # type: ignore[no-any-return, unused-ignore]


def _why(error: Any) -> str:
    text = str(error.args[1])
    return text[:1].lower() + text[1:]
