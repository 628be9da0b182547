"""What a user can say of a virtio-net NIC."""

from __future__ import annotations

import attrs
from vnic import config


def _mac(value: object) -> bytes | None:
    return None if value is None else config.mac(value)


def _mtu(value: object) -> int | None:
    return None if value is None else config.mtu(value)


@attrs.frozen(kw_only=True)
class VirtioNetOptions:
    """The options of ``virtio-net``."""

    mac: bytes | None = attrs.field(default=None, converter=_mac)
    """The address that the device tells its driver.  Default: made from the NIC's name."""
    mtu: int | None = attrs.field(default=None, converter=_mtu)
    """The MTU that the device tells its driver.  Default: it tells none."""
    offload: bool = attrs.field(default=True, converter=config.boolean)
    """Whether checksum and segmentation offload are offered."""
