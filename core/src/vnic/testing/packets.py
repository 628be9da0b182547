"""The packets that a software guest speaks: Ethernet, ARP, IPv4, ICMP echo, UDP; bytes and back.

Each is a frozen class with ``encode`` and ``decode``.  ``decode`` takes any bytes: what it can't
read it refuses with a `PacketError`, checksums that are wrong included.  Nothing here is fast.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import ClassVar, Final, Self

import attrs

BROADCAST: Final = b"\xff" * 6
NO_MAC: Final = b"\0" * 6

ETHERTYPE_IPV4: Final = 0x0800
ETHERTYPE_ARP: Final = 0x0806
ETH_MIN: Final = 60
"""The shortest frame without its FCS; shorter ones are padded."""

IPPROTO_ICMP: Final = 1
IPPROTO_UDP: Final = 17
IPV4_HEADERS_MAX: Final = 28
"""Bytes of IPv4 and UDP, or ICMP echo, headers: what an MTU has less for data."""

_VIRTIO_NET_HDR: Final = struct.Struct("<BBHHHHH")
"""``struct virtio_net_hdr_v1``.  Spec: Virtio 1.3, "Device Operation" of the network device."""
_NEEDS_CSUM: Final = 1
_GSO_UDP_L4: Final = 5
_IP_MF_OR_OFFSET: Final = 0x3FFF


class PacketError(ValueError):
    """These bytes are no such packet, or a damaged one."""


def checksum(data: bytes) -> int:
    """Return the Internet checksum of the data; 0 for data that has its right checksum in it.

    Spec: RFC 1071.
    """
    # 65536 is 1 modulo 65535: the remainder is the end-around sum of all 16-bit words.
    total = int.from_bytes(data + b"\0" * (len(data) % 2), "big")
    return 0xFFFF - ((total % 0xFFFF or 0xFFFF) if total else 0)


@attrs.frozen
class Frame:
    """An Ethernet frame."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("!6s6sH")

    dst: bytes
    src: bytes
    ethertype: int
    payload: bytes

    def encode(self) -> bytes:
        """Return its bytes, padded to the shortest that Ethernet has."""
        head = self.LAYOUT.pack(self.dst, self.src, self.ethertype)
        return (head + self.payload).ljust(ETH_MIN, b"\0")

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a frame; padding stays in the payload."""
        _need(data, cls.LAYOUT.size, "Ethernet")
        dst, src, ethertype = cls.LAYOUT.unpack_from(data)
        return cls(dst, src, ethertype, data[cls.LAYOUT.size :])


@attrs.frozen(kw_only=True)
class Arp:
    """An ARP packet for IPv4 over Ethernet.  Spec: RFC 826."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("!HHBBH6s4s6s4s")
    REQUEST: ClassVar[int] = 1
    REPLY: ClassVar[int] = 2

    operation: int
    sender_mac: bytes
    sender_ip: IPv4Address
    target_mac: bytes = NO_MAC
    target_ip: IPv4Address

    def encode(self) -> bytes:
        """Return its bytes."""
        sender = self.sender_mac, self.sender_ip.packed
        target = self.target_mac, self.target_ip.packed
        return self.LAYOUT.pack(1, ETHERTYPE_IPV4, 6, 4, self.operation, *sender, *target)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read one; what follows it is padding."""
        _need(data, cls.LAYOUT.size, "ARP")
        *kind, operation, sender_mac, sender_ip, target_mac, target_ip = cls.LAYOUT.unpack_from(
            data
        )
        if kind != [1, ETHERTYPE_IPV4, 6, 4]:
            raise PacketError("ARP: not for IPv4 over Ethernet")
        return cls(
            operation=operation,
            sender_mac=sender_mac,
            sender_ip=IPv4Address(sender_ip),
            target_mac=target_mac,
            target_ip=IPv4Address(target_ip),
        )


@attrs.frozen(kw_only=True)
class Ipv4:
    """An IPv4 packet, never a fragment.  Spec: RFC 791."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("!BBHHHBBH4s4s")

    src: IPv4Address
    dst: IPv4Address
    protocol: int
    payload: bytes
    ttl: int = 64

    def encode(self) -> bytes:
        """Return its bytes, header checksum included."""
        n = self.LAYOUT.size + len(self.payload)
        words = [
            0x45,
            0,
            n,
            0,
            0x4000,
            self.ttl,
            self.protocol,
            0,
            self.src.packed,
            self.dst.packed,
        ]
        words[7] = checksum(self.LAYOUT.pack(*words))
        return self.LAYOUT.pack(*words) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read one; options are skipped, and so is the frame's padding."""
        _need(data, cls.LAYOUT.size, "IPv4")
        first, _, length, _, fragment, ttl, protocol, _, src, dst = cls.LAYOUT.unpack_from(data)
        header_len = (first & 15) * 4
        if first >> 4 != 4 or not cls.LAYOUT.size <= header_len <= length <= len(data):
            raise PacketError("IPv4: its version or lengths can't be")
        if checksum(data[:header_len]):
            raise PacketError("IPv4: wrong header checksum")
        if fragment & _IP_MF_OR_OFFSET:
            raise PacketError("IPv4: a fragment")
        return cls(
            src=IPv4Address(src),
            dst=IPv4Address(dst),
            protocol=protocol,
            payload=data[header_len:length],
            ttl=ttl,
        )


