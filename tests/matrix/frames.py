"""Frames that are given to one side, and the plain frames that the other side shall get of them."""

from __future__ import annotations

import attrs
from kit.outsides import PLAIN
from kit.segmentation import NEEDS_CSUM, Packet, completed, header, ones_sum, pseudo_header
from vnic.burst import Burst, Room
from vnic.features import NONE
from vnic.pool_kernel import Pool
from vnic.testing.bench import GUEST_MAC, from_guest, to_guest


@attrs.frozen
class Given:
    """A frame as one side gives it, and what it stands for."""

    frame: bytes
    header: bytes
    parts: tuple[bytes, ...]
    """The plain frames that it is when all is done that its header asks for."""

    @property
    def is_plain(self) -> bool:
        """Whether its header asks for nothing."""
        return self.header == PLAIN

    def padded(self, length: int) -> Given:
        """Return the same where short frames are made as long as this on their way."""
        parts = [part.ljust(length, b"\0") for part in self.parts]
        return Given(self.frame, self.header, tuple(parts))

    def turned(self) -> Given:
        """Return the same from the guest, where this one is for it."""
        return Given(_turn(self.frame), self.header, tuple(map(_turn, self.parts)))


def out(n: int, length: int = 60, first: int = 0) -> list[Given]:
    """Make plain frames from the guest, numbered from ``first`` on if they are long enough."""
    return [Given(frame, PLAIN, (frame,)) for frame in from_guest(n, length, first)]


def into(n: int, length: int = 60, first: int = 0) -> list[Given]:
    """Make plain frames for the guest."""
    return [Given(frame, PLAIN, (frame,)) for frame in to_guest(n, length, first)]


def to_be_cut(packet: Packet) -> Given:
    """Make a frame for the guest that is to be segmented."""
    return Given(_begun(packet), packet.header, tuple(packet.segments()))


def to_be_summed(packet: Packet) -> Given:
    """Make a frame for the guest whose checksum is to be filled in."""
    offset = 6 if packet.udp else 16
    frame = _begun(packet)
    asks = header(NEEDS_CSUM, csum_start=packet.l4, csum_offset=offset)
    return Given(frame, asks, (completed(frame, packet.l4, offset),))


def _begun(packet: Packet) -> bytes:
    """Return its frame with the sum of the pseudo-header, from which others go on."""
    frame, at = bytearray(packet.frame()), packet.l4 + (6 if packet.udp else 16)
    frame[at : at + 2] = ones_sum(pseudo_header(frame, packet)).to_bytes(2, "big")
    return bytes(frame)


def as_plain(frame: bytes, header: bytes) -> list[bytes]:
    """Return what a frame is to somebody who takes no offload."""
    if not header[0] & NEEDS_CSUM:
        return [frame]
    pool = Pool(int(NONE))
    room = Room(pool.capsule, pool)
    room.open()
    room.put(Burst.of([frame], [header]))
    room.close()
    return [bytes(part) for part in pool.burst]


def is_from_guest(frame: bytes) -> bool:
    """Whether its source is the guest."""
    return frame[6:12] == GUEST_MAC


def _turn(frame: bytes) -> bytes:
    return frame[6:12] + frame[:6] + frame[12:]
