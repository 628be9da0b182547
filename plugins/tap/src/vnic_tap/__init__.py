"""Linux tap devices as a backend of vnic.

Frames go between the descriptor and guest memory in core's kernels, a burst per call, each behind
a virtio-net header; so a frame that is still to be segmented crosses whole, both ways.
"""

from __future__ import annotations

import errno
import logging
from typing import Final

import attrs
from vnic import config, hookimpl
from vnic.burst import BURST_MAX, Burst, Room
from vnic.errors import BackendError
from vnic.features import NONE, Features
from vnic.link import Joint, JointWatch

from vnic_tap.device import Device
from vnic_tap.interface import set_up

log = logging.getLogger("vnic.tap")

COUNTERS: Final = {
    "tx_drop_EIO": "frames from the guest while the interface was down",
    "tx_drop_EINVAL": "frames from the guest whose header or length the kernel refused",
    "tx_drop_ENOBUFS": "frames from the guest for which the kernel had no buffer",
    "tx_drop_ENOMEM": "frames from the guest for which the kernel had no memory",
    "tx_drop_EFAULT": "frames from the guest whose memory was gone",
    "tx_drop_EBADFD": "frames from the guest that found the interface deleted",
    "tx_drop_other": "frames from the guest that the kernel refused for another reason",
    "rx_drop_EINVAL": "frames for the guest that a virtio-net header can't describe",
    "rx_drop_EFAULT": "frames for the guest whose memory was gone",
    "rx_drop_other": "frames for the guest that the kernel failed to hand over",
}

_sndbuf_bytes: Final = config.integer(4096, 2**31 - 1)


def _mtu(value: object) -> int | None:
    return None if value is None else config.mtu(value)


def _sndbuf(value: object) -> int | None:
    return None if value is None else _sndbuf_bytes(value)


@attrs.frozen(kw_only=True)
class TapOptions:
    """What a tap takes."""

    mtu: int | None = attrs.field(default=None, converter=_mtu)
    """The interface's MTU; None leaves it."""
    offload: bool = attrs.field(default=True, converter=config.boolean)
    """Whether the kernel's checksum and segmentation offloads are used."""
    sndbuf: int | None = attrs.field(default=None, converter=_sndbuf)
    """Bytes on their way from the guest beyond which the tap is full; None: no limit."""


class Plugin:
    """A tap behind a NIC."""

    Options = TapOptions

    def __init__(self) -> None:
        self._device: Device | None = None
        self._watch: JointWatch | None = None
        self._capabilities = NONE
        self._waits_to_send = False
        self._told: set[str] = set()

    @hookimpl
    def init(self, name: str, options: TapOptions, link: Joint) -> None:
        """Attach to the interface, or make it; bring it up."""
        self._name = name
        self._link = link
        self._device = Device.open(name, options.sndbuf)
        try:
            if options.offload:
                self._capabilities = self._device.capabilities()
            set_up(name, options.mtu)
            self._watch = link.watch(self._device.fd, error=self._deleted)
        except BaseException:
            self.cleanup()
            raise

    @hookimpl
    def cleanup(self) -> None:
        """Detach.  An interface that isn't persistent goes with that."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._device is not None:
            self._device.close()
            self._device = None

    @hookimpl
    def send(self, burst: Burst) -> int:
        """Write the frames, one system call each.  It is full only where ``sndbuf`` limits it."""
        if self._device is None or self._watch is None:
            return len(burst)
        taken, failed, error = burst.writev(self._device.fd)
        if failed:
            self._count("tx_drop_", error, failed)
        # A deletion wakes only who waits for something, and the guest may have paused reading.
        wait = taken < len(burst) or error == errno.EBADFD
        if wait or self._waits_to_send:
            self._watch.set(write=wait)
        self._waits_to_send = wait
        return taken

    @hookimpl
    def recv(self, room: Room) -> int:
        """Read frames straight into the guest's buffers.  The watch comes back for the rest."""
        if self._device is None:
            return 0
        n, error = room.readv(self._device.fd, BURST_MAX)
        if error not in (0, errno.EBADFD):  # deleted: no frame lost, and the watch reports it
            self._count("rx_drop_", error, 1)
        return n

    @hookimpl
    def get_capabilities(self) -> Features:
        """Return what this kernel can do."""
        return self._capabilities

    @hookimpl
    def set_capabilities(self, features: Features) -> None:
        """Have the kernel do for the guest what that has not agreed to do itself.

        HOST_* need nothing: the header of each frame says what is left to do.
        """
        if self._device is None:
            return
        try:
            self._device.set_offloads(features & self._capabilities)
        except BackendError as error:
            # Deleted, and the watch is about to report it: what follows is dropped anyway.
            log.debug("%s", error)

    def _count(self, prefix: str, error: int, n: int) -> None:
        """Count frames that were lost, and log the first of each kind."""
        counter = prefix + errno.errorcode.get(error, "other")
        if counter not in COUNTERS:
            counter = f"{prefix}other"
        self._link.count(counter, n)
        if counter not in self._told:
            self._told.add(counter)
            log.warning("%s: %s: %s", self._name, counter, COUNTERS[counter])

    def _deleted(self) -> None:
        """Let go of an interface that is gone.

        Epoll reports an error of a tap from when its interface is being unregistered on, and in
        no other case; to a paused reader, when it goes on.  The link is told from here alone,
        never from within ``send``, where a frontend is in the middle of a burst.
        """
        self.cleanup()
        self._link.down(
            f"{self._name}: the interface was deleted while in use; "
            "add it again, then open this NIC again"
        )
