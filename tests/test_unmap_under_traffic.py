"""DMA_UNMAP while frames go both ways: behind its answer nobody touches that memory any more."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from kit.wire import Wire, settle
from vnic.config import parse_nic
from vnic.link import Link
from vnic.loop import Loop
from vnic.nic import Nic
from vnic.testing.vmm import GPA
from vnic_e1000 import Plugin as E1000Plugin
from vnic_e1000.testing.hostile import EOP, IFCS, RS, HostileGuest
from vnic_vfio_user import Plugin as VfioUser
from vnic_vfio_user import ServerOptions
from vnic_vfio_user.messages import Command, HeaderFlags, encode_message
from vnic_vfio_user.payloads import DmaUnmap, RegionWrite
from vnic_vfio_user.testing import Vmm

MEMORY = 1 << 20
SIZE = 64
"""Descriptors of a ring: more than are handled between two looks at the socket."""
ROUNDS = 20
TDT, RDT = 0x3818, 0x2818


class Flood(Wire):
    """Always has another frame, and takes a few at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.takes = 3
        self._numbers = itertools.count()
        self.on_recv = self._pour

    def _pour(self, room: Any) -> int:
        n = 0
        while n < 5 and room.put_frame(b"\xff" * 6 + next(self._numbers).to_bytes(94, "big")):
            n += 1
        return n


@attrs.frozen
class Remote:
    """The NIC as its guest reaches it: through the VMM's socket."""

    vmm: Vmm
    name: str = "e1000"

    @property
    def pci(self) -> Remote:
        return self

    def read_bar(self, index: int, offset: int, n: int) -> int:
        return self.vmm.read(index, offset, n)

    def write_bar(self, index: int, offset: int, n: int, value: int) -> None:
        self.vmm.write(index, offset, n, value)

    def write_config(self, offset: int, data: bytes) -> None:
        self.vmm.write_config(offset, data)


@attrs.frozen
class Bench:
    """An e1000 between a flood and a VMM."""

    loop: Loop
    server: VfioUser
    wire: Flood
    vmm: Vmm
    guest: HostileGuest

    def flow(self) -> None:
        """Let the wire have its say, over and over."""
        for _ in range(3):
            self.wire.link.readable()
            self.wire.link.writable()
            settle(self.loop)

    def image(self) -> bytes:
        return bytes(self.vmm.memory.view(GPA, MEMORY))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    loop, wire = Loop(), Flood()
    server = VfioUser(ServerOptions(path=str(tmp_path / "nic.sock")), loop)
    link = Link("flood", loop)
    nic = Nic(parse_nic("e1000,flood"), E1000Plugin(), E1000Plugin.Options(), link)
    link.open([(wire, "flood", None)])
    nic.attach(server)
    server.serve(nic)
    with Vmm.connect(tmp_path / "nic.sock", loop.dispatch) as vmm:
        vmm.start(MEMORY)
        remote: Any = Remote(vmm)
        host: Any = vmm
        yield Bench(loop, server, wire, vmm, HostileGuest(remote, host, SIZE))
    server.close()
    nic.close()
    loop.close()


def test_behind_the_answer_to_unmap_no_frame_moves(bench: Bench) -> None:  # E7
    guest, vmm = bench.guest, bench.vmm
    frame = guest.buffer(bytes(60))
    for i in range(SIZE):
        guest.tx_desc(i, frame, 60 | EOP | IFCS | RS)
        guest.rx_desc(i, guest.buffer(2048))
    unmap = encode_message(7, Command.DMA_UNMAP, DmaUnmap(address=GPA, size=MEMORY))
    for i in range(1, ROUNDS):
        received, sent = guest.read("RDH"), len(bench.wire.sent)
        posts = b"".join(
            encode_message(
                0,
                Command.REGION_WRITE,
                RegionWrite(register, 0, 4, ((at + SIZE - 1) % SIZE).to_bytes(4, "little")),
                HeaderFlags.NO_REPLY,
            )
            for register, at in ((TDT, guest.read("TDH")), (RDT, received))
        )
        vmm.send_bytes(posts)
        for _ in range(i % 4):  # some of it is done, the rest waits in the rings
            bench.loop.dispatch()
            bench.wire.link.readable()
            bench.wire.link.writable()
        vmm.send_bytes(posts + unmap)
        header, _ = vmm.receive()
        assert (header.id, header.flags) == (7, HeaderFlags.REPLY)
        before, n_sent = bench.image(), len(bench.wire.sent)
        bench.flow()
        assert bench.image() == before
        assert len(bench.wire.sent) == n_sent
        vmm.map(GPA, MEMORY, vmm.memory_fd)
        vmm.send_bytes(posts)
        bench.flow()
        assert guest.read("RDH") != received, "with its memory back it goes on"
        assert len(bench.wire.sent) > sent
    assert bench.server.memory.covers(GPA, MEMORY)
