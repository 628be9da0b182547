"""Timers as descriptors, which ``os`` has from Python 3.13 on."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Final


class _Itimerspec(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_long) for name in ("interval_s", "interval_ns", "value_s", "value_ns")
    )


_libc = ctypes.CDLL(None, use_errno=True)
_TFD_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | os.O_CLOEXEC


def timerfd_create() -> int:
    """Return a descriptor that never blocks; it is the caller's to close."""
    fd = int(_libc.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK_CLOEXEC))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return fd


def timerfd_settime(fd: int, delay_s: float | None) -> None:
    """Make it readable in ``delay_s`` seconds; None: never."""
    delay_ns = 0 if delay_s is None else max(1, int(delay_s * 1e9))
    spec = _Itimerspec(0, 0, delay_ns // 10**9, delay_ns % 10**9)
    _libc.timerfd_settime(fd, 0, ctypes.byref(spec), None)
