"""Guest memory that comes, changes under queues that run, and is cut short."""

from __future__ import annotations

import os

import pytest
from vnic.testing.vmm import GPA
from vnic_vhost_user.messages import ProtocolFeatures, Request
from vnic_vhost_user.payloads import MemoryRegion, MemoryTable, SingleRegion
from vnic_vhost_user.testing import USER


@pytest.mark.parametrize("slots", [True, False])
def test_memory_is_changed_under_queues_that_run(bench, slots: bool) -> None:
    server = bench.serve()
    vmm = bench.connect()
    offered = ~ProtocolFeatures.CONFIGURE_MEM_SLOTS if not slots else None
    vmm.negotiate(protocol=offered)
    region = vmm.share_memory(1 << 20)
    vmm.start_queue(0)
    bench.face.positions[0] = 5
    more = os.memfd_create("more")
    os.ftruncate(more, 1 << 16)
    extra = MemoryRegion(guest_addr=0x1000, size=1 << 16, user_addr=0x1000)
    if slots:
        vmm.tell(Request.ADD_MEM_REG, SingleRegion(region=extra), [more])
        assert bench.face.queues[0].base == 0  # it was not disturbed
        vmm.tell(Request.REM_MEM_REG, SingleRegion(region=region))
        assert bench.face.queues == {}
        vmm.tell(Request.ADD_MEM_REG, SingleRegion(region=region), [vmm.memory_fd])
        bench.until(lambda: bench.face.queues)
    else:
        table = MemoryTable(regions=(extra, region))
        vmm.tell(Request.SET_MEM_TABLE, table, [more, vmm.memory_fd])
    os.close(more)
    assert [r.gpa for r in server.memory.regions] == [0x1000, GPA]
    assert bench.face.queues[0].base == 5
    assert bench.face.enabled[0]


def test_guest_memory_needs_no_descriptor_once_it_is_mapped(bench, n_fds) -> None:
    bench.serve()
    vmm = bench.connect()
    vmm.negotiate()
    vmm.share_memory(1 << 20)
    before = n_fds()
    for _ in range(50):
        region = MemoryRegion(guest_addr=GPA, size=1 << 20, user_addr=USER)
        vmm.tell(Request.SET_MEM_TABLE, MemoryTable(regions=(region,)), [vmm.memory_fd])
    assert n_fds() == before


@pytest.mark.parametrize(
    ("region", "says"),
    [
        (MemoryRegion(guest_addr=0, size=1 << 30, user_addr=0), "has 0x100000"),
        (MemoryRegion(guest_addr=0, size=4096, user_addr=0, mmap_offset=1 << 20), "has 0x100000"),
        (MemoryRegion(guest_addr=GPA + 4096, size=4096, user_addr=0), "overlaps"),
    ],
)
def test_memory_that_cannot_be_ends_the_session(bench, lines, n_fds, region, says) -> None:  # D3
    bench.serve()
    before = n_fds()
    vmm = bench.connect()
    vmm.negotiate()
    vmm.share_memory(1 << 20)
    vmm.send(Request.ADD_MEM_REG, SingleRegion(region=region), [vmm.memory_fd])
    assert vmm.is_refused()
    assert says in lines()[-1]
    vmm.close()
    assert n_fds() == before


def test_memory_that_is_cut_short_ends_the_session_and_not_the_process(  # D10
    bench, lines
) -> None:
    server = bench.serve()
    vmm = bench.connect()
    vmm.negotiate()
    vmm.share_memory(1 << 20, sealed=False)
    vmm.start_queue(0)
    view = server.memory.view(GPA, 4096)
    os.ftruncate(vmm.memory_fd, 0)
    assert bytes(view) == bytes(4096)  # the fault is contained
    assert server.memory.truncated
    vmm.kick(0)
    bench.turn()
    server.failed("queue 0: avail index jumps")
    bench.turn(2)
    assert vmm.is_refused()
    assert lines()[-1] == (
        "nic0: session ended: the VMM has cut guest memory short, under the device"
    )
    assert bench.nic.resets == ["session"]
    assert not server.memory.regions
    bench.running()


def test_memory_that_is_cut_short_is_noticed_though_the_device_says_nothing(bench) -> None:  # D10
    server = bench.serve()
    vmm = bench.connect()
    vmm.negotiate()
    vmm.share_memory(1 << 20, sealed=False)
    view = server.memory.view(GPA, 1)
    os.ftruncate(vmm.memory_fd, 0)
    assert view[0] == 0
    bench.until(lambda: bench.nic.resets)
