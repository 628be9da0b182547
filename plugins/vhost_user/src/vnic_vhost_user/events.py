"""What a connection asks of its session, in the order in which it must happen.

Descriptors in an event are the session's from the moment that it gets the event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from vnic.hookspecs import QueueAddresses

    from vnic_vhost_user.payloads import MemoryRegion


@attrs.frozen
class GetFeatures:
    """Answer: the virtio features that the device offers."""


@attrs.frozen
class SetFeatures:
    """The driver has chosen."""

    features: int


@attrs.frozen
class SetMemory:
    """Forget all guest memory, and take this.  No queue runs."""

    regions: tuple[MemoryRegion, ...]
    fds: tuple[int, ...]
    """One for each region."""


@attrs.frozen
class AddMemory:
    """Take one region more.  Queues may run."""

    region: MemoryRegion
    fd: int


@attrs.frozen
class RemoveMemory:
    """Forget one region.  No queue runs."""

    region: MemoryRegion


@attrs.frozen
class ResumeSoon:
    """Call `Connection.resume` a little later: once no change of memory has come for a while."""


@attrs.frozen
class StartQueue:
    """Begin to serve a queue."""

    index: int
    queue: QueueAddresses


@attrs.frozen
class EnableQueue:
    """Follows each start, and comes when it changes while the queue runs."""

    index: int
    enabled: bool


@attrs.frozen
class StopQueue:
    """Stop serving a queue.  Answer: the avail index where it may go on."""

    index: int


@attrs.frozen
class Kick:
    """Look at a queue that runs: there may be buffers that no kick announces any more."""

    index: int


@attrs.frozen
class SetKick:
    """Watch this descriptor from now on, and close the one before."""

    index: int
    fd: int | None
    """None: poll."""


@attrs.frozen
class DropKick:
    """Neither watch nor poll any more; close the descriptor."""

    index: int


@attrs.frozen
class SetCall:
    """Interrupt through this descriptor from now on, and close the one before."""

    index: int
    fd: int | None
    """None: the driver polls."""
    running: bool
    """The queue runs: an interrupt may have gone to the descriptor before, unheard."""


@attrs.frozen
class SetErr:
    """Tell of a broken device through this descriptor, and close the one before."""

    index: int
    fd: int | None


@attrs.frozen
class Reset:
    """Reset the device.  No queue runs."""


@attrs.frozen
class SetMtu:
    """The VMM has told the guest this MTU."""

    mtu: int


@attrs.frozen
class ReadConfig:
    """Answer: n bytes of the device's configuration space."""

    offset: int
    n: int


@attrs.frozen
class WriteConfig:
    """The driver writes to the configuration space."""

    offset: int
    data: bytes


@attrs.frozen
class Discard:
    """Close descriptors that serve no purpose."""

    fds: tuple[int, ...]


Event: TypeAlias = (
    GetFeatures
    | SetFeatures
    | SetMemory
    | AddMemory
    | RemoveMemory
    | ResumeSoon
    | StartQueue
    | EnableQueue
    | StopQueue
    | Kick
    | SetKick
    | DropKick
    | SetCall
    | SetErr
    | Reset
    | SetMtu
    | ReadConfig
    | WriteConfig
    | Discard
)
