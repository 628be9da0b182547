"""The room that keeps nothing; with a ring behind it, it is tested together with virtio-net."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest
from vnic.burst import Burst, Room


def test_a_room_without_a_ring_takes_and_counts_everything() -> None:
    room = Room()
    room.open()
    burst = Burst.of([b"x" * 60] * 5)
    assert [room.put(burst), room.put(burst, 3), room.put(burst, 5), room.put(burst, 99)] == [
        *(5, 2, 0, 0)
    ]
    assert room.put_frame(b"")
    assert room.put_frame(bytes(1 << 20), bytes(12))
    assert room.close() == 0
    assert not room.full
    assert room.counters["rx_drop_discarded"] == 9
    assert sum(room.counters.values()) == 9


def test_a_room_without_a_ring_reads_a_descriptor_empty() -> None:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    right.setblocking(False)
    for i in range(20):
        left.send(bytes(i * 10 + 1))
    room = Room()
    assert room.readv(right.fileno(), 15) == (15, 0)
    assert room.readv(right.fileno(), 15) == (5, 0)
    assert room.readv(right.fileno(), 15) == (0, 0)
    left.close()
    assert room.readv(right.fileno(), 15) == (15, 0)  # a closed end is readable for ever: bounded
    right.close()


def test_a_descriptor_that_cannot_be_read_is_told() -> None:
    fd = os.open(os.devnull, os.O_WRONLY)
    os.close(fd)
    assert Room().readv(fd) == (0, errno.EBADF)


@pytest.mark.parametrize("n", [0, 11, 13])
def test_a_header_of_another_length_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="has 12 bytes"):
        Room().put_frame(b"x" * 60, bytes(n))


def test_what_is_no_burst_and_no_ring_is_refused() -> None:
    other: Any = "text"
    with pytest.raises((ValueError, TypeError)):
        Room(Burst().capsule)
    with pytest.raises(AttributeError):
        Room().put(other)
    with pytest.raises(TypeError):
        Room().put_frame(other)
