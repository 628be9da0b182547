from __future__ import annotations

import errno
import os

import pytest
from vnic.testing.vmm import GPA
from vnic_vfio_user.device_payloads import DeviceInfo
from vnic_vfio_user.messages import Command, HeaderFlags, encode_message
from vnic_vfio_user.payloads import (
    DmaFlags,
    DmaMap,
    DmaUnmap,
    RegionAccess,
    RegionWrite,
    UnmapFlags,
)
from vnic_vfio_user.testing import RefusedError

COUNT, INTERRUPT, RAISE, SIGNAL, COPY, COPIED, WORK = 0, 4, 8, 12, 16, 20, 24


def test_memory_that_may_only_be_read_is_not_written(bench) -> None:  # E5
    server = bench.serve()
    vmm = bench.running()
    vmm.map(0x1000, 0x1000, vmm.memory_fd, flags=DmaFlags.READ)
    assert server.memory.covers(0x1000, 0x1000)
    assert not server.memory.covers(0x1000, 1, write=True)
    assert server.memory.view(0x1000, 16).readonly
    with pytest.raises(TypeError):
        server.memory.view(0x1000, 16)[0] = 1


def test_overlap_and_nothing_are_refused_and_the_next_session_starts_clean(bench, n_fds) -> None:
    # E6
    server = bench.serve()
    before = n_fds()
    for _ in range(3):
        vmm = bench.running()
        for address, size, why in (
            (GPA, 1 << 20, errno.EEXIST),
            (GPA - 4096, 8192, errno.EEXIST),
            (GPA + 4096, 4096, errno.EEXIST),
            (0, 0, errno.EINVAL),
            ((1 << 64) - 4096, 8192, errno.EINVAL),
            (1 << 40, 1 << 21, errno.EINVAL),  # beyond its file
        ):
            with pytest.raises(RefusedError) as error:
                vmm.map(address, size, vmm.memory_fd)
            assert error.value.errno == why
        assert [region.gpa for region in server.memory.regions] == [GPA]
        vmm.close()
        bench.turn(2)
        assert server.memory.regions == ()
        assert n_fds() == before


def test_memory_goes_when_it_is_taken_away_and_comes_back(bench) -> None:
    server = bench.serve()
    vmm = bench.running()
    for _ in range(20):
        vmm.unmap(GPA, 1 << 20)
        assert server.memory.regions == ()
        assert not server.memory.covers(GPA, 1)
        vmm.map(GPA, 1 << 19, vmm.memory_fd)
        vmm.map(GPA + (1 << 19), 1 << 19, vmm.memory_fd, offset=1 << 19)
        gpa = GPA + (1 << 19) + 64
        vmm.memory.view(gpa, 4)[:] = b"efgh"
        vmm.write(0, COPY, 4, gpa)
        assert vmm.read_bytes(0, COPIED, 4) == b"efgh"
        vmm.unmap(0, 0, UnmapFlags.ALL)
        vmm.map(GPA, 1 << 20, vmm.memory_fd)


def test_pipelined_changes_of_memory_keep_their_descriptors(bench) -> None:
    server = bench.serve()
    vmm = bench.running()
    fds = []
    for i in range(20):
        fds.append(os.memfd_create(f"part{i}", os.MFD_CLOEXEC))
        os.ftruncate(fds[-1], 4096)
        os.pwrite(fds[-1], bytes([i]), 0)
        vmm.send(Command.REGION_READ, RegionAccess(COUNT, 0, 4))
        payload = DmaMap(flags=3, address=i << 12, size=4096)
        vmm.send(Command.DMA_MAP, payload, [fds[-1]])
        vmm.send(Command.DMA_MAP, DmaMap(flags=1, address=(1 << 40) + (i << 12), size=4096))
    for _ in range(60):
        header, _ = vmm.receive()
        assert header.flags == HeaderFlags.REPLY
    assert [bytes(server.memory.view(i << 12, 1))[0] for i in range(20)] == list(range(20))
    for fd in fds:
        os.close(fd)


def test_when_the_answer_to_unmap_comes_nothing_is_in_flight(bench) -> None:  # E7
    server = bench.serve()
    vmm = bench.running()
    looked = []
    bench.device.work = lambda: looked.append(server.memory.covers(GPA, 4))
    unmap = DmaUnmap(address=GPA, size=1 << 20)
    vmm.write(0, WORK, 4, 1)
    bench.turn()
    vmm.unmap(GPA, 1 << 20)
    assert looked == [True], "what had begun ended before the answer"
    vmm.map(GPA, 1 << 20, vmm.memory_fd)
    vmm.send_bytes(
        encode_message(1, Command.REGION_WRITE, RegionWrite(WORK, 0, 4, bytes(4)))
        + encode_message(2, Command.DMA_UNMAP, unmap)
    )
    vmm.receive()
    vmm.receive()
    bench.turn(2)
    assert looked == [True, False], "what had not begun finds no memory"


def test_a_guest_whose_memory_is_not_shared_is_told_how_to_share_it(bench, lines) -> None:
    bench.serve()
    vmm = bench.connect()
    vmm.negotiate()
    with pytest.raises(RefusedError):
        vmm.map(0, 1 << 20, None)
    assert lines()[-1].startswith("nic0: DMA_MAP: refused: 0x100000 bytes at 0x0: guest memory ")
    assert "share=on -machine memory-backend=mem" in lines()[-1]
    with pytest.raises(RefusedError):
        vmm.ask(Command.DEVICE_GET_INFO, DeviceInfo())


def test_memory_that_the_vmm_maps_for_itself_is_named(bench, lines, n_fds) -> None:
    bench.serve()
    vmm = bench.connect()
    vmm.negotiate()
    fd = os.memfd_create("private", os.MFD_CLOEXEC)
    os.ftruncate(fd, 1 << 20)
    vmm.map(0, 1 << 20, fd)
    vmm.write_config(0x3C, b"\x05")
    assert lines() == [], "the guest may not run yet"
    before = n_fds()
    vmm.enable()
    assert "share=on" in lines()[-1]
    assert n_fds() == before - 1
    vmm.enable()
    assert len(lines()) == 1
    os.close(fd)


def test_memory_that_is_shared_is_not_complained_of(bench, lines) -> None:
    bench.serve()
    bench.running()
    assert lines() == []


def test_memory_that_the_vmm_cuts_short_ends_the_session(bench, lines) -> None:
    server = bench.serve()
    vmm = bench.connect()
    vmm.negotiate()
    vmm.share_memory(1 << 20, sealed=False)
    vmm.memory.clear()
    os.ftruncate(vmm.memory_fd, 0)
    assert bytes(server.memory.view(GPA, 4)) == bytes(4)
    bench.until(lambda: bench.nic.resets == ["session"])
    assert "cut guest memory short" in lines()[-1]
    assert bench.running().read(0, COUNT, 4) == 1
