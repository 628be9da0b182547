"""Frames on a byte stream: however it is cut, the same frames; beside a twin in plain Python."""

from __future__ import annotations

import contextlib
import errno
import itertools
import socket
from collections.abc import Iterable, Iterator
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.peers import framed, unframed
from kit.pieces import Pieces, _raw
from vnic.burst import FRAME_MAX, Burst
from vnic_stream.frames_kernel import SPACE, Incoming, Outgoing

LENGTHS = st.one_of(
    st.integers(1, 100), st.integers(1, 2000), st.sampled_from([9014, 65535, FRAME_MAX])
)
FRAMES = st.lists(LENGTHS, max_size=30).map(
    lambda lengths: [frame(i, length) for i, length in enumerate(lengths)]
)
PREFIXES = st.integers(0, 70_000).map(lambda length: length.to_bytes(4, "big"))
CUTS = st.lists(st.one_of(st.integers(1, 10), st.integers(1, 100_000)), min_size=1, max_size=10)


def frame(number: int, length: int) -> bytes:
    return ((number + 1).to_bytes(4, "big") * (length // 4 + 1))[:length]


def cut(data: bytes, lengths: Iterable[int]) -> Iterator[bytes]:
    """Cut data in pieces; the lengths are used over and over."""
    at = 0
    for length in itertools.cycle(lengths):
        if at >= len(data):
            return
        yield data[at : at + length]
        at += length


def take(incoming: Incoming, at_once: int = 256) -> list[bytes]:
    """Take what is there, so many frames at a time."""
    frames = []
    while n := incoming.find():
        n = min(n, at_once)
        frames += [bytes(incoming.burst[incoming.start + i]) for i in range(n)]
        incoming.taken(n)
    return frames


def receive(incoming: Incoming, piece: bytes, at_once: int = 256) -> list[bytes]:
    """Have bytes come, and take the frames that they make."""
    frames = []
    while piece and not incoming.too_long:
        space = incoming.space()
        n = min(len(space), len(piece))
        space[:n] = piece[:n]
        incoming.came(n)
        frames += take(incoming, at_once)
        piece = piece[n:]
    return frames


# ---- bytes to frames -----------------------------------------------------------------------------


@given(FRAMES, CUTS, st.integers(1, 256))
@settings(deadline=None)
def test_any_cut_of_the_stream_gives_the_same_frames(
    frames: list[bytes], lengths: list[int], at_once: int
) -> None:
    incoming = Incoming()
    got = []
    for piece in cut(framed(frames), lengths):
        got += receive(incoming, piece, at_once)
    assert got == frames
    assert incoming.reset() == 0


@given(st.lists(st.one_of(st.binary(max_size=9), PREFIXES), max_size=50).map(b"".join), CUTS)
def test_any_bytes_are_frames_as_the_twin_has_them_or_none(data: bytes, lengths: list[int]) -> None:
    incoming = Incoming()
    got = []
    for piece in cut(data, lengths):
        got += receive(incoming, piece)
    frames, left = unframed(data)
    assert got == frames
    length = int.from_bytes(left[:4], "big") if len(left) >= 4 else 0
    assert incoming.too_long == (length if length > FRAME_MAX else 0)
    assert incoming.reset() == (1 if left and length <= FRAME_MAX else 0)


def test_more_frames_than_a_burst_holds_come_in_several() -> None:
    frames = [frame(i, 14) for i in range(700)]
    incoming = Incoming()
    space = incoming.space()
    data = framed(frames)
    space[: len(data)] = data
    incoming.came(len(data))
    n = []
    while left := incoming.find():
        n.append(left)
        incoming.taken(left)
    assert n == [256, 256, 188]


@pytest.mark.parametrize("length", [FRAME_MAX + 1, 0x47455420, 0xFFFFFFFF])
def test_a_length_that_no_frame_has_is_found_behind_the_frames_before_it(length: int) -> None:
    incoming = Incoming()
    got = receive(incoming, framed([frame(0, 60)]) + length.to_bytes(4, "big") + bytes(100))
    assert got == [frame(0, 60)]
    assert incoming.too_long == length
    assert incoming.find() == 0
    incoming.reset()
    assert incoming.too_long == 0


def test_an_empty_frame_is_passed_on_and_the_next_one_found() -> None:
    assert receive(Incoming(), framed([b"", frame(0, 60)])) == [b"", frame(0, 60)]


def test_there_is_always_space_while_no_frame_is_whole() -> None:
    incoming = Incoming()
    frames = [frame(i, FRAME_MAX) for i in range(3)]
    data = framed(frames)
    assert len(data) < SPACE
    got = receive(incoming, data[:-1])
    assert len(incoming.space()) == SPACE - (4 + FRAME_MAX - 1)
    assert got + receive(incoming, data[-1:]) == frames


def test_what_waits_at_the_end_is_counted_whole_or_in_part() -> None:
    incoming = Incoming()
    data = framed(frame(i, 60) for i in range(5))[:-1]
    incoming.space()[: len(data)] = data
    incoming.came(len(data))
    assert incoming.find() == 4
    incoming.taken(1)
    assert incoming.reset() == 3 + 1
    assert receive(incoming, framed([frame(9, 60)])) == [frame(9, 60)]


def test_the_buffer_is_guarded_against_who_would_use_it_wrongly() -> None:
    incoming = Incoming()
    with pytest.raises(ValueError, match=f"room for {SPACE} bytes"):
        incoming.came(SPACE + 1)
    data = framed([frame(0, 60)])
    incoming.space()[: len(data)] = data
    incoming.came(len(data))
    with pytest.raises(ValueError, match="0 frames were to be taken, not 1"):
        incoming.taken(1)
    incoming.find()
    with pytest.raises(RuntimeError, match="frames to be taken first"):
        incoming.space()


# ---- frames to bytes -----------------------------------------------------------------------------


class Pipe:
    """A socket that takes little at a time, and its other end."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)  # the kernel's least
        self.theirs.setblocking(False)
        self.fd = self.ours.fileno()
        self.data = b""

    def read(self, n: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self.data += self.theirs.recv(n)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.ours.close()
        self.theirs.close()


@given(FRAMES, st.lists(st.integers(1, 20_000), min_size=1, max_size=10), st.integers(1, 100))
@settings(deadline=None, max_examples=50)
def test_whatever_the_socket_takes_at_a_time_the_stream_is_whole(
    frames: list[bytes], reads: list[int], n_pieces: int
) -> None:  # F4: a short write
    def in_pieces(length: int) -> Iterator[int]:
        return map(len, cut(bytes(length), [max(1, length // n_pieces)]))

    burst = Pieces.of(frames, [None] * len(frames), in_pieces)
    outgoing = Outgoing()
    at = 0
    with Pipe() as pipe:
        for n in itertools.cycle(reads):
            taken, too_long, error = outgoing.send(pipe.fd, burst.burst.rest(at))
            assert (too_long, error) == (0, 0)
            at += taken
            if at == len(frames) and not outgoing.waiting:
                break
            assert outgoing.waiting <= 4 + FRAME_MAX
            pipe.read(n)
        while len(pipe.data) < len(framed(frames)):
            pipe.read(1 << 20)
        assert pipe.data == framed(frames)


def test_the_rest_of_a_frame_is_the_same_whatever_becomes_of_the_burst() -> None:
    outgoing = Outgoing()
    with Pipe() as pipe:
        first = frame(0, FRAME_MAX)
        assert outgoing.send(pipe.fd, Burst.of([first])) == (1, 0, 0)
        assert outgoing.waiting
        assert outgoing.send(pipe.fd, Burst.of([frame(1, 60)])) == (0, 0, 0)
        while outgoing.waiting:
            pipe.read(1 << 20)
            assert outgoing.flush(pipe.fd) == 0
        pipe.read(1 << 20)
        assert pipe.data == framed([first])
        assert outgoing.reset() == 0


def test_a_frame_of_more_pieces_than_a_system_call_takes_is_sent_all_the_same() -> None:
    frames = [frame(0, 60), frame(1, 1500), frame(2, 60)]
    burst = Pieces.of(frames, [None] * 3, lambda length: [1] * length)
    with Pipe() as pipe:
        assert Outgoing().send(pipe.fd, burst.burst) == (3, 0, 0)
        pipe.read(1 << 20)
        assert pipe.data == framed(frames)


def test_a_frame_longer_than_any_is_dropped_and_counted() -> None:
    frames = [frame(0, 60), frame(1, FRAME_MAX + 1), frame(2, 60)]
    burst = Pieces.of(frames, [None] * 3, lambda length: [length])
    with Pipe() as pipe:
        assert Outgoing().send(pipe.fd, burst.burst) == (3, 1, 0)
        pipe.read(1 << 20)
        assert pipe.data == framed([frames[0], frames[2]])


def test_the_length_announced_is_that_of_the_bytes_sent_whatever_the_record_says() -> None:
    frames = [frame(0, 60), frame(1, 100)]
    burst = Pieces.of(frames, [None] * 2, lambda length: [length])
    _raw(burst.burst).frames[0].len = 1000
    with Pipe() as pipe:
        assert Outgoing().send(pipe.fd, burst.burst) == (2, 0, 0)
        pipe.read(1 << 20)
        assert pipe.data == framed(frames)


def test_a_peer_that_has_gone_is_an_errno_and_no_signal_or_exception() -> None:
    outgoing = Outgoing()
    with Pipe() as pipe:
        assert outgoing.send(pipe.fd, Burst.of([frame(0, FRAME_MAX)])) == (1, 0, 0)
        pipe.theirs.close()
        broken = (errno.EPIPE, errno.ECONNRESET)
        taken, _, error = outgoing.send(pipe.fd, Burst.of([frame(1, 60)]))
        assert taken == 0
        assert error in broken
        assert outgoing.flush(pipe.fd) in broken
        assert outgoing.reset() == 1
        assert outgoing.waiting == 0