@attrs.frozen(kw_only=True)
class Echo:
    """An ICMP echo request or reply.  Spec: RFC 792, "Echo or Echo Reply Message"."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("!BBHHH")
    REPLY: ClassVar[int] = 0
    REQUEST: ClassVar[int] = 8

    kind: int
    identifier: int
    sequence: int
    payload: bytes

    def encode(self) -> bytes:
        """Return its bytes, checksum included."""
        words = [self.kind, 0, 0, self.identifier, self.sequence]
        words[2] = checksum(self.LAYOUT.pack(*words) + self.payload)
        return self.LAYOUT.pack(*words) + self.payload

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read one; other ICMP messages are refused."""
        _need(data, cls.LAYOUT.size, "ICMP")
        kind, code, _, identifier, sequence = cls.LAYOUT.unpack_from(data)
        if checksum(data):
            raise PacketError("ICMP: wrong checksum")
        if kind not in (cls.REQUEST, cls.REPLY) or code:
            raise PacketError("ICMP: neither echo nor echo reply")
        payload = data[cls.LAYOUT.size :]
        return cls(kind=kind, identifier=identifier, sequence=sequence, payload=payload)


@attrs.frozen(kw_only=True)
class Udp:
    """A UDP datagram.  Its checksum covers the IPv4 addresses.  Spec: RFC 768."""

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("!HHHH")

    src_port: int
    dst_port: int
    payload: bytes

    def encode(self, src: IPv4Address, dst: IPv4Address) -> bytes:
        """Return its bytes, checksum included."""
        n = self.LAYOUT.size + len(self.payload)
        words = [self.src_port, self.dst_port, n, 0]
        pseudo = _pseudo_header(src, dst, n)
        # 0 would say that there is none; all ones is the same sum.
        words[3] = checksum(pseudo + self.LAYOUT.pack(*words) + self.payload) or 0xFFFF
        return self.LAYOUT.pack(*words) + self.payload

    @classmethod
    def decode(cls, data: bytes, src: IPv4Address, dst: IPv4Address) -> Self:
        """Read one; a checksum of 0 says that there is none."""
        _need(data, cls.LAYOUT.size, "UDP")
        src_port, dst_port, n, summed = cls.LAYOUT.unpack_from(data)
        if not cls.LAYOUT.size <= n <= len(data):
            raise PacketError("UDP: its length can't be")
        if summed and checksum(_pseudo_header(src, dst, n) + data[:n]):
            raise PacketError("UDP: wrong checksum")
        payload = data[cls.LAYOUT.size : n]
        return cls(src_port=src_port, dst_port=dst_port, payload=payload)


@attrs.frozen
class Offload:
    """What a ``struct virtio_net_hdr_v1`` says of the frame beside it."""

    needs_csum: bool
    """The checksum field has the pseudo header's sum in it, and nothing more."""
    csum_start: int
    csum_offset: int
    datagram_len: int
    """Of several UDP datagrams in one: the bytes of each but the last.  Else 0."""

    @classmethod
    def decode(cls, header: bytes) -> Self:
        """Read the 12 bytes."""
        _need(header, _VIRTIO_NET_HDR.size, "virtio-net header")
        flags, gso_type, _, gso_size, start, offset, _ = _VIRTIO_NET_HDR.unpack_from(header)
        datagram_len = gso_size if gso_type == _GSO_UDP_L4 else 0
        return cls(bool(flags & _NEEDS_CSUM), start, offset, datagram_len)

    def complete(self, frame: bytes) -> bytes:
        """Return the frame with its checksum made, as the NIC of the sender would have."""
        if not self.needs_csum:
            return frame
        at = self.csum_start + self.csum_offset
        if at + 2 > len(frame):
            raise PacketError(f"checksum at byte {at} of a frame of {len(frame)} bytes")
        summed = checksum(frame[self.csum_start :]) or 0xFFFF
        return frame[:at] + summed.to_bytes(2, "big") + frame[at + 2 :]


def _need(data: bytes, n: int, what: str) -> None:
    if len(data) < n:
        raise PacketError(f"{what}: {len(data)} bytes, its header has {n}")


def _pseudo_header(src: IPv4Address, dst: IPv4Address, n: int) -> bytes:
    return struct.pack("!4s4sBBH", src.packed, dst.packed, 0, IPPROTO_UDP, n)
