"""Kicks from the driver and calls to it: descriptors that a VMM has passed to a server.

Each object owns its descriptor and closes it once.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vnic.errors import PeerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vnic.loop import Loop, Timer

log: Final = logging.getLogger("vnic.notifiers")

POLL_S: Final = 0.001
"""How often a queue without a kick descriptor is looked at.  No VMM that we know leaves it out;
one that does must not cost a processor.
"""

_buffer: Final = bytearray(4096)
"""Takes an eventfd's 8 bytes, or a pipe's at once; what they say means nothing."""


def check_notifier(fd: int, what: str) -> None:
    """Make sure that the descriptor is one to wait on or to write to without blocking.

    Threat: reading or writing whatever the VMM passes may block, on a file that it serves itself
    for instance.  Consequence: the process would stand still, with the NICs of other guests.  An
    eventfd or a pipe can't do more than be full or empty, and is set not to wait; a VMM that sets
    it to wait again and fills it stalls this process, which no check can rule out.

    Raises: PeerError, for anything else, which is closed.
    """
    try:
        kind = str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:  # no /proc here: all that is known is what can be done with it
        kind = "pipe:"
    if not kind.startswith(("anon_inode:[eventfd]", "pipe:")):
        os.close(fd)
        raise PeerError(f"{what}: the descriptor is {kind}; an eventfd or a pipe is needed")
    os.set_blocking(fd, False)


class Kick:
    """Calls back when the driver has made buffers available."""

    def __init__(self, loop: Loop, fd: int | None, kicked: Callable[[], None], what: str) -> None:
        self._fd = fd
        self._kicked = kicked
        self._loop = loop
        self._timer: Timer | None = None
        if fd is None:
            self._timer = loop.timer(POLL_S, self._poll)
        else:
            check_notifier(fd, what)
            self._watch = loop.watch(fd, self._readable)

    def close(self) -> None:
        """Call back no more.  Twice is allowed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._fd is not None:
            self._watch.close()
            os.close(self._fd)
            self._fd = None

    def _readable(self, events: int) -> None:
        assert self._fd is not None
        try:
            n = os.preadv(self._fd, [_buffer], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:  # a pipe, on an older kernel
                n = len(os.read(self._fd, len(_buffer)))
            else:
                log.warning("a kick descriptor can't be read any more: %s", error.strerror)
                n = 0
        if n:
            self._kicked()
        else:  # a pipe whose other end has gone would be readable for ever
            self._watch.close()

    def _poll(self) -> None:
        self._timer = self._loop.timer(POLL_S, self._poll)
        self._kicked()


class Call:
    """An interrupt to the driver, or a sign to the VMM that the device is broken."""

    def __init__(self, fd: int | None, what: str) -> None:
        if fd is not None:
            check_notifier(fd, what)
        self._fd = fd

    def signal(self) -> None:
        """Interrupt, once; does nothing where there is no descriptor."""
        if self._fd is None:
            return
        try:
            os.eventfd_write(self._fd, 1)
        except BlockingIOError:
            pass  # full of interrupts that nobody took yet: one more tells nothing new
        except OSError as error:
            log.warning("a call descriptor can't be written to any more: %s", error.strerror)
            self.close()

    def close(self) -> None:
        """Interrupt no more.  Twice is allowed."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
