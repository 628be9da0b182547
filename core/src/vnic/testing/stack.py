"""A small IPv4 stack: frames in, frames out, and no opinion on who carries them.

It answers ARP and ICMP echo, sends pings and UDP datagrams, keeps what it receives, and counts
what it drops.  It has no clock: an ARP request that was lost is made again by the next packet for
that address.
"""

from __future__ import annotations

from collections import Counter, deque
from ipaddress import IPv4Address
from typing import Final

import attrs

from vnic.testing.packets import (
    BROADCAST,
    ETHERTYPE_ARP,
    ETHERTYPE_IPV4,
    IPPROTO_ICMP,
    IPPROTO_UDP,
    IPV4_HEADERS_MAX,
    NO_MAC,
    Arp,
    Echo,
    Frame,
    Ipv4,
    Offload,
    PacketError,
    Udp,
)

_UNRESOLVED_MAX: Final = 64
"""Packets that wait for one address; more than any test has on its way."""
_DATAGRAMS_MAX: Final = 4096
"""Datagrams that wait to be read: as a socket's buffer, it bounds what a flood can take."""
_NEIGHBOURS_MAX: Final = 1024
"""Entries of the ARP cache; beyond it, requests are answered and not remembered."""

COUNTERS: Final = {
    "arp_in": "ARP packets received that were about this host",
    "echo_in": "ICMP echo requests received and answered",
    "echo_reply_in": "ICMP echo replies received that answer a ping of ours",
    "udp_in": "UDP datagrams received and kept",
    "completed": "frames received whose checksum was left to the receiver",
    "drop_other": "frames and packets for somebody else, or of a kind that isn't spoken here",
    "drop_malformed": "packets that couldn't be read, wrong checksums included",
    "drop_unasked": "ICMP echo replies that answer nothing",
    "drop_unread": "UDP datagrams dropped because too many were waiting to be read",
    "drop_unresolved": "packets to send dropped because too many waited for an ARP reply",
}


@attrs.frozen(kw_only=True)
class Datagram:
    """A UDP datagram that was received."""

    src: IPv4Address
    src_port: int
    dst_port: int
    data: bytes


@attrs.define(kw_only=True, eq=False)
class Ping:
    """An ICMP echo request that was sent, or waits for an ARP reply."""

    ip: IPv4Address
    identifier: int
    sequence: int
    payload: bytes
    reply: bytes | None = None
    """What came back; None until then."""

    @property
    def answered(self) -> bool:
        """Whether the same bytes came back."""
        return self.reply == self.payload


