"""Frames between ports whose virtio-net headers differ: the module's offload, faults included.

A header is 0, 10 or 12 bytes; 12 has the number of buffers besides, which is left at 0.  Where the
receiver has none, what the header asks for is done: checksums are filled in, large frames cut.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from vnic_netmap.testing.rings import MOREFRAG

VNET_HDR_LEN: Final = 10
_VNET_HDR: Final = struct.Struct("<BBHHHH")
_NEEDS_CSUM: Final = 1
_DATA_VALID: Final = 2
_GSO_NONE: Final = 0
_GSO_TCPV4: Final = 1
_GSO_UDP: Final = 3
_GSO_TCPV6: Final = 4
_GSO_ECN: Final = 0x80
_KNOWN_GSO: Final = (_GSO_NONE, _GSO_TCPV4, _GSO_UDP, _GSO_TCPV6)

_FIN_PSH: Final = 0x09

Slots = list[tuple[memoryview | bytes, int]]
"""What goes into slots: bytes and flags."""


def flagged(fragments: Sequence[memoryview | bytes]) -> Slots:
    """Return the fragments of a frame with their flags: more to come, and how many there are."""
    count = len(fragments) << 8
    if len(fragments) == 1:
        return [(fragments[0], count)]
    more = count | MOREFRAG
    return [*((fragment, more) for fragment in fragments[:-1]), (fragments[-1], count)]


def convert(frame: Sequence[memoryview | bytes], from_len: int, to_len: int, mfs: int) -> Slots:
    """Return what a port with another header gets of a frame; nothing if it is lost.

    ``mfs``: the longest frame that the receiver is given by segmentation.
    """
    first = bytes(frame[0])
    vnet_hdr = first[:VNET_HDR_LEN] if from_len else bytes(VNET_HDR_LEN)
    # The first slot may become longer than a buffer here.  That is the module's fault.
    first = vnet_hdr.ljust(to_len, b"\0")[:to_len] + first[from_len:]
    fragments = [first, *frame[1:]] if first else list(frame[1:])
    if to_len:
        return flagged(fragments)
    flags, gso_type, _, _, start, offset = _VNET_HDR.unpack(vnet_hdr)
    if flags & ~(_NEEDS_CSUM | _DATA_VALID) or gso_type & ~_GSO_ECN not in _KNOWN_GSO:
        return []
    if gso_type != _GSO_NONE:
        # The count of fragments is 0 in segments.
        return [(segment, 0) for segment in _segments(fragments, gso_type, mfs)]
    if flags & _NEEDS_CSUM:
        fragments[0] = _completed(fragments, start, offset)
    return flagged(fragments)


def _completed(fragments: Sequence[memoryview | bytes], start: int, offset: int) -> bytes:
    """Return the first fragment with the checksum that was asked for.

    Each fragment is summed by itself, as if those before it had an even length: if one has not, the
    checksum is wrong.  That is the module's fault.
    """
    first = bytes(fragments[0])
    at = start + offset
    if at + 2 > len(first):
        return first
    total = _ones_sum(first[start:], *(bytes(fragment) for fragment in fragments[1:]))
    return first[:at] + (0xFFFF - total).to_bytes(2, "big") + first[at + 2 :]


def _segments(fragments: Sequence[memoryview | bytes], gso_type: int, mfs: int) -> Iterator[bytes]:
    """Yield the segments of a large frame, as long as can be: what gso_size says is ignored.

    The headers have to be whole in the first fragment, and IPv6 without extensions.
    """
    first = bytes(fragments[0])
    udp = gso_type & ~_GSO_ECN == _GSO_UDP
    l3 = 14
    while first[l3 - 2 : l3] == b"\x81\x00":
        l3 += 4
    ipv4 = first[l3 - 2 : l3] == b"\x08\x00"
    ipv6 = first[l3 - 2 : l3] == b"\x86\xdd"
    if not (ipv4 or ipv6) or len(first) < l3 + 20:
        return
    l4 = l3 + (4 * (first[l3] & 0x0F) if ipv4 else 40)
    if len(first) < l4 + (8 if udp else 20):
        return
    headers_len = l4 + (8 if udp else 4 * (first[l4 + 12] >> 4))
    if not l4 < headers_len <= min(len(first), mfs - 1):
        return
    payload = first[headers_len:] + b"".join(bytes(fragment) for fragment in fragments[1:])
    step = mfs - headers_len
    for index, done in enumerate(range(0, len(payload), step)):
        segment = bytearray(first[:headers_len] + payload[done : done + step])
        _fix_ip(segment, l3, l4, index, ipv4=ipv4)
        _fix_l4(segment, l3, l4, done, ipv4=ipv4, udp=udp, last=done + step >= len(payload))
        yield bytes(segment)


def _fix_ip(segment: bytearray, l3: int, l4: int, index: int, *, ipv4: bool) -> None:
    if not ipv4:
        segment[l3 + 4 : l3 + 6] = (len(segment) - l4).to_bytes(2, "big")
        return
    segment[l3 + 2 : l3 + 4] = (len(segment) - l3).to_bytes(2, "big")
    ip_id = int.from_bytes(segment[l3 + 4 : l3 + 6], "big") + index
    segment[l3 + 4 : l3 + 6] = (ip_id & 0xFFFF).to_bytes(2, "big")
    segment[l3 + 10 : l3 + 12] = bytes(2)
    segment[l3 + 10 : l3 + 12] = (0xFFFF - _ones_sum(segment[l3:l4])).to_bytes(2, "big")


def _fix_l4(
    segment: bytearray, l3: int, l4: int, done: int, *, ipv4: bool, udp: bool, last: bool
) -> None:
    if udp:
        segment[l4 + 4 : l4 + 6] = (len(segment) - l4).to_bytes(2, "big")
    else:
        seq = int.from_bytes(segment[l4 + 4 : l4 + 8], "big") + done
        segment[l4 + 4 : l4 + 8] = (seq & 0xFFFF_FFFF).to_bytes(4, "big")
        if not last:
            segment[l4 + 13] &= ~_FIN_PSH
    addresses, protocol = (
        (segment[l3 + 12 : l3 + 20], segment[l3 + 9])
        if ipv4
        else (segment[l3 + 8 : l3 + 40], segment[l3 + 6])
    )
    check = l4 + (6 if udp else 16)
    segment[check : check + 2] = bytes(2)
    pseudo_header = addresses + struct.pack(">II", len(segment) - l4, protocol)
    total = _ones_sum(pseudo_header, segment[l4:])
    segment[check : check + 2] = (0xFFFF - total).to_bytes(2, "big")


def _ones_sum(*pieces: bytes | bytearray) -> int:
    """Return the ones' complement sum of pieces, each padded to an even length."""
    total = sum(int.from_bytes(piece + bytes(len(piece) % 2), "big") for piece in pieces)
    return (total - 1) % 0xFFFF + 1 if total else 0
