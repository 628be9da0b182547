"""User space in plain Python: the other end of a port under test, stand-in or real.

with Client(stand_in, "vale0:2") as client:
    client.send(frame, [first_part, second_part])
    frames = client.receive()                 # each frame whole, of however many slots
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from ctypes import Structure, addressof
from typing import Final, Self

from vnic_netmap.abi import (
    NETMAP_API,
    NIOCCTRL,
    NIOCRXSYNC,
    NIOCTXSYNC,
    NetmapIf,
    NetmapReq,
    NetmapRing,
    NmreqHeader,
    NmreqPortHdr,
    NmreqRegister,
    NrFlag,
    NrMode,
    SlotFlag,
)
from vnic_netmap.system import System

_SLOT: Final = struct.Struct("=IHHQ")
_U32: Final = struct.Struct("=I")
_MOREFRAG: Final = int(SlotFlag.MOREFRAG)
_RING_SIZE: Final = 256
_IF_SIZE: Final = 56

NO_FLAGS: Final = NrFlag(0)
ETHERTYPE: Final = b"\x88\xb5"
"""IEEE 802's for experiments."""


def frame(to: int, by: int, n: int = 60) -> bytes:
    """Return a frame of n bytes from one station to another, which have numbers; to 0: to all."""
    destination = bytes([2, 0, 0, 0, 0, to]) if to else b"\xff" * 6
    head = destination + bytes([2, 0, 0, 0, 0, by]) + ETHERTYPE
    return (head + bytes(i * 7 & 0xFF for i in range(n)))[:n]


def control(
    system: System, fd: int, kind: NetmapReq, name: str = "", body: Structure | None = None
) -> NmreqHeader:
    """Make a request of today; the body is changed in place.  Return the header, as it came back.

    Raises: OSError.
    """
    header = NmreqHeader(
        nr_version=NETMAP_API,
        nr_reqtype=kind,
        nr_name=name.encode(),
        nr_body=0 if body is None else addressof(body),
    )
    system.ioctl(fd, NIOCCTRL, header)
    return header


class Ring:
    """One ring, as it lies in shared memory."""

    def __init__(self, view: memoryview, at: int) -> None:
        self.view = view
        self.at = at
        layout = NetmapRing.from_buffer_copy(view[at : at + _RING_SIZE])
        self.n_slots: int = layout.num_slots
        self.buf_size: int = layout.nr_buf_size
        self.ring_id: int = layout.ringid
        self.is_tx: bool = layout.dir == 1
        self._bufs_at = at + layout.buf_ofs

    def _get(self, offset: int) -> int:
        return int(_U32.unpack_from(self.view, self.at + offset)[0])

    def _set(self, offset: int, value: int) -> None:
        _U32.pack_into(self.view, self.at + offset, value)

    @property
    def head(self) -> int:
        """The first slot that is user space's."""
        return self._get(NetmapRing.head.offset)

    @head.setter
    def head(self, value: int) -> None:
        self._set(NetmapRing.head.offset, value)

    @property
    def cur(self) -> int:
        """From which slot on there shall be some, before user space is woken."""
        return self._get(NetmapRing.cur.offset)

    @cur.setter
    def cur(self, value: int) -> None:
        self._set(NetmapRing.cur.offset, value)

    @property
    def tail(self) -> int:
        """The first slot that is the kernel's."""
        return self._get(NetmapRing.tail.offset)

    @property
    def n_owned(self) -> int:
        """How many slots are user space's: to fill, or to read."""
        return (self.tail - self.head) % self.n_slots

    def slot(self, i: int) -> tuple[int, int, int, int]:
        """Return buf_idx, len, flags and ptr."""
        return _SLOT.unpack_from(self.view, self.at + _RING_SIZE + _SLOT.size * i)

    def set_slot(
        self,
        i: int,
        *,
        buf_idx: int | None = None,
        length: int | None = None,
        flags: int | None = None,
        ptr: int | None = None,
    ) -> None:
        """Change some of a slot."""
        new = (buf_idx, length, flags, ptr)
        values = (
            old if value is None else value for old, value in zip(self.slot(i), new, strict=True)
        )
        _SLOT.pack_into(self.view, self.at + _RING_SIZE + _SLOT.size * i, *values)

    def buffer(self, i: int, length: int | None = None) -> memoryview:
        """Return the buffer of a slot, to read and write, and be released before the mapping is."""
        at = self._bufs_at + self.slot(i)[0] * self.buf_size
        return self.view[at : at + (self.buf_size if length is None else length)]

    def put(self, fragments: Sequence[bytes]) -> bool:
        """Put a frame into slots, one for each fragment; return whether there were enough."""
        if len(fragments) > self.n_owned:
            return False
        i = self.head
        for n, fragment in enumerate(fragments, 1):
            more = _MOREFRAG if n < len(fragments) else 0
            self.buffer(i, len(fragment))[:] = fragment
            self.set_slot(i, length=len(fragment), flags=more)
            i = (i + 1) % self.n_slots
        self.head = self.cur = i
        return True

    def take(self) -> list[list[bytes]]:
        """Take all frames out, fragment by fragment, and let go of their slots."""
        frames: list[list[bytes]] = []
        i, tail, begins = self.head, self.tail, True
        while i != tail:
            _, length, flags, _ = self.slot(i)
            if begins:
                frames.append([])
            frames[-1].append(bytes(self.buffer(i, length)))
            begins = not flags & _MOREFRAG
            i = (i + 1) % self.n_slots
        self.head = self.cur = i
        return frames


