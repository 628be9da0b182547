"""The system calls that a port makes, in one place: where tests put a module of their own.

Everything else, to the last line, is the same with the kernel's module and without.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer

DEVICE: Final = "/dev/netmap"


class System(Protocol):
    """What a port needs of a system with netmap.  All raise OSError as the kernel would.

    The loop's epoll waits on the same descriptor, so that it must be one that epoll takes:
    readable while a receive ring has slots from its ``cur`` on, writable while a transmit ring
    has, and in error when the port is gone.
    """

    def open(self) -> int:
        """Open ``/dev/netmap``: a descriptor bound to no port yet."""

    def ioctl(self, fd: int, request: int, argument: Buffer | None = None) -> None:
        """Make a request (`vnic_netmap.abi`); the argument, a struct, is changed in place."""

    def mmap(self, fd: int, length: int) -> mmap.mmap:
        """Map the memory of the port that the descriptor is bound to, to be read and written.

        The mapping keeps the port registered, as it holds a duplicate of the descriptor, until it
        is closed; that can't be while a memoryview of it is left.
        """

    def close(self, fd: int) -> None:
        """Close a descriptor that `open` gave."""


class Kernel:
    """The system with the kernel's module."""

    def open(self) -> int:
        """Open ``/dev/netmap``."""
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, argument: Buffer | None = None) -> None:
        """Make a request."""
        fcntl.ioctl(fd, request, 0 if argument is None else argument)

    def mmap(self, fd: int, length: int) -> mmap.mmap:
        """Map the port's memory."""
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)

    def close(self, fd: int) -> None:
        """Close the descriptor."""
        os.close(fd)


current: System = Kernel()
"""What ports call; each takes it once, when it opens.  Tests put a stand-in here, as by
``monkeypatch.setattr(system, "current", stand_in)``.
"""
