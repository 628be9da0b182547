"""Segmentation in software against the Linux kernel's own, frame by frame.

A frame that is to be segmented goes into one tap; a bridge in a namespace carries it to another,
whose reader takes no offload, so the kernel has to cut it.
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
from typing import TYPE_CHECKING

import attrs
import pytest
from kit.missing import Missing
from kit.netns import Netns
from kit.segmentation import CWR, FIN, PSH, Packet, checksum, ones_sum, pseudo_header
from vnic.offload import segments

if TYPE_CHECKING:
    from collections.abc import Iterator

TUNSETVNETHDRSZ = 0x400454D8
ANSWER_S = 2.0
TCP_OPTIONS = bytes.fromhex("0101080a0000000100000002")  # time stamps, as Linux sends them
PADDING = b"?\0\1\4" + bytes(4)
"""Destination options: what comes behind it, and nothing.  Spec: RFC 8200, "Options"."""

PACKETS = {
    "tcp over ipv4": Packet(payload=bytes(range(256)) * 20, gso_size=1000),
    "tcp over ipv6": Packet(ipv6=True, payload=bytes(range(256)) * 20, gso_size=999),
    "tcp with options": Packet(tcp_options=TCP_OPTIONS, payload=b"abc" * 4000, gso_size=1448),
    "tcp with flags": Packet(
        tcp_flags=0x10 | FIN | PSH | CWR, payload=b"\xff" * 3001, gso_size=1000
    ),
    "tcp, whole segments": Packet(payload=bytes(4000), gso_size=1000),
    "tcp, 64 KiB": Packet(payload=b"0123456" * 9000, gso_size=1448),
    "tcp, sequence wraps": Packet(seq=2**32 - 1500, payload=b"x" * 4000, gso_size=1000),
    "tcp over ipv4 with options": Packet(options=b"\1\1\1\0", payload=b"y" * 4000, gso_size=700),
    "tcp over ipv6 with an extension header": Packet(
        ipv6=True, options=PADDING.replace(b"?", b"\6"), payload=b"w" * 4000, gso_size=1001
    ),
    "tcp with a tag": Packet(n_tags=1, payload=b"v" * 4000, gso_size=1000),
    "tcp over ipv6 with a tag": Packet(ipv6=True, n_tags=1, payload=b"u" * 4000, gso_size=999),
    "udp over ipv4": Packet(udp=True, payload=bytes(range(256)) * 20, gso_size=1001),
    "udp over ipv6": Packet(ipv6=True, udp=True, payload=b"z" * 4999, gso_size=1000),
    "udp over ipv6 with an extension header": Packet(
        ipv6=True,
        udp=True,
        options=PADDING.replace(b"?", b"\x11"),
        payload=b"t" * 4000,
        gso_size=999,
    ),
    "udp with a tag": Packet(udp=True, n_tags=1, payload=b"s" * 4000, gso_size=1000),
}


@attrs.frozen
class Bridge:
    """Two taps and what lies between them."""

    into: int
    out: int

    def cut(self, packet: Packet) -> list[bytes]:
        """Have the kernel cut a packet; return the frames as they come out."""
        frame = bytearray(packet.frame())
        # The kernel wants the pseudo-header's sum in the field, as its own drivers leave it.
        at = packet.l4 + (6 if packet.udp else 16)
        frame[at : at + 2] = ones_sum(pseudo_header(frame, packet)).to_bytes(2, "big")
        if not packet.ipv6:  # and the bridge a packet whose header holds
            frame[packet.l3 + 10 : packet.l3 + 12] = bytes(2)
            ip = checksum(bytes(frame[packet.l3 : packet.l4]))
            frame[packet.l3 + 10 : packet.l3 + 12] = ip.to_bytes(2, "big")
        os.write(self.into, packet.header + frame)
        frames: list[bytes] = []
        while sum(len(f) - len(frame) + len(packet.payload) for f in frames) < len(packet.payload):
            assert select.select([self.out], [], [], ANSWER_S)[0], f"{len(frames)} frames came"
            read = os.read(self.out, 1 << 17)
            assert read[:2] == bytes(2), "the kernel left something to do"
            if read[18:24] == frame[6:12]:
                frames.append(read[12:])
        return frames


@pytest.fixture(scope="module")
def bridge() -> Iterator[Bridge]:
    try:
        netns = Netns()
    except Missing as missing:
        pytest.skip(str(missing))
    with netns:
        netns.call(netns._ip.link, "add", ifname="br0", kind="bridge")
        fds = []
        for name in ("in0", "out0"):
            fds.append(netns.open_tap(name))
            fcntl.ioctl(fds[-1], TUNSETVNETHDRSZ, struct.pack("i", 12))
            netns.call(netns._ip.link, "set", index=netns._index(name), master=netns._index("br0"))
            netns.up(name)
        netns.up("br0")
        yield Bridge(*fds)
        for fd in fds:
            os.close(fd)


@pytest.mark.root
@pytest.mark.parametrize("packet", PACKETS.values(), ids=PACKETS.keys())
def test_the_kernel_cuts_the_same_frames(bridge: Bridge, packet: Packet) -> None:
    assert segments(packet.frame(), packet.header) == bridge.cut(packet)
