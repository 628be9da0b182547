"""What a user can say of a stream and of datagrams."""

from __future__ import annotations

from typing import Final

import attrs
from vnic import config
from vnic.sockets import BACK_OFF_MAX_S, seconds

from vnic_stream.addresses import Address, Passed, parse

RECONNECT: Final = (1.0, BACK_OFF_MAX_S)
"""The waits between attempts, in seconds, unless told otherwise."""


def _range(value: object) -> tuple[float, float] | None:
    """Take ``MIN..MAX`` in seconds, or MIN alone."""
    if value is None:
        return None
    shortest, dots, longest = str(value).partition("..")
    low = seconds(shortest)
    high = seconds(longest) if dots else max(low, BACK_OFF_MAX_S)
    if low > high:
        raise ValueError(f"the longest wait comes second; write {longest}..{shortest}")
    return low, high


def _address(value: object) -> Address | None:
    if value is None:
        return None
    address = parse(config.text(value))
    if isinstance(address, Passed):
        raise ValueError("a passed socket has its peer already; leave this out")
    if address.is_multicast:
        raise ValueError("a group of hosts can't be the peer; give the address of one")
    return address


@attrs.frozen(kw_only=True)
class StreamOptions:
    """What a stream takes."""

    listen: bool = attrs.field(default=False, converter=config.boolean)
    """Whether the peer calls us."""
    reconnect: tuple[float, float] | None = attrs.field(default=None, converter=_range)
    """Of who calls: seconds between two attempts, at first and at the most."""

    def __attrs_post_init__(self) -> None:
        if self.listen and self.reconnect:
            raise ValueError(
                "listen=on waits to be called, and reconnect is for who calls; keep one"
            )


@attrs.frozen(kw_only=True)
class DgramOptions:
    """What datagrams take."""

    peer: Address | None = attrs.field(default=None, converter=_address)
    """Where they go, and the only place where they may come from."""
