"""Bursts: frames on loan, to Python as bytes and to a descriptor as they lie."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vnic.burst import BURST_MAX, FRAME_MAX, Burst

Pair = tuple[socket.socket, socket.socket]
HEADER = bytes(range(12))


@pytest.fixture
def wire() -> Iterator[Pair]:
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (left, right):
        end.setblocking(False)
    yield left, right
    left.close()
    right.close()


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=70), st.booleans()), max_size=BURST_MAX))
def test_a_burst_holds_what_it_was_made_of(frames: list[tuple[bytes, bool]]) -> None:
    headers = [bytes([i % 256]) * 12 if has else None for i, (_, has) in enumerate(frames)]
    burst = Burst.of([frame for frame, _ in frames], headers)
    assert len(burst) == len(frames)
    assert [bytes(frame) for frame in burst] == [frame for frame, _ in frames]
    assert [burst.header(i) for i in range(len(burst))] == [h or bytes(12) for h in headers]
    assert burst.n_bytes() == sum(burst.length(i) for i in range(len(burst)))
    for i in range(-len(burst), len(burst)):
        assert bytes(burst[i]) == frames[i][0]
    for i in (len(burst), -len(burst) - 1, 2**40, -(2**40)):
        for look in (burst.__getitem__, burst.header, burst.length):
            with pytest.raises(IndexError, match=f"a burst of {len(frames)} frames has none at"):
                look(i)


def test_a_frame_outlives_its_burst_and_what_it_was_made_of() -> None:
    source = bytearray(b"before")
    burst = Burst.of([source])
    source[:] = b"after!"
    frame = burst[0]
    del burst
    assert bytes(frame) == b"before"
    assert frame.readonly


@pytest.mark.parametrize("n", [0, FRAME_MAX + 1])
def test_a_frame_of_impossible_length_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"a frame has 1 to {FRAME_MAX} bytes, not {n}"):
        Burst.of([bytes(n)])


def test_more_frames_than_a_burst_holds_are_refused() -> None:
    assert len(Burst.of([b"x"] * 256)) == 256
    with pytest.raises(ValueError, match="at most 256 frames, not 257"):
        Burst.of([b"x"] * 257)


@pytest.mark.parametrize("n", [0, 11, 13])
def test_a_header_of_another_length_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="has 12 bytes"):
        Burst.of([b"x"], [bytes(n)])


# ---- writev --------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("n", [1, 60, 1514, FRAME_MAX])
def test_writev_puts_the_header_in_front_if_it_is_wanted(wire: Pair, n: int, header: bool) -> None:
    frame = os.urandom(n)
    assert Burst.of([frame], [HEADER]).writev(wire[0].fileno(), header=header) == (1, 0, 0)
    assert wire[1].recv(FRAME_MAX + 100) == (HEADER if header else b"") + frame


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 2**32 - 1])
def test_writev_begins_where_it_is_told(wire: Pair, start: int) -> None:
    burst = Burst.of([b"a", b"b", b"c"])
    assert burst.writev(wire[0].fileno(), start, header=False) == (max(0, 3 - start), 0, 0)
    assert [wire[1].recv(10) for _ in range(max(0, 3 - start))] == [b"a", b"b", b"c"][start:]


def test_writev_stops_at_a_full_descriptor_and_goes_on_there(wire: Pair) -> None:
    frames = [bytes([i]) * 4000 for i in range(200)]
    burst = Burst.of(frames)
    got: list[bytes] = []
    at = 0
    while at < len(frames):
        taken, failed, error = burst.writev(wire[0].fileno(), at, header=False)
        assert (failed, error) == (0, 0)
        assert taken > 0
        at += taken
        got += [wire[1].recv(5000) for _ in range(taken)]
    assert got == frames


def opened(path: str, flags: int = os.O_RDWR) -> Callable[[], int]:
    return lambda: os.open(path, flags)


REFUSING = {
    "EIO": opened("/proc/self/mem"),  # where nothing is mapped
    "EINVAL": lambda: os.eventfd(0, os.EFD_NONBLOCK),  # which takes eight bytes
    "ENOSPC": opened("/dev/full"),
    "EBADF": opened(os.devnull, os.O_RDONLY),
    "ENOTCONN": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
    "EDESTADDRREQ": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach(),
    "EPIPE": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(),
}
"""Descriptors that answer ``writev`` with this error."""


@pytest.mark.parametrize("name", REFUSING)
def test_writev_counts_what_the_kernel_refuses_and_goes_on(name: str) -> None:  # F4
    burst = Burst.of([b"abc", b"defg", b"h"])
    fd = REFUSING[name]()
    try:
        assert burst.writev(fd) == (3, 3, getattr(errno, name))
        assert burst.writev(fd, 2) == (1, 1, getattr(errno, name))
    finally:
        os.close(fd)


def test_writev_refuses_a_frame_and_takes_the_next(wire: Pair) -> None:  # F4
    wire[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    burst = Burst.of([b"first", bytes(60_000), b"last"])
    assert burst.writev(wire[0].fileno(), header=False) == (3, 1, errno.EMSGSIZE)
    assert [wire[1].recv(100), wire[1].recv(100)] == [b"first", b"last"]
