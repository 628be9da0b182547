"""Work in a network namespace, done by a thread that exists for nothing else."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, ParamSpec, Self, TypeVar

from vnic.errors import BackendError, ConfigError

from vnic_tap.device import why

P = ParamSpec("P")
T = TypeVar("T")

NAMES: Final = Path("/run/netns")
"""Where ``ip netns`` keeps the namespaces that have names."""

_OWN: Final = "/proc/thread-self/ns/net"
_CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
_NS_GET_NSTYPE: Final = 0xB703  # linux/nsfs.h


class Namespace:
    """The network namespace that an interface is in; a context manager that lets it go again."""

    def __init__(self, label: str, where: str | None) -> None:
        """``where`` is a name, or a path (with a slash); None: the calling thread's own.

        Raises: ConfigError or BackendError, which begin with the label.
        """
        self._label = label if where is None else f"{label}: netns={where}"
        path = _OWN if where is None else where if "/" in where else str(NAMES / where)
        try:
            # A pipe of that name would otherwise have us wait for somebody to write to it.
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise self._not_there(path, error) from None
        try:
            is_one = fcntl.ioctl(self._fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
        except OSError:
            is_one = False
        if not is_one:
            self.close()
            raise ConfigError(
                f"{self._label}: {path} is no network namespace; "
                "give a name that ip netns lists, or a path like /proc/PID/ns/net"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do something inside, and return what it returns.

        What it opens there belongs to that namespace for good.  No other thread is ever moved, and
        the one that is ends with the work.

        Raises: what the work does; BackendError, when this process may not go there.
        """

        def inside() -> T:
            self._enter()
            return work(*args, **kwargs)

        with ThreadPoolExecutor(1, thread_name_prefix="netns") as thread:
            return thread.submit(inside).result()

    def close(self) -> None:
        """Let it go; what was opened there stays.  Twice is allowed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _enter(self) -> None:
        # A new thread is where its maker is.  Entering takes a privilege, even from there.
        if os.path.samestat(os.fstat(self._fd), os.stat(_OWN)):  # noqa: PTH116 - a magic link
            return
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(self._fd, _CLONE_NEWNET) != 0:
            raise BackendError(
                f"{self._label}: cannot enter it: {why(ctypes.get_errno())}; run with "
                "CAP_SYS_ADMIN, or have somebody open the tap there and pass it: tap:fd=N"
            )

    def _not_there(self, path: str, error: OSError | ValueError) -> ConfigError | BackendError:
        number = error.errno if isinstance(error, OSError) else errno.EINVAL
        text = f"{self._label}: cannot open {path}: {why(number)}"
        if number == errno.ENOENT:
            return ConfigError(f"{text}; ip netns lists those there are, ip netns add makes one")
        if number in (errno.EACCES, errno.EPERM):
            return BackendError(f"{text}; run as its owner, or with CAP_SYS_ADMIN")
        return ConfigError(f"{text}; give a name that ip netns lists, or a path")
