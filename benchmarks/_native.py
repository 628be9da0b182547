"""The bare machine, for benchmarks: a cache line's time, memcpy, writev and readv (_native.c)."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kit.missing import Missing

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SOURCE: Final = Path(__file__).with_name("_native.c")

_CHUNKS: Final = 64
"""Figures per probe, 0.4 to 3 ms in all where the cores are idle."""


@functools.cache
def library() -> ctypes.CDLL:
    """Return the compiled _native.c.

    Raises: Missing, without a C compiler.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise Missing("C compiler", "there is no cc", "apt-get install gcc libc6-dev")
    with tempfile.TemporaryDirectory(prefix="vnic-benchmarks-") as folder:
        path = Path(folder) / "native.so"
        options = ["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-pthread"]
        subprocess.run([compiler, *options, "-o", path, _SOURCE], check=True)
        return ctypes.CDLL(str(path))  # stays mapped when the file has gone


def line_latency_ns(cpu_a: int, cpu_b: int) -> float:
    """Return how long a cache line takes from one core to the other now.

    The cores may be busy: the lower quartile of many short figures has none that the scheduler cut
    in two.

    Raises: Missing, without a C compiler.
    """
    ns = (ctypes.c_double * _CHUNKS)()
    if library().line_latency(cpu_a, cpu_b, ns, _CHUNKS) != 0:
        raise OSError("no threads to be had for the latency probe")
    return float(statistics.quantiles(ns, n=4)[0])


class _Slots(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("n", ctypes.c_size_t),
        ("stride", ctypes.c_size_t),
        ("len", ctypes.c_size_t),
        ("offset", ctypes.c_size_t),
    )


class Slots:
    """Buffers of a ring, ``stride`` bytes apart: memory that frames are copied from or to."""

    def __init__(self, memory: Buffer, n: int, stride: int, length: int, offset: int) -> None:
        """Describe ``n`` buffers of ``length`` bytes; a frame begins ``offset`` into its first."""
        self._memory = (ctypes.c_char * (n * stride)).from_buffer(memory)
        base = ctypes.addressof(self._memory)
        self.struct = _Slots(base=base, n=n, stride=stride, len=length, offset=offset)


class Copier:
    """Copies frames from slots to slots by memcpy, round and round."""

    def __init__(self, src: Slots, dst: Slots, frame_len: int) -> None:
        self._keep = src, dst
        self._at = (ctypes.c_size_t * 2)()
        copy = library().copy_frames
        copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_size_t] * 2, ctypes.c_void_p]
        copy.restype = None
        self._copy = copy
        self._arguments = ctypes.addressof(src.struct), ctypes.addressof(dst.struct), frame_len

    def copy(self, n: int) -> None:
        """Copy the next ``n`` frames; the GIL is released meanwhile."""
        self._copy(*self._arguments, n, self._at)


class Writer:
    """Writes frames from slots to a descriptor, a ``writev`` each, round and round."""

    def __init__(self, fd: int, src: Slots, header: bytes, frame_len: int) -> None:
        self._keep = src, (header_ := ctypes.create_string_buffer(header, len(header)))
        self._at = ctypes.c_size_t()
        write = library().write_frames
        write.argtypes = [
            ctypes.c_int,
            *[ctypes.c_void_p] * 2,
            *[ctypes.c_size_t] * 3,
            ctypes.c_void_p,
        ]
        write.restype = ctypes.c_size_t
        self._write = write
        self._arguments = fd, ctypes.addressof(src.struct), header_, len(header), frame_len

    def write(self, n: int) -> None:
        """Write the next ``n`` frames; the GIL is released meanwhile.

        Raises: RuntimeError, when fewer were taken.
        """
        written = self._write(*self._arguments, n, ctypes.byref(self._at))
        if written != n:
            raise RuntimeError(f"of {n} frames {written} were written")


class Reader:
    """Reads frames of one length from a descriptor to slots, a ``readv`` each, round and round."""

    def __init__(self, fd: int, dst: Slots, frame_len: int) -> None:
        self._keep = dst
        self._at = ctypes.c_size_t()
        read = library().read_frames
        read.argtypes = [ctypes.c_int, ctypes.c_void_p, *[ctypes.c_size_t] * 2, ctypes.c_void_p]
        read.restype = ctypes.c_size_t
        self._read = read
        self._arguments = fd, ctypes.addressof(dst.struct), frame_len

    def read(self, n: int) -> None:
        """Read the next ``n`` frames; the GIL is released meanwhile.

        Raises: RuntimeError, when fewer were there, or of another length.
        """
        got = self._read(*self._arguments, n, ctypes.byref(self._at))
        if got != n:
            raise RuntimeError(f"of {n} frames {got} were read")