class Stack:
    """One host's IPv4, on one Ethernet interface.

    ``receive`` takes frames; ``outgoing`` has those to send, oldest first: whoever carries them
    takes them from there.
    """

    def __init__(self, mac: bytes, ip: IPv4Address, mtu: int = 1500) -> None:
        self.mac = mac
        self.ip = ip
        self.mtu = mtu
        self.outgoing: deque[bytes] = deque()
        self.datagrams: deque[Datagram] = deque()
        """What was received and not read yet; reading is taking it out."""
        self.neighbours: dict[IPv4Address, bytes] = {}
        """The ARP cache."""
        self.counts: Counter[str] = Counter()
        self._unresolved: dict[IPv4Address, list[Ipv4]] = {}
        self._pings: dict[int, Ping] = {}
        self._sequence = 0

    # ---- what a user does

    def ping(self, ip: IPv4Address, payload: bytes) -> Ping:
        """Send an echo request; look at the result for its reply.

        Raises: ValueError, for a payload that the MTU can't carry.
        """
        self._check_length(payload)
        self._sequence = (self._sequence + 1) & 0xFFFF
        identifier = int.from_bytes(self.mac[-2:], "big")
        ping = Ping(ip=ip, identifier=identifier, sequence=self._sequence, payload=payload)
        self._pings[ping.sequence] = ping
        echo = Echo(
            kind=Echo.REQUEST, identifier=identifier, sequence=ping.sequence, payload=payload
        )
        self._send(ip, IPPROTO_ICMP, echo.encode())
        return ping

    def udp_send(self, ip: IPv4Address, port: int, data: bytes, src_port: int) -> None:
        """Send a datagram.

        Raises: ValueError, for data that the MTU can't carry.
        """
        self._check_length(data)
        udp = Udp(src_port=src_port, dst_port=port, payload=data)
        self._send(ip, IPPROTO_UDP, udp.encode(self.ip, ip))

    # ---- what the interface does

    def receive(self, data: bytes, header: bytes = bytes(12)) -> None:
        """Handle one frame and its ``struct virtio_net_hdr_v1``.  Any bytes will do."""
        try:
            frame = Frame.decode(data)
            if frame.dst not in (self.mac, BROADCAST):
                self.counts["drop_other"] += 1
            elif frame.ethertype == ETHERTYPE_ARP:
                self._receive_arp(Arp.decode(frame.payload))
            elif frame.ethertype == ETHERTYPE_IPV4:
                offload = Offload.decode(header)
                if offload.needs_csum:
                    self.counts["completed"] += 1
                    frame = Frame.decode(offload.complete(data))
                self._receive_ipv4(Ipv4.decode(frame.payload), offload.datagram_len)
            else:
                self.counts["drop_other"] += 1
        except PacketError:
            self.counts["drop_malformed"] += 1

    def _receive_arp(self, arp: Arp) -> None:
        if arp.target_ip != self.ip:
            self.counts["drop_other"] += 1
            return
        self.counts["arp_in"] += 1
        known = arp.sender_ip in self.neighbours or arp.sender_ip in self._unresolved
        if known or len(self.neighbours) < _NEIGHBOURS_MAX:
            self.neighbours[arp.sender_ip] = arp.sender_mac
            for packet in self._unresolved.pop(arp.sender_ip, ()):
                self._emit(arp.sender_mac, ETHERTYPE_IPV4, packet.encode())
        if arp.operation == Arp.REQUEST:
            self._emit_arp(arp.sender_mac, Arp.REPLY, arp.sender_mac, arp.sender_ip)

    def _receive_ipv4(self, packet: Ipv4, datagram_len: int) -> None:
        if packet.dst != self.ip:
            self.counts["drop_other"] += 1
        elif packet.protocol == IPPROTO_ICMP:
            self._receive_echo(packet.src, Echo.decode(packet.payload))
        elif packet.protocol == IPPROTO_UDP:
            self._receive_udp(packet, datagram_len)
        else:
            self.counts["drop_other"] += 1

    def _receive_echo(self, src: IPv4Address, echo: Echo) -> None:
        if echo.kind == Echo.REQUEST:
            self.counts["echo_in"] += 1
            self._send(src, IPPROTO_ICMP, attrs.evolve(echo, kind=Echo.REPLY).encode())
            return
        ping = self._pings.get(echo.sequence)
        if ping is None or (ping.ip, ping.identifier) != (src, echo.identifier):
            self.counts["drop_unasked"] += 1
            return
        del self._pings[echo.sequence]
        self.counts["echo_reply_in"] += 1
        ping.reply = echo.payload

    def _receive_udp(self, packet: Ipv4, datagram_len: int) -> None:
        udp = Udp.decode(packet.payload, packet.src, packet.dst)
        step = datagram_len or max(1, len(udp.payload))
        # An empty datagram is one datagram too.
        for at in range(0, max(1, len(udp.payload)), step):
            if len(self.datagrams) >= _DATAGRAMS_MAX:
                self.counts["drop_unread"] += 1
                continue
            self.counts["udp_in"] += 1
            data = udp.payload[at : at + step]
            self.datagrams.append(
                Datagram(src=packet.src, src_port=udp.src_port, dst_port=udp.dst_port, data=data)
            )

    # ---- frames out

    def _send(self, ip: IPv4Address, protocol: int, payload: bytes) -> None:
        packet = Ipv4(src=self.ip, dst=ip, protocol=protocol, payload=payload)
        mac = self.neighbours.get(ip)
        if mac is not None:
            self._emit(mac, ETHERTYPE_IPV4, packet.encode())
            return
        waiting = self._unresolved.setdefault(ip, [])
        if len(waiting) < _UNRESOLVED_MAX:
            waiting.append(packet)
        else:
            self.counts["drop_unresolved"] += 1
        self._emit_arp(BROADCAST, Arp.REQUEST, NO_MAC, ip)

    def _emit_arp(self, to: bytes, operation: int, mac: bytes, ip: IPv4Address) -> None:
        arp = Arp(
            operation=operation,
            sender_mac=self.mac,
            sender_ip=self.ip,
            target_mac=mac,
            target_ip=ip,
        )
        self._emit(to, ETHERTYPE_ARP, arp.encode())

    def _emit(self, dst: bytes, ethertype: int, payload: bytes) -> None:
        self.outgoing.append(Frame(dst, self.mac, ethertype, payload).encode())

    def _check_length(self, data: bytes) -> None:
        if len(data) > self.mtu - IPV4_HEADERS_MAX:
            raise ValueError(
                f"{len(data)} bytes don't fit an MTU of {self.mtu}, and nothing is fragmented "
                f"here; send at most {self.mtu - IPV4_HEADERS_MAX}"
            )
