"""Guest memory that is cut short under a system call, which answers EFAULT and no SIGBUS."""

from __future__ import annotations

import os
import socket
import struct

from kit.peers import unframed
from vnic.burst import Burst, Room
from vnic.hookspecs import QueueAddresses
from vnic.memory import Memory
from vnic_stream.frames_kernel import Outgoing
from vnic_virtio_net.ring_kernel import RxRing, TxRing

RING_GPA = 1 << 24
N = 8
WRITE = 2

OPTIONS = {"event_idx": False, "indirect": False, "header_len": 12}


def memory_with_ring(flags: int) -> tuple[Memory, QueueAddresses, int]:
    """Eight buffers of a page each in a file of their own, which the caller may cut short."""
    memory = Memory()
    buffers = os.memfd_create("buffers")
    os.ftruncate(buffers, 1 << 20)
    memory.add(0, 1 << 20, fd=buffers)
    memory.add(RING_GPA, 1 << 16, buffer=bytearray(1 << 16))
    ring = memory.view(RING_GPA, 1 << 16)
    for i in range(N):
        ring[16 * i : 16 * i + 16] = struct.pack("<QIHH", 4096 * i, 4096, flags, 0)
    ring[0x1000 : 0x1004 + 2 * N] = struct.pack(f"<HH{N}H", 0, N, *range(N))
    return (
        memory,
        QueueAddresses(
            size=N, desc_gpa=RING_GPA, avail_gpa=RING_GPA + 0x1000, used_gpa=RING_GPA + 0x2000
        ),
        buffers,
    )


def test_reading_into_memory_that_was_cut_short_is_contained_and_known() -> None:
    memory, queue, buffers = memory_with_ring(WRITE)
    ring = RxRing(memory, queue, mergeable=True, offloads=0, **OPTIONS)
    room = Room(ring.capsule, ring)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        ours.send(bytes(112))
        os.ftruncate(buffers, 0)
        os.close(buffers)
        room.open()
        _, error = room.readv(theirs.fileno())
        room.close()
    assert error == 0
    assert memory.truncated


def test_writing_from_memory_that_was_cut_short_is_contained_and_known() -> None:
    memory, queue, buffers = memory_with_ring(0)
    ring = TxRing(memory, queue, **OPTIONS)
    burst = Burst()
    assert ring.parse(burst) == N
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        os.ftruncate(buffers, 0)
        os.close(buffers)
        assert burst.writev(theirs.fileno()) == (N, 0, 0)
        assert ours.recv(1 << 16) == bytes(4096)
    assert memory.truncated


def test_streaming_from_memory_that_was_cut_short_is_contained_and_known() -> None:
    memory, queue, buffers = memory_with_ring(0)
    ring = TxRing(memory, queue, **OPTIONS)
    burst = Burst()
    assert ring.parse(burst) == N
    ours, theirs = socket.socketpair()
    with ours, theirs:
        os.ftruncate(buffers, 0)
        os.close(buffers)
        assert Outgoing().send(theirs.fileno(), burst) == (N, 0, 0)
        frames, _ = unframed(ours.recv(1 << 16))
    assert frames == [bytes(4084)] * N
    assert memory.truncated
