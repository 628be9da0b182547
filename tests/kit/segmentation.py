"""Offload in plain Python: packets that ask for it, and what should become of them.

Written from RFC 791, 8200, 9293 and 768, and Virtio 1.3, "Network Device", "Packet Transmission";
slow, and on purpose not like the kernel: numbers are big-endian integers of any size.
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2
TCPV4: Final = 1
UFO: Final = 3
TCPV6: Final = 4
UDP_L4: Final = 5
ECN: Final = 0x80

FIN: Final = 0x01
PSH: Final = 0x08
CWR: Final = 0x80


def ones_sum(data: bytes) -> int:
    """The ones' complement sum of RFC 1071: a remainder, in which 0 stands as 0xFFFF."""
    if not any(data):
        return 0
    return int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF or 0xFFFF


def checksum(data: bytes) -> int:
    return 0xFFFF - ones_sum(data)


def header(
    flags: int = 0,
    gso_type: int = 0,
    hdr_len: int = 0,
    gso_size: int = 0,
    csum_start: int = 0,
    csum_offset: int = 0,
    num_buffers: int = 0,
) -> bytes:
    """``struct virtio_net_hdr_v1``."""
    return struct.pack(
        "<BBHHHHH", flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers
    )


@attrs.frozen(kw_only=True)
class Packet:
    """A TCP or UDP packet, and how to ask for its segmentation."""

    ipv6: bool = False
    udp: bool = False
    n_tags: int = 0
    options: bytes = b""
    """Of IPv4, or extension headers of IPv6: a multiple of 4, or of 8, bytes."""
    tcp_options: bytes = b""
    tcp_flags: int = 0x10
    payload: bytes = b""
    seq: int = 1000
    ip_id: int = 0xFFFE
    gso_size: int = 1000

    @property
    def l3(self) -> int:
        """Where its IP header begins."""
        return 14 + 4 * self.n_tags

    @property
    def l4(self) -> int:
        """Where its TCP or UDP header begins."""
        return self.l3 + (40 if self.ipv6 else 20) + len(self.options)

    @property
    def header(self) -> bytes:
        """Its virtio-net header."""
        l4_len = 8 if self.udp else 20 + len(self.tcp_options)
        kind = UDP_L4 if self.udp else TCPV6 if self.ipv6 else TCPV4
        offset = 6 if self.udp else 16
        return header(NEEDS_CSUM, kind, self.l4 + l4_len, self.gso_size, self.l4, offset)

    def frame(self) -> bytes:
        """The frame as a driver gives it: the checksum field holds no more than it must."""
        ethertype = 0x86DD if self.ipv6 else 0x0800
        tags = b"".join(struct.pack(">HH", 0x8100, i + 1) for i in range(self.n_tags))
        l4 = self.l4_header() + self.payload
        ip = self._ipv6(len(l4)) if self.ipv6 else self._ipv4(len(l4))
        ends = b"\x02\0\0\0\0\1" + b"\x02\0\0\0\0\2"
        return ends + tags + struct.pack(">H", ethertype) + ip + l4

    def l4_header(self) -> bytes:
        """Its TCP or UDP header."""
        if self.udp:
            return struct.pack(">HHHH", 53, 5353, (8 + len(self.payload)) & 0xFFFF, 0xAAAA)
        words = (5 + len(self.tcp_options) // 4) << 12 | self.tcp_flags
        head = struct.pack(">HHIIHHHH", 80, 12345, self.seq, 7, words, 500, 0xAAAA, 0)
        return head + self.tcp_options

    def _ipv4(self, l4_len: int) -> bytes:
        words = 5 + len(self.options) // 4
        n = (4 * words + l4_len) & 0xFFFF
        proto = 17 if self.udp else 6
        fixed = struct.pack(">BBHHHBBH", 0x40 | words, 0, n, self.ip_id, 0x4000, 64, proto, 0x1234)
        return fixed + bytes(range(1, 9)) + self.options

    def _ipv6(self, l4_len: int) -> bytes:
        proto = 17 if self.udp else 6
        n = (len(self.options) + l4_len) & 0xFFFF
        fixed = struct.pack(">IHBB", 0x6 << 28, n, 60 if self.options else proto, 64)
        return fixed + bytes(range(1, 33)) + self.options

    def segments(self) -> list[bytes]:
        """What segmentation in software should make of it."""
        cuts = range(0, len(self.payload), self.gso_size)
        return [self._segment(i, at, at + self.gso_size) for i, at in enumerate(cuts)]

    def _segment(self, i: int, start: int, end: int) -> bytes:
        last = end >= len(self.payload)
        flags = self.tcp_flags
        if not last:
            flags &= ~(FIN | PSH)
        if i:
            flags &= ~CWR
        part = attrs.evolve(
            self,
            payload=self.payload[start:end],
            seq=(self.seq + start) & 0xFFFF_FFFF,
            ip_id=(self.ip_id + i) & 0xFFFF,
            tcp_flags=flags,
        )
        return part.summed()

    def summed(self) -> bytes:
        """The frame with all its checksums."""
        frame = bytearray(self.frame())
        at = self.l4 + (6 if self.udp else 16)
        frame[at : at + 2] = bytes(2)
        value = checksum(pseudo_header(frame, self) + frame[self.l4 :])
        if value == 0 and self.udp:
            value = 0xFFFF
        frame[at : at + 2] = value.to_bytes(2, "big")
        if not self.ipv6:
            frame[self.l3 + 10 : self.l3 + 12] = bytes(2)
            ip = checksum(bytes(frame[self.l3 : self.l4]))
            frame[self.l3 + 10 : self.l3 + 12] = ip.to_bytes(2, "big")
        return bytes(frame)


def pseudo_header(frame: bytes | bytearray, packet: Packet) -> bytes:
    """What TCP and UDP sum besides themselves."""
    start, n = (packet.l3 + 8, 32) if packet.ipv6 else (packet.l3 + 12, 8)
    l4_len = len(frame) - packet.l4
    return bytes(frame[start : start + n]) + struct.pack(">II", 17 if packet.udp else 6, l4_len)


def completed(frame: bytes, start: int, offset: int) -> bytes:
    """The frame with the checksum filled in that its header asks for."""
    at = start + offset
    value = checksum(frame[start:]) or 0xFFFF
    return frame[:at] + value.to_bytes(2, "big") + frame[at + 2 :]
