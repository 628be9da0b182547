"""Messages about guest memory: ranges that come and go."""

from __future__ import annotations

import errno

import pytest
from kit.vfio_user import RW, U64, Script
from vnic_vfio_user import events
from vnic_vfio_user.connection import MAX_DMA_MAPS
from vnic_vfio_user.device_payloads import DeviceInfo
from vnic_vfio_user.messages import Command
from vnic_vfio_user.payloads import DmaFlags, DmaMap, UnmapFlags


def test_memory_comes_and_goes() -> None:
    vmm = Script()
    assert vmm.map(0, 0x80000000) == 0
    assert vmm.map(1 << 32, 4096, DmaFlags.READ) == 0
    assert [(e.address, e.size, e.writable, e.fd) for e in vmm.taken()] == [
        (0, 0x80000000, True, 9),
        (1 << 32, 4096, False, 9),
    ]
    assert vmm.unmap(1 << 32, 4096) == 0
    assert vmm.taken() == [events.UnmapMemory(1 << 32, 4096)]
    assert vmm.unmap(1 << 32, 4096) == errno.EINVAL
    assert vmm.map(1 << 32, 8192) == 0


def test_overlap_nothing_and_wrapping_are_refused() -> None:  # E6
    vmm = Script()
    assert vmm.map(0x10000, 0x10000) == 0
    for address, size in ((0x10000, 0x10000), (0x1FFFF, 1), (0, 0x10001), (0, U64), (0x18000, 16)):
        assert vmm.map(address, size) == errno.EEXIST
    for address, size in ((0x40000, 0), (U64, 2), (1 << 63, 1 << 63 | 1)):
        assert vmm.map(address, size) == errno.EINVAL
    offset = DmaMap(flags=RW, address=0x40000, size=0x1000, offset=U64 - 0xFFE)
    assert vmm.ask(Command.DMA_MAP, offset, [9])[0] == errno.EINVAL
    assert [type(e) for e in vmm.taken()] == [events.MapMemory] + [events.Discard] * 9
    assert vmm.map(0x20000, 0x10000) == 0, "beside it there is room"


@pytest.mark.parametrize("flags", [0, 4, 7, 0x8000_0000])
def test_a_protection_that_does_not_exist_is_refused(flags) -> None:  # E5
    assert Script().map(0, 4096, flags) == errno.EINVAL


def test_only_what_was_mapped_is_unmapped() -> None:
    vmm = Script()
    vmm.map(0x10000, 0x10000)
    for address, size in ((0x10000, 0x1000), (0x11000, 0xF000), (0, U64), (0x10000, 0)):
        assert vmm.unmap(address, size) == errno.EINVAL
    assert vmm.unmap(0x10000, 0x10000, UnmapFlags.GET_DIRTY_BITMAP) == errno.EOPNOTSUPP  # E2
    assert vmm.unmap(0, U64, UnmapFlags.ALL) == errno.EINVAL
    vmm.taken()
    assert vmm.unmap(0, 0, UnmapFlags.ALL) == 0
    assert vmm.taken() == [events.UnmapMemory(0x10000, 0x10000)]


def test_a_range_that_cannot_be_mapped_is_refused_in_words(caplog) -> None:
    vmm = Script()
    vmm.answers[events.MapMemory] = lambda event: "its file is too short"
    assert vmm.map(0, 4096) == errno.EINVAL
    assert caplog.messages == ["vfio-user: DMA_MAP: refused: its file is too short"]
    assert vmm.unmap(0, 4096) == errno.EINVAL


def test_a_guest_whose_memory_is_not_shared_finds_no_device(caplog) -> None:
    vmm = Script()
    assert vmm.map(0xFFFC0000, 0x40000, DmaFlags.READ, ()) == 0
    assert vmm.map(0, 0x80000000, fds=()) == errno.EINVAL
    assert "0x80000000 bytes at 0x0: " in caplog.messages[-1]
    assert "share=on -machine memory-backend=mem" in caplog.messages[-1]
    assert vmm.ask(Command.DEVICE_GET_INFO, DeviceInfo()) == (errno.ENXIO, b"")
    assert vmm.map(0, 0x80000000) == 0
    assert vmm.ask(Command.DEVICE_GET_INFO, DeviceInfo())[0] == 0


def test_roms_and_devices_memory_come_without_descriptors() -> None:
    vmm = Script()
    assert vmm.map(0xFFFC0000, 0x40000, DmaFlags.READ, ()) == 0
    assert vmm.map(0, 0x80000000) == 0
    assert vmm.map(0xFD000000, 0x1000000, RW, ()) == 0
    assert len(vmm.taken()) == 1
    assert vmm.map(0xFD000000, 16, RW, ()) == errno.EEXIST
    assert vmm.unmap(0xFD000000, 0x1000000) == 0
    assert vmm.taken() == []


def test_there_are_as_many_ranges_as_were_said() -> None:
    vmm = Script()
    for i in range(MAX_DMA_MAPS):
        assert vmm.map(i << 12, 4096) == 0
    assert vmm.map(MAX_DMA_MAPS << 12, 4096) == errno.ENOSPC
    assert vmm.unmap(0, 4096) == 0
    assert vmm.map(MAX_DMA_MAPS << 12, 4096) == 0
