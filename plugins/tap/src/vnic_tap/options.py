"""What a user can say of a tap and of a macvtap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import attrs
from vnic import config

from vnic_tap.names import interface

MODES: Final = ("bridge", "vepa", "private", "passthru")
"""How macvtaps on one parent see each other.  Spec: ip-link(8), "MACVLAN and MACVTAP"."""


def _or_none(convert: Callable[[object], Any]) -> Callable[[object], Any]:
    return lambda value: None if value is None else convert(value)


def _option(convert: Callable[[object], Any]) -> Any:
    return attrs.field(default=None, converter=_or_none(convert))


@attrs.frozen(kw_only=True)
class TapOptions:
    """What a tap takes.  None leaves things as they are."""

    mtu: int | None = _option(config.mtu)
    """The interface's MTU."""
    offload: bool = attrs.field(default=True, converter=config.boolean)
    """Whether the kernel's checksum and segmentation offloads are used."""
    sndbuf: int | None = _option(config.integer(4096, 2**31 - 1))
    """Bytes on their way from the guest beyond which the tap is full; None: no limit."""
    persist: bool | None = _option(config.boolean)
    """Whether the interface stays when the NIC is closed; None: if it was there before."""
    netns: str | None = _option(config.text)
    """The network namespace that the interface is in: a name as ``ip netns`` knows it, or a path;
    None: the one of whoever opens the NIC."""


@attrs.frozen(kw_only=True)
class MacvtapOptions(TapOptions):
    """What a macvtap takes."""

    parent: str | None = _option(lambda value: interface(config.text(value)))
    """The interface to make it on, if it isn't there."""
    mode: str | None = _option(config.choice(*MODES))
    """How it is made; None: ``bridge``."""
    mac: bytes | None = _option(config.mac)
    """The guest's address, the only one that a macvtap has frames for."""