class Client:
    """A descriptor bound to a port, its memory mapped."""

    def __init__(
        self,
        system: System,
        name: str,
        *,
        mode: NrMode = NrMode.ALL_NIC,
        flags: NrFlag = NO_FLAGS,
        **request: int,
    ) -> None:
        """Open and bind; ``request``: other fields of NmreqRegister (``nr_mem_id=2``).

        Raises: OSError, with nothing left open.
        """
        self.system = system
        self.name = name
        self.fd = system.open()
        self.request = NmreqRegister(nr_mode=mode, nr_flags=flags, **request)
        try:
            control(system, self.fd, NetmapReq.REGISTER, name, self.request)
            self.mapping = system.mmap(self.fd, self.request.nr_memsize)
        except OSError:
            system.close(self.fd)
            raise
        self.view = memoryview(self.mapping)
        self._find_rings()

    def _find_rings(self) -> None:
        at = self.request.nr_offset
        self.netmap_if = NetmapIf.from_buffer_copy(self.view[at : at + _IF_SIZE])
        n_tx = self.netmap_if.ni_tx_rings + self.netmap_if.ni_host_tx_rings
        n_rx = self.netmap_if.ni_rx_rings + self.netmap_if.ni_host_rx_rings
        self.ring_offsets = struct.unpack_from(f"={n_tx + n_rx}q", self.view, at + _IF_SIZE)
        self.tx = [Ring(self.view, at + offset) for offset in self.ring_offsets[:n_tx] if offset]
        self.rx = [Ring(self.view, at + offset) for offset in self.ring_offsets[n_tx:] if offset]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap and close.  Twice is allowed."""
        if self.fd >= 0:
            self.view.release()
            self.mapping.close()
            self.system.close(self.fd)
            self.fd = -1

    def txsync(self) -> None:
        """Have the module take what was put."""
        self.system.ioctl(self.fd, NIOCTXSYNC)

    def rxsync(self) -> None:
        """Have the module take back what was read, and show what has come."""
        self.system.ioctl(self.fd, NIOCRXSYNC)

    def send(self, *frames: bytes | Sequence[bytes], ring: int = 0) -> int:
        """Send frames, in one slot or in several; return how many there was room for."""
        tx = self.tx[ring]
        n = 0
        for frame in frames:
            if not tx.put([frame] if isinstance(frame, bytes) else frame):
                break
            n += 1
        self.txsync()
        return n

    def receive(self, ring: int = 0) -> list[bytes]:
        """Return the frames that have come, each in one piece."""
        return [b"".join(frame) for frame in self.receive_fragments(ring)]

    def receive_fragments(self, ring: int = 0) -> list[list[bytes]]:
        """Return the frames that have come, slot by slot."""
        self.rxsync()
        frames = self.rx[ring].take()
        self.rxsync()
        return frames

    def set_header(self, n: int) -> None:
        """Have n bytes of virtio-net header in front of each frame."""
        control(self.system, self.fd, NetmapReq.PORT_HDR_SET, self.name, NmreqPortHdr(nr_hdr_len=n))

    def header(self) -> int:
        """Return how many there are."""
        body = NmreqPortHdr()
        control(self.system, self.fd, NetmapReq.PORT_HDR_GET, self.name, body)
        return int(body.nr_hdr_len)
