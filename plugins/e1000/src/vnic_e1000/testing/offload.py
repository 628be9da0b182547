"""What a virtio-net header asks for, in the e1000's descriptors, as its drivers say it.

Spec: 8254x Family Software Developer's Manual, "TCP/IP Context Transmit Descriptor Format";
"TCP/IP Data Descriptor Format".
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

_HDR: Final = struct.Struct("<BBHHHHH")

NEEDS_CSUM: Final = 1
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5

IFCS: Final = 1 << 25
TSE: Final = 1 << 26
RS: Final = 1 << 27
DEXT: Final = 1 << 29
VLE: Final = 1 << 30
DTYP_DATA: Final = 1 << 20
TUCMD_TCP: Final = 1 << 24
TUCMD_IP: Final = 1 << 25
IXSM: Final = 1 << 40
TXSM: Final = 1 << 41


def context(
    *,
    ipcss: int = 0,
    ipcso: int = 0,
    ipcse: int = 0,
    tucss: int = 0,
    tucso: int = 0,
    tucse: int = 0,
    paylen: int = 0,
    command: int = 0,
    hdrlen: int = 0,
    mss: int = 0,
) -> tuple[int, int]:
    """Return a context descriptor's two words."""
    low = ipcss | ipcso << 8 | ipcse << 16 | tucss << 32 | tucso << 40 | tucse << 48
    return low, paylen | command | DEXT | hdrlen << 40 | mss << 48


def describe(frame: Buffer, header: bytes | None) -> tuple[bytes, int, int, int]:
    """Return a frame as a driver hands it over, a context descriptor, and a data descriptor's word.

    The word lacks length, EOP and RS; where no context is needed its words are zero.
    """
    data = bytes(frame)
    if header is None or not header[0] & NEEDS_CSUM:
        return data, 0, 0, IFCS
    _, gso_type, _, mss, start, offset, _ = _HDR.unpack(header)
    rest = IFCS | DEXT | DTYP_DATA | TXSM
    gso_type &= 0x7F
    if not gso_type:
        return data, *context(tucss=start, tucso=start + offset), rest
    return _segments(data, gso_type, mss, start, offset, rest)


def _segments(
    data: bytes, gso_type: int, mss: int, l4: int, offset: int, rest: int
) -> tuple[bytes, int, int, int]:
    """As Linux does: no IP length, no IP checksum, and a pseudo-header's sum without the length."""
    frame = bytearray(data)
    l3 = 14
    while data[l3 - 2 : l3] in (b"\x81\x00", b"\x88\xa8"):
        l3 += 4
    ipv4 = frame[l3 - 2 : l3] == b"\x08\x00"
    udp = gso_type == GSO_UDP_L4
    hdrlen = l4 + (8 if udp else (frame[l4 + 12] >> 4) * 4)
    if ipv4:
        frame[l3 + 2 : l3 + 4] = bytes(2)
        frame[l3 + 10 : l3 + 12] = bytes(2)
        addresses = frame[l3 + 12 : l3 + 20]
    else:
        frame[l3 + 4 : l3 + 6] = bytes(2)
        addresses = frame[l3 + 8 : l3 + 40]
    pseudo = bytes(addresses) + struct.pack(">H", 17 if udp else 6)
    total = int.from_bytes(pseudo, "big") % 0xFFFF
    frame[l4 + offset : l4 + offset + 2] = total.to_bytes(2, "big")
    words = context(
        ipcss=l3,
        ipcso=l3 + 10 if ipv4 else 0,
        ipcse=l4 - 1,
        tucss=l4,
        tucso=l4 + offset,
        paylen=len(frame) - hdrlen,
        command=TSE | (TUCMD_IP if ipv4 else 0) | (0 if udp else TUCMD_TCP),
        hdrlen=hdrlen,
        mss=mss,
    )
    return bytes(frame), *words, rest | TSE | (IXSM if ipv4 else 0)
