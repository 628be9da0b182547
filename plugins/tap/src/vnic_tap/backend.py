"""What every tap does behind a NIC, however it was opened."""

from __future__ import annotations

import contextlib
import errno
import logging
from typing import Any, Final

from vnic import hookimpl
from vnic.burst import BURST_MAX, Burst, Room
from vnic.config import default_mac
from vnic.errors import BackendError
from vnic.features import NONE, Features
from vnic.link import Joint, JointWatch

from vnic_tap.device import Device
from vnic_tap.interface import delete_macvtap
from vnic_tap.macvtap import open_macvtap
from vnic_tap.names import Passed, parse
from vnic_tap.namespace import Namespace
from vnic_tap.options import MacvtapOptions, TapOptions
from vnic_tap.passed import open_passed
from vnic_tap.tap import open_tap

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

_LOOK_S: Final = 1.0
"""How often a macvtap, which doesn't tell, is asked whether its interface is there."""


class Backend:
    """A tap behind a NIC; how it is opened is `_open`'s."""

    def __init__(self) -> None:
        self._device: Device | None = None
        self._watch: JointWatch | None = None
        self._opened = contextlib.ExitStack()
        self._capabilities = NONE
        self._waits_to_send = False
        self._told: set[str] = set()

    def _open(self, name: str, options: Any, opened: contextlib.ExitStack) -> Device:
        """Open what the name says; ``opened`` takes what undoes it.

        Raises: ConfigError or BackendError.
        """
        raise NotImplementedError

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        """Attach to the interface, or make it; bring it up."""
        self._name = name
        self._link = link
        try:
            self._device = self._open(name, options, self._opened)
            if options.offload:
                self._capabilities = self._device.capabilities()
            self._watch = link.watch(self._device.fd, error=self._deleted)
            if self._device.is_macvtap:
                self._look()
        except BaseException:
            self.cleanup()
            raise

    @hookimpl
    def cleanup(self) -> None:
        """Detach.  An interface that was made here, and isn't persistent, goes with that."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        self._device = None
        try:
            self._opened.close()
        except BackendError as error:
            log.warning("%s", error)

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
            # Deleted, which is about to be noticed: what follows is dropped anyway.
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

    def _look(self) -> None:
        """See whether the interface is there, now and then."""
        if self._device is None:
            return
        if self._device.is_there:
            self._link.timer(_LOOK_S, self._look)
        else:
            self._deleted()

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


class Tap(Backend):
    """A tap: ``tap0``, ``tap:NAME``, ``tap:fd=N``."""

    Options = TapOptions

    def _open(self, name: str, options: TapOptions, opened: contextlib.ExitStack) -> Device:
        meant = parse(name)
        if isinstance(meant, Passed):
            device = open_passed(meant.fd, options)
        else:
            with Namespace(meant.interface, options.netns) as namespace:
                device = namespace.call(open_tap, meant.interface, options)
        opened.callback(device.close)
        return device


class Macvtap(Backend):
    """A macvtap: ``macvtap0``, ``macvtap:NAME``, ``macvtap:fd=N``."""

    Options = MacvtapOptions

    def _open(self, name: str, options: MacvtapOptions, opened: contextlib.ExitStack) -> Device:
        meant = parse(name)
        if isinstance(meant, Passed):
            device = open_passed(meant.fd, options)
        else:
            namespace = opened.enter_context(Namespace(meant.interface, options.netns))
            mac = default_mac(self._link.name)
            device, made = namespace.call(open_macvtap, meant.interface, options, mac)
            if made is not None:
                opened.callback(namespace.call, delete_macvtap, meant.interface, made)
        opened.callback(device.close)
        return device
