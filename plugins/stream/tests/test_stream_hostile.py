"""Peers of a stream that mean harm, or whose program is broken."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit.peers import PREFIX_LEN, framed
from vnic.burst import BURST_MAX, FRAME_MAX
from vnic_stream import Stream
from vnic_stream.frames_kernel import SPACE
from vnic_stream.listener import REST_S
from vnic_stream.stream import STEPS_PER_RECV

Frame = Callable[..., bytes]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.sock")


@pytest.mark.parametrize("nonsense", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 1000])
def test_a_peer_that_announces_what_is_no_frame_is_hung_up_on_once_its_frames_are_taken(
    world: Any, path: str, frame: Frame, nonsense: bytes
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    peer.socket.sendall(framed([frame(1)]) + nonsense)
    assert line.got() == [frame(1)]
    length = int.from_bytes(nonsense[:4], "big")
    assert line.link.reason == (
        f"stream:{path}: the peer announces a frame of {length} bytes, which none can have: "
        "it speaks another protocol; listening"
    )
    assert line.counts == {"peer_lost": 1, "peer_no_frame": 1}
    peer.read()
    assert peer.ended
    peer = world.call(path)
    peer.send([frame(2)])
    assert line.got() == [frame(2)]


@pytest.mark.parametrize("n_bursts", range(STEPS_PER_RECV + 1))
def test_who_announces_no_frame_and_then_is_silent_is_hung_up_on_however_many_came_before(
    world: Any, path: str, frame: Frame, n_bursts: int
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    frames = [frame(n) for n in range(n_bursts * BURST_MAX)]
    peer.socket.sendall(framed(frames) + b"\xff" * PREFIX_LEN)
    assert line.got() == frames
    assert not line.link.is_up


@pytest.mark.parametrize("length", [0, 1, 13])
def test_what_is_too_short_for_a_frame_ends_nothing(
    world: Any, path: str, frame: Frame, length: int
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    peer.send([bytes(length), frame(1)])
    assert line.got()[-1] == frame(1)
    assert line.link.is_up


def test_a_frame_byte_by_byte_arrives(world: Any, path: str, frame: Frame) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    for byte in framed([frame(1), frame(2)]):
        peer.socket.sendall(bytes([byte]))
        world.bench.settle()
    assert line.got() == [frame(1), frame(2)]


def test_a_peer_that_sends_without_end_leaves_others_their_turn(
    world: Any, path: str, frame: Frame
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    peer.send([frame(i) for i in range(2000)])
    line.link.on_readable = lambda: None
    received = [line.guest.receive() for _ in range(10)]
    assert max(received) <= STEPS_PER_RECV * BURST_MAX
    assert sum(received) == 2000


def test_a_peer_that_sends_nothing_but_empty_frames_leaves_others_their_turn(
    world: Any, path: str, frame: Frame
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    line.link.on_readable = lambda: None
    peer.socket.sendall(bytes(PREFIX_LEN) * 5000 + framed([frame(1)]))
    received = [line.guest.receive() for _ in range(20)]
    assert max(received) <= STEPS_PER_RECV * BURST_MAX
    assert line.got()[-1] == frame(1)


@pytest.mark.parametrize(
    "start", [b"\0", b"\0\0\5", b"\0\0\xff\xff", b"\0\0\xff\xff" + bytes(65534)]
)
def test_the_start_of_a_frame_that_never_goes_on_is_kept_and_nothing_spins(
    world: Any, path: str, frame: Frame, start: bytes
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    peer.socket.sendall(start)
    world.bench.settle()  # which fails when it spins
    assert line.got() == []
    assert len(line.backend._incoming.space()) == SPACE - len(start)
    line.send(frame(1))
    assert peer.frames() == [frame(1)]
    peer.close()
    world.bench.settle()
    assert line.counts == {"peer_lost": 1, "rx_drop_disconnected": 1}


def test_a_peer_that_never_reads_costs_one_frame_of_memory_and_can_still_be_heard(
    world: Any, path: str, frame: Frame
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    n = line.fill(frame(1, FRAME_MAX))
    assert line.send(frame(2)) == 0  # the guest's ring keeps it
    assert 0 < line.backend._outgoing.waiting <= PREFIX_LEN + FRAME_MAX
    peer.send([frame(3)])
    assert line.got() == [frame(3)]
    assert not [name for name in line.counts if "drop" in name]
    for _ in range(n):
        peer.read()
        world.bench.settle()
    assert peer.frames() == [frame(1, FRAME_MAX)] * n


def test_who_calls_again_and_again_is_told_of_once_for_each_peer_that_was_there(
    world: Any, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    for n in (1, 2):
        peer = world.call(path)
        for _ in range(20):
            other = world.call(path)
            other.read()
            assert other.ended
        assert line.link.is_up
        assert line.counts["peer_refused"] == 20 * n
        told = [r for r in caplog.records if "second peer" in r.getMessage()]
        assert [r.levelno for r in told] == [logging.WARNING] * n
        peer.close()
        world.bench.settle()


def test_a_peer_that_comes_and_goes_as_fast_as_it_can_is_let_in_once_a_second(
    world: Any, path: str, frame: Frame
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    world.call(path).close()
    world.bench.settle()
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(path)
        world.bench.settle()
        assert line.guest.ups == [False, True, False]
        line.wait(REST_S)
        assert line.link.is_up
        peer.sendall(framed([frame(1)]))
        assert line.got() == [frame(1)]
