"""What a VMM does with a device: registers, configuration, a BAR that it maps, resets."""

from __future__ import annotations

import os
import random
from types import SimpleNamespace
from typing import Any

from vnic.pci import Area, Bar, Mappable
from vnic_vfio_user.messages import Command, HeaderFlags
from vnic_vfio_user.payloads import Empty, RegionWrite, WriteMulti

COUNT, RAISE, COPY, COPIED = 0, 8, 16, 20


def test_a_vmm_finds_the_device_and_uses_it(bench) -> None:
    bench.serve()
    vmm = bench.running()
    assert vmm.read_config(0, 4) == bytes.fromhex("34127856")
    assert vmm.read_config(0, 256)[0x2C:0x30] == bytes.fromhex("00000900")
    assert [vmm.region_info(i).size for i in range(9)] == [0x20000, 0, 64, 0, 4096, 0, 0, 256, 0]
    assert [vmm.irq_count(i) for i in range(5)] == [1, 0, 20, 1, 0]
    assert [vmm.read(0, COUNT, 4) for _ in range(3)] == [1, 2, 3]
    vmm.write(0, 0x100, 4, 0x12345678)
    assert vmm.read(0, 0x102, 2) == 0x1234
    vmm.write(2, 0x20, 1, 0xAB, posted=False)
    assert vmm.read(2, 0x20, 1) == 0xAB
    assert bench.nic.resets == ["device"]


def test_writes_are_carried_out_in_order_before_a_later_read(bench) -> None:
    bench.serve()
    vmm = bench.running()
    for i in range(200):
        vmm.write(0, 0x100 + 4 * i, 4, i)
    assert vmm.read(0, 0x100 + 4 * 199, 4) == 199
    assert [value for _, _, _, value in bench.device.accesses[:-1]] == list(range(200))


def test_several_writes_come_in_one_message(bench) -> None:
    bench.serve()
    vmm = bench.running()
    writes = tuple(RegionWrite(0x100 + 8 * i, 0, 8, bytes([i]) * 8) for i in range(200))
    assert vmm.ask(Command.REGION_WRITE_MULTI, WriteMulti(writes)) == (200).to_bytes(8, "little")
    vmm.send(Command.REGION_WRITE_MULTI, WriteMulti(writes), flags=HeaderFlags.NO_REPLY)
    assert vmm.read(0, 0x100 + 8 * 199, 4) == 199 * 0x01010101


def test_registers_see_aligned_accesses_whatever_the_vmm_sends(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.write(0, 0x101, 7, 0x11223344556677)
    data = bytes(random.Random(1).randbytes(4096))
    vmm.write(0, 0x1003, 4096, int.from_bytes(data, "little"), posted=False)
    assert vmm.read_bytes(0, 0x1003, 4096) == data
    assert vmm.read(0, 0x100, 8) == 0x11223344556677 << 8
    assert all(n in (1, 2, 4) and offset % n == 0 for _, offset, n, _ in bench.device.accesses)


def test_the_device_reads_what_the_guest_wrote(bench) -> None:
    bench.serve()
    vmm = bench.running()
    gpa = vmm.alloc(4)
    vmm.memory.view(gpa, 4)[:] = b"abcd"
    vmm.write(0, COPY, 4, gpa)
    assert vmm.read_bytes(0, COPIED, 4) == b"abcd"


def test_a_reset_brings_the_device_back_to_power_on(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.write(0, 0x100, 4, 5)
    vmm.write(0, RAISE, 4, 1)
    vmm.ask(Command.DEVICE_RESET, Empty())
    assert bench.nic.resets[-1] == "device"
    assert vmm.read(0, 0x100, 4) == 0
    assert vmm.read_config(4, 4) == bytes.fromhex("0000 1000")
    assert not bench.device.pci.irq


def test_a_part_of_a_bar_is_mapped_by_the_vmm(bench) -> None:
    fd = os.memfd_create("page", os.MFD_CLOEXEC)
    os.ftruncate(fd, 0x4000)
    registers: Any = SimpleNamespace(read=lambda offset, n: 0, write=lambda *_: None)
    mappable = Mappable(fd=fd, areas=[Area(0x3000, 0x1000)])
    bars = [Bar(index=2, size=0x4000, registers=registers, mappable=mappable)]
    bench.serve(bars=bars, capabilities=[])
    vmm = bench.running()
    info = vmm.region_info(2)
    assert info.areas == ((0x3000, 0x1000),)
    (theirs,) = vmm.fds
    os.pwrite(theirs, b"kick", info.offset + 0x3000)
    assert os.pread(fd, 4, 0x3000) == b"kick"
    os.close(fd)
