"""Frames that lie in many pieces, as a guest's descriptors may have them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import attrs
from vnic.burst import Burst

_CAPSULE: Final = b"vnic.burst/2"


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Frame(ctypes.Structure):
    _fields_ = (
        ("first", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("len", ctypes.c_uint32),
        ("token", ctypes.c_uint32),
        ("hdr", ctypes.c_uint8 * 12),
        ("flags", ctypes.c_uint32),
    )


class _Burst(ctypes.Structure):
    """``struct vnic_burst`` of vnic.h."""

    _fields_ = (
        ("n", ctypes.c_uint32),
        ("n_iov", ctypes.c_uint32),
        ("n_max", ctypes.c_uint32),
        ("n_iov_max", ctypes.c_uint32),
        ("frames", ctypes.POINTER(_Frame)),
        ("iov", ctypes.POINTER(_Iovec)),
    )


@attrs.frozen(kw_only=True)
class Pieces:
    """A burst of frames in pieces, and the memory that they lie in."""

    burst: Burst
    memory: Sequence[object]

    @classmethod
    def of(
        cls,
        frames: Sequence[bytes],
        headers: Sequence[bytes | None],
        cut: Callable[[int], Iterable[int]],
    ) -> Pieces:
        """Lay them out; ``cut`` gives the lengths of a frame's pieces, from that of the frame."""
        burst, memory = Burst(), []
        raw = _raw(burst)
        for frame, header in zip(frames, headers, strict=True):
            buffer = ctypes.create_string_buffer(frame, len(frame))
            memory.append(buffer)
            record = raw.frames[raw.n]
            record.first, record.count, record.len = raw.n_iov, 0, len(frame)
            record.hdr[:] = header or bytes(12)
            at = 0
            for n in cut(len(frame)):
                assert raw.n_iov < raw.n_iov_max
                raw.iov[raw.n_iov] = _Iovec(ctypes.addressof(buffer) + at, n)
                raw.n_iov += 1
                record.count += 1
                at += n
            assert at == len(frame)
            raw.n += 1
        return cls(burst=burst, memory=memory)


def _raw(burst: Burst) -> _Burst:
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return _Burst.from_address(pointer(burst.capsule, _CAPSULE))
