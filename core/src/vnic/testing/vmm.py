"""The other end of a server's socket: a VMM without a guest.

What is said there is a protocol's own; a plugin's ``testing.Vmm`` adds it.
"""

from __future__ import annotations

import fcntl
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeVar

from vnic.memory import Memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

T = TypeVar("T")

GPA: Final = 0x4000_0000
"""Where guest memory begins, guest-physical."""

FDS_MAX: Final = 8
"""Descriptors that a VMM sends or takes with one message; QEMU's number."""

PUMPS_MAX: Final = 100
"""How often the server's loop gets a turn before a reply counts as missing."""


class DisconnectedError(ConnectionError):
    """The server has closed the connection."""


class SocketVmm:
    """A VMM with one block of guest memory, which does what it is told, right or wrong.

    ``pump`` gives the server a turn where it lives in this thread (``loop.dispatch``); without it
    reads wait for a server elsewhere, for at most ``timeout_s``.
    """

    def __init__(
        self,
        sock: socket.socket,
        pump: Callable[[], object] | None = None,
        *,
        timeout_s: float = 10.0,
    ) -> None:
        self.socket = sock
        self.pump = pump
        self.memory = Memory()
        """As the guest sees it; what the server maps is the same."""
        self.memory_fd = -1
        self.fds: list[int] = []
        """What came with the last message."""
        self._next_gpa = GPA
        sock.settimeout(0.0 if pump else timeout_s)

    @classmethod
    def connect(
        cls,
        path: str | os.PathLike[str],
        pump: Callable[[], object] | None = None,
        *,
        timeout_s: float = 10.0,
    ) -> Self:
        """Connect to a server that listens."""
        vmm = cls(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), pump, timeout_s=timeout_s)
        try:
            vmm._patiently(lambda: vmm.socket.connect(os.fspath(path)))
        except OSError:
            vmm.close()
            raise
        return vmm

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect, without a word, as a VMM that dies.  Twice is allowed."""
        self.socket.close()
        self.close_fds()
        if self.memory_fd >= 0:
            self.memory.clear()
            os.close(self.memory_fd)
            self.memory_fd = -1

    # ---- the socket ------------------------------------------------------------------------------

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send bytes; the descriptors go with the first of them, and stay the caller's.

        Raises: DisconnectedError.
        """
        try:
            sent = socket.send_fds(self.socket, [data], fds) if fds else self.socket.send(data)
            assert sent == len(data), "the socket's buffer is full"
        except (BrokenPipeError, ConnectionResetError) as error:
            raise DisconnectedError("the server has closed the connection") from error

    def receive_bytes(self, n: int) -> bytes:
        """Return the next ``n`` bytes; what came with them is added to `fds`.

        Raises: DisconnectedError, TimeoutError.
        """
        data = b""
        while len(data) < n:
            receive = partial(socket.recv_fds, self.socket, n - len(data), FDS_MAX)
            try:
                piece, fds, _, _ = self._patiently(receive)
            except ConnectionResetError:
                piece, fds = b"", []
            self.fds += fds
            if not piece:
                raise DisconnectedError("the server has closed the connection")
            data += piece
        return data

    def close_fds(self) -> None:
        """Close what came with the last message."""
        while self.fds:
            os.close(self.fds.pop())

    def is_refused(self) -> bool:
        """Whether the server closes the connection now, and says nothing more."""
        try:
            self.receive_bytes(1)
        except DisconnectedError:
            return True
        except TimeoutError:
            return False
        raise AssertionError("the server answers")

    def _patiently(self, call: Callable[[], T]) -> T:
        """Give the server turns until the call doesn't have to wait for it."""
        for _ in range(PUMPS_MAX):
            try:
                return call()
            except BlockingIOError:
                assert self.pump is not None
                self.pump()
        raise TimeoutError("the server does not answer")

    # ---- guest memory ----------------------------------------------------------------------------

    def make_memory(self, size: int, *, sealed: bool = True) -> None:
        """Make guest memory of a memfd, at `GPA`; once.  Sealed: nobody can cut it short."""
        if self.memory_fd < 0:
            self.memory_fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.memory_fd, size)
            if sealed:
                fcntl.fcntl(self.memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            self.memory.add(GPA, size, fd=self.memory_fd)

    def alloc(self, n: int, align: int = 16) -> int:
        """Return the gpa of ``n`` bytes that nobody uses, zero until written."""
        gpa = -(-self._next_gpa // align) * align
        self.memory.view(gpa, n)  # or it raises: they don't fit any more
        self._next_gpa = gpa + n
        return gpa


def signals(fd: int) -> int:
    """Return how often an eventfd was written to since the last time."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0
