"""Messages about guest memory, while queues run on it."""

from __future__ import annotations

from attrs import evolve
from kit.vhost_user import REGION, SECOND, USER, Script, queue, refused
from vnic.hookspecs import QueueAddresses
from vnic_vhost_user import events
from vnic_vhost_user.connection import MAX_MEM_SLOTS
from vnic_vhost_user.messages import Request
from vnic_vhost_user.payloads import MemoryRegion, MemoryTable, SingleRegion, VringState


def test_a_new_memory_table_restarts_the_queues_where_they_were(ready: Script) -> None:
    ready.tell(Request.SET_VRING_ENABLE, VringState(index=0, num=1))
    ready.start()
    ready.bases[0] = 40
    moved = MemoryRegion(guest_addr=0x90000, size=0x10000, user_addr=USER)
    seen = ready.tell(Request.SET_MEM_TABLE, MemoryTable(regions=(SECOND, moved)), 2)
    assert seen == [
        events.StopQueue(0),
        events.SetMemory((SECOND, moved), (ready.next_fd - 2, ready.next_fd - 1)),
        events.StartQueue(
            0,
            QueueAddresses(size=64, desc_gpa=0x90000, avail_gpa=0x91000, used_gpa=0x92000, base=40),
        ),
        events.EnableQueue(0, True),
        events.Kick(0),
    ]


def test_a_memory_table_without_the_ring_of_a_started_queue_is_refused(ready: Script) -> None:
    ready.start()
    text = refused(ready.tell, Request.SET_MEM_TABLE, MemoryTable(regions=(SECOND,)), 1)
    assert text.startswith("SET_MEM_TABLE: queue 0: its descriptor table")


def test_memory_that_comes_does_not_disturb_a_queue_that_runs(ready: Script) -> None:
    ready.start()
    seen = ready.tell(Request.ADD_MEM_REG, SingleRegion(region=SECOND), 1)
    assert seen == [events.AddMemory(SECOND, ready.next_fd - 1)]


def test_a_region_that_is_cut_in_two_pauses_the_queues_until_it_is_whole(ready: Script) -> None:
    ready.start()
    ready.bases[0] = 5
    seen = ready.tell(Request.REM_MEM_REG, SingleRegion(region=REGION))
    assert seen == [events.StopQueue(0), events.RemoveMemory(REGION), events.ResumeSoon()]
    assert ready.run(ready.connection.resume()) == []

    half = REGION.size // 2
    low = MemoryRegion(guest_addr=0x10000, size=half, user_addr=USER)
    high = MemoryRegion(guest_addr=0x10000 + half, size=half, user_addr=USER + half)
    for part in (low, high):
        seen = ready.tell(Request.ADD_MEM_REG, SingleRegion(region=part), 1)
        assert seen == [events.AddMemory(part, ready.next_fd - 1), events.ResumeSoon()]
    assert ready.run(ready.connection.resume()) == [
        events.StartQueue(0, queue(5)),
        events.EnableQueue(0, False),
        events.Kick(0),
    ]
    assert ready.run(ready.connection.resume()) == []


def test_a_queue_stopped_while_paused_tells_its_place_and_stays_stopped(ready: Script) -> None:
    ready.start()
    ready.bases[0] = 9
    ready.tell(Request.REM_MEM_REG, SingleRegion(region=REGION))
    reply = VringState.decode(ready.ask(Request.GET_VRING_BASE, VringState(index=0)))
    assert reply.num == 9
    ready.tell(Request.ADD_MEM_REG, SingleRegion(region=REGION), 1)
    assert ready.run(ready.connection.resume()) == []


def test_a_region_is_removed_whatever_its_offset_and_its_descriptor_closed(ready: Script) -> None:
    seen = ready.tell(Request.REM_MEM_REG, SingleRegion(region=evolve(REGION, mmap_offset=0)), 1)
    assert seen == [
        events.RemoveMemory(REGION),
        events.ResumeSoon(),
        events.Discard((ready.next_fd - 1,)),
    ]


def test_a_region_that_is_not_there_is_not_removed(ready: Script) -> None:
    text = refused(ready.tell, Request.REM_MEM_REG, SingleRegion(region=SECOND))
    assert text.endswith("there is none such")


def test_there_are_as_many_slots_as_were_told(ready: Script) -> None:
    for n in range(MAX_MEM_SLOTS - 1):
        region = MemoryRegion(guest_addr=0x1000_0000 + n * 0x1000, size=0x1000, user_addr=n)
        ready.tell(Request.ADD_MEM_REG, SingleRegion(region=region), 1)
    text = refused(ready.tell, Request.ADD_MEM_REG, SingleRegion(region=SECOND), 1)
    assert "509 regions already" in text
