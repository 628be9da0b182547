"""What goes over the wire in benchmarks."""

from __future__ import annotations

from typing import Final

SRC_MAC: Final = bytes.fromhex("020000000001")
DST_MAC: Final = bytes.fromhex("020000000002")

GSO_HEADER: Final = bytes.fromhex("01 01 3600 a805 2200 1000 0000")
"""Checksum to be completed; TCP over IPv4; 54 bytes of headers, segments of 1448 bytes; the
checksum begins at byte 34 and is stored 16 bytes into that."""


def frame(
    length: int, addresses: bytes = DST_MAC + SRC_MAC, ethertype: bytes = b"\x08\x00"
) -> bytes:
    """Return a frame of that length, with the IPv4 and TCP headers that offload asks for."""
    ip = bytes.fromhex("4500") + (length - 14).to_bytes(2, "big") + bytes.fromhex("00004000")
    ip += bytes.fromhex("4006 0000 0a000001 0a000002")
    tcp = bytes.fromhex("0400 0400 00000001 00000001 5010 ffff 0000 0000")
    start = addresses + ethertype + ip + tcp
    return (start + bytes(i * 7 & 0xFF for i in range(length)))[:length]
