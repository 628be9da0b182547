"""Frames that an e1000 receives, and the bits that say so."""

from __future__ import annotations

import struct

MAC = b"\x52\x54\x00\x12\x34\x56"
OTHER = b"\x52\x54\x00\x12\x34\x57"
GROUP = b"\x01\x00\x5e\x01\x02\x03"
ALL = b"\xff" * 6
DD, EOP, IXSM, VP, TCPCS, IPCS, PIF = 1, 2, 4, 8, 0x20, 0x40, 0x80
IPE = 0x40
VFE = 1 << 18
SECRC = 1 << 26
VME = 1 << 30
DATA_VALID = 2
SIZES = {
    256: 3 << 16,
    512: 2 << 16,
    1024: 1 << 16,
    2048: 0,
    4096: 3 << 16 | 1 << 25,
    8192: 2 << 16 | 1 << 25,
    16384: 1 << 16 | 1 << 25,
}


def frame(dst: bytes = MAC, n: int = 100, fill: bytes = b"d") -> bytes:
    """Return a frame from OTHER."""
    return dst + OTHER + b"\x12\x34" + fill * (n - 14)


def tagged(vid: int, dst: bytes = MAC, n: int = 100) -> bytes:
    """Return one with a VLAN tag."""
    return dst + OTHER + struct.pack(">HHH", 0x8100, vid, 0x1234) + b"v" * (n - 18)
