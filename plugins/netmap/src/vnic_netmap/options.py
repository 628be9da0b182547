"""What a netmap port takes."""

from __future__ import annotations

import attrs
from vnic import config

from vnic_netmap.abi import NETMAP_VNET_HDR_LENS, NM_MAX_SLOTS

_number_of_slots = config.integer(8, NM_MAX_SLOTS)
_number_of_rings = config.integer(1, 64)
_bytes = config.integer()


def _header(value: object) -> int | None:
    if value is None:
        return None
    if (n := _bytes(value)) not in NETMAP_VNET_HDR_LENS:
        raise ValueError("no length of a virtio-net header; give 0, 10 or 12")
    return n


def _slots(value: object) -> int | None:
    return None if value is None else _number_of_slots(value)


def _rings(value: object) -> int | None:
    return None if value is None else _number_of_rings(value)


def _fragments(value: object) -> bool | None:
    return None if value is None else config.boolean(value)


@attrs.frozen(kw_only=True)
class NetmapOptions:
    """What a netmap port takes."""

    header: int | None = attrs.field(default=None, converter=_header)
    """Bytes of virtio-net header on the port; with one, offloads pass.  None: what the port has
    already, else 12 for a port of a switch, and 0 for all others, which can't have one."""
    slots: int | None = attrs.field(default=None, converter=_slots)
    """Slots of each ring, of a port that is made with this.  None: 1024."""
    rings: int | None = attrs.field(default=None, converter=_rings)
    """Rings in each direction, of a port that is made with this.  None: 1."""
    fragments: bool | None = attrs.field(default=None, converter=_fragments)
    """Whether a frame may be sent in several slots.  None: not to NICs and host rings."""
