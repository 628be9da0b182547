"""Memory of the process that makes the calls, by address, as the module copies it in and out."""

from __future__ import annotations

import errno
import os


class UserMemory:
    """All of this process's memory.  An address that can't be is EFAULT, and no crash."""

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/mem", os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def read(self, address: int, n: int) -> bytes:
        """Copy in.

        Raises: OSError, EFAULT.
        """
        try:
            data = os.pread(self._fd, n, address)
        except (OSError, OverflowError):
            data = b""
        if len(data) < n:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
        return data

    def read_or_nothing(self, address: int, n: int) -> bytes:
        """Copy in; what can't be read counts as empty."""
        try:
            return self.read(address, n)
        except OSError:
            return b""

    def write(self, address: int, data: bytes) -> None:
        """Copy out.

        Raises: OSError, EFAULT.
        """
        try:
            n = os.pwrite(self._fd, data, address)
        except (OSError, OverflowError):
            n = -1
        if n < len(data):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
