"""What a connection asks of its session, in the order in which it must happen.

Descriptors in an event are the session's from the moment that it gets the event.
"""

from __future__ import annotations

from typing import TypeAlias

import attrs


@attrs.frozen
class ReadRegion:
    """Answer: ``count`` bytes of a region, which has them."""

    region: int
    offset: int
    count: int


@attrs.frozen
class WriteRegion:
    """Write to a region, which has that stretch."""

    region: int
    offset: int
    data: bytes


@attrs.frozen(kw_only=True)
class MapMemory:
    """Map a range of guest memory.  Answer: None, or in words why it can't be."""

    address: int
    size: int
    offset: int
    writable: bool
    fd: int


@attrs.frozen
class UnmapMemory:
    """Forget a range that was mapped; nothing touches it when this is carried out."""

    address: int
    size: int


@attrs.frozen
class SetTriggers:
    """Interrupt through these descriptors from now on, and close those before."""

    index: int
    start: int
    fds: tuple[int | None, ...]
    """One for each interrupt; None: there is none, until another message brings it."""


@attrs.frozen
class SetUnmask:
    """Unmask the pin whenever this descriptor is written to."""

    fd: int | None


@attrs.frozen
class DisableIrqs:
    """Interrupt no more, of this kind; close the descriptors."""

    index: int


@attrs.frozen
class Trigger:
    """Interrupt now: the VMM tries whether it arrives."""

    index: int
    vector: int


@attrs.frozen
class MaskPin:
    """Keep the pin down or let it go."""

    masked: bool


@attrs.frozen
class Reset:
    """Reset the device."""


@attrs.frozen
class Discard:
    """Close descriptors that serve no purpose."""

    fds: tuple[int, ...]


Event: TypeAlias = (
    ReadRegion
    | WriteRegion
    | MapMemory
    | UnmapMemory
    | SetTriggers
    | SetUnmask
    | DisableIrqs
    | Trigger
    | MaskPin
    | Reset
    | Discard
)
