"""The peer of a stream: not there yet, there, gone, there again; and what becomes of frames."""

from __future__ import annotations

import logging
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.peers import StreamPeer, framed
from vnic.burst import FRAME_MAX
from vnic_stream import Stream
from vnic_stream.caller import CONNECT_S, BackOff
from vnic_stream.peer import State

Frame = Callable[..., bytes]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "a.sock")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# ---- a caller ------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.floats(0.01, 10), st.floats(1, 100))
def test_each_wait_is_twice_the_last_up_to_a_bound_less_some_chance(
    chance: float, shortest: float, times: float
) -> None:
    back_off = BackOff(shortest, shortest * times, lambda: chance)
    for n in range(10):
        whole = min(shortest * 2**n, shortest * times)
        assert back_off.next() == pytest.approx(whole * (1 - chance / 4))
    back_off.reset()
    assert back_off.next() <= shortest


def test_a_caller_calls_until_there_is_a_peer_and_the_carrier_follows(
    world: Any, path: str, frame: Frame, caplog: pytest.LogCaptureFixture
) -> None:
    line = world.line(Stream, f"stream:{path}", reconnect="1..4")
    assert line.guest.ups == [False]
    assert line.link.reason == (
        f"stream:{path}: nobody answers: no such file or directory; calling again until it answers"
    )
    for _ in range(3):
        line.wait(4)
    assert len(warnings(caplog)) == 1
    listener = world.listener(path)
    line.wait(4)
    peer = world.accept(listener)
    assert line.guest.ups == [False, True]
    line.send(frame(1))
    peer.send([frame(2)])
    assert (peer.frames(), line.got()) == ([frame(1)], [frame(2)])


def test_a_caller_is_up_at_once_where_the_peer_listens_already(world: Any, path: str) -> None:
    listener = world.listener(path)
    line = world.line(Stream, f"stream:{path}")
    assert line.link.is_up
    assert line.guest.ups == []
    world.accept(listener)


def test_a_caller_whose_peer_was_started_again_goes_on_there(
    world: Any, path: str, frame: Frame
) -> None:
    listener = world.listener(path)
    line = world.line(Stream, f"stream:{path}")
    for n in range(3):
        peer = world.accept(listener)
        assert line.link.is_up
        line.send(frame(n))
        assert peer.frames() == [frame(n)]
        peer.close()
        world.bench.settle()
        assert line.guest.ups[-1] is False
        assert line.link.reason == (
            f"stream:{path}: the peer has hung up; calling again until it answers"
        )
        line.wait(30)
    assert line.guest.ups == [False, True] * 3
    assert line.counts["peer_lost"] == 3


def test_who_accepts_and_hangs_up_at_once_is_called_less_and_less(world: Any, path: str) -> None:
    listener = world.listener(path)
    line = world.line(Stream, f"stream:{path}", reconnect="1..8")
    line.backend._peer.back_off.chance = lambda: 0.0
    for wait_s in (1, 2, 4, 8, 8):
        world.accept(listener).close()
        world.bench.settle()
        line.wait(wait_s / 2)
        assert line.backend._peer.state is State.WAITING
        line.wait(wait_s / 2)
        assert line.backend._peer.state is State.UP
    peer = world.accept(listener)
    line.wait(9)  # this one lasts
    peer.close()
    world.bench.settle()
    line.wait(1)
    assert line.backend._peer.state is State.UP


def test_a_host_that_never_answers_is_given_up_and_called_again(
    world: Any, frame: Frame, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        fillers = [socket.create_connection(address)]
        line = world.line(Stream, f"stream:127.0.0.1:{address[1]}", reconnect=1)
        assert line.backend._peer.state is State.CONNECTING
        for _ in range(2):
            line.wait(CONNECT_S)
            assert line.backend._peer.state is State.WAITING
            line.wait(2)
            assert line.backend._peer.state is State.CONNECTING
        assert [line.partition("nobody answers: ")[2] for line in warnings(caplog)[1:]] == [
            "connection timed out; calling again until it answers"
        ]
        for filler in fillers:
            filler.close()


def test_a_port_where_nobody_listens_is_called_again(world: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    line = world.line(Stream, f"stream:127.0.0.1:{address[1]}")
    assert line.backend._peer.state is State.WAITING
    with socket.create_server(address) as listener:
        line.wait(1)
        peer = StreamPeer(listener.accept()[0])
        world.bench.settle()
        assert line.link.is_up
        peer.close()


def test_over_tcp_no_frame_waits_for_another_and_a_machine_that_vanished_is_noticed_in_25_s(
    world: Any,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        line = world.line(Stream, f"stream:127.0.0.1:{listener.getsockname()[1]}")
        peer, _ = listener.accept()
        option = line.backend._peer.sock.getsockopt
        assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle, interval, count = (
            option(socket.IPPROTO_TCP, name)
            for name in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + interval * count == 25
        peer.close()


def test_a_caller_that_has_called_itself_hangs_up(world: Any) -> None:
    # As it may where nobody listens at a port of the range that callers get theirs from.
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.connect(sock.getsockname())
    line = world.line(Stream, "stream:127.0.0.1:1")
    line.backend._peer._answered(sock, 0)
    assert sock.fileno() < 0
    assert line.backend._peer.state is State.WAITING


# ---- a listener ----------------------------------------------------------------------------------


def test_a_listener_is_down_until_it_is_called_and_again_when_the_peer_has_gone(
    world: Any, path: str, frame: Frame
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    assert line.guest.ups == [False]
    assert line.link.reason == f"stream:{path}: nobody has called yet; listening"
    for n in range(3):
        peer = world.call(path)
        assert line.link.is_up
        peer.send([frame(n)])
        assert line.got() == [frame(n)]
        peer.close()
        world.bench.settle()
        assert line.link.reason == f"stream:{path}: the peer has hung up; listening"
    assert line.guest.ups == [False, True] * 3 + [False]


def test_a_second_peer_is_refused_and_the_first_one_goes_on(
    world: Any, path: str, frame: Frame, caplog: pytest.LogCaptureFixture
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    first, second = world.call(path), world.call(path)
    line.send(frame(1))
    assert (first.frames(), second.frames()) == ([frame(1)], [])
    assert (first.ended, second.ended) == (False, True)
    assert line.counts["peer_refused"] == 1
    assert f"stream:{path}: a second peer calls, and is refused" in warnings(caplog)


def test_a_peer_started_again_is_let_in_before_its_predecessors_end_was_noticed(
    world: Any, path: str, frame: Frame
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    first = world.call(path)
    line.link.recv_disable()  # so that nobody reads the end of it
    first.socket.shutdown(socket.SHUT_WR)
    second = world.call(path)
    assert line.link.is_up
    line.send(frame(1))
    assert second.frames() == [frame(1)]
    assert line.counts.get("peer_refused") is None


def test_a_guest_that_waits_for_room_is_told_when_another_peer_has_taken_over(
    world: Any, path: str, frame: Frame
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    first = world.call(path)
    line.fill(frame(1, FRAME_MAX))
    world.bench.settle()
    n_writable = line.guest.n_writable
    line.link.recv_disable()
    first.socket.shutdown(socket.SHUT_WR)
    second = world.call(path)
    assert line.guest.n_writable == n_writable + 1
    line.send(frame(2))
    assert second.frames() == [frame(2)]  # and not the rest of a frame that the first got part of
    assert line.counts["tx_drop_disconnected"] == 1


def test_the_socket_is_removed_with_the_nic_and_one_left_behind_is_taken_over(
    world: Any, path: str
) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    line.link.close()
    assert not Path(path).exists()
    peer.read()
    assert peer.ended


def test_a_listener_without_descriptors_rests_and_accepts_later(world: Any, path: str) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with Path("/dev/null").open() as highest:
            resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno(), hard))
        try:
            world.bench.settle()  # which fails when it spins
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert not line.link.is_up
        line.wait(1)
        assert line.link.is_up


# ---- a socket that was passed --------------------------------------------------------------------


def test_a_passed_socket_stays_its_owners_and_its_peer_is_told_of_the_end(
    world: Any, frame: Frame
) -> None:
    ours, theirs = world.bench.pair()
    line = world.line(Stream, f"stream:fd={ours.fileno()}")
    peer = StreamPeer(theirs)
    line.send(frame(1))
    assert peer.frames() == [frame(1)]
    line.link.close()
    peer.read()
    assert peer.ended
    assert ours.fileno() >= 0
    assert ours.getsockname() == ""


def test_a_passed_socket_whose_peer_has_gone_is_down_for_good(world: Any, frame: Frame) -> None:
    ours, theirs = world.bench.pair()
    line = world.line(Stream, f"stream:fd={ours.fileno()}")
    theirs.close()
    world.bench.settle()
    assert line.link.reason.endswith("the peer has hung up; pass another socket, to a new NIC")
    line.wait(1000)
    assert line.guest.ups == [False]
    assert line.send(frame(1)) == 1
    assert line.counts["tx_drop_link_down"] == 1


# ---- frames at the end of a connection -----------------------------------------------------------


def test_a_frame_sent_in_part_is_finished_though_the_guest_sends_no_more(
    world: Any, path: str, frame: Frame
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    n, n_writable = 0, line.guest.n_writable
    while not line.backend._outgoing.waiting:
        assert line.send(frame(n, FRAME_MAX)) == 1
        n += 1
    for _ in range(10):
        peer.read()
        world.bench.settle()
    assert peer.frames() == [frame(i, FRAME_MAX) for i in range(n)]
    assert line.guest.n_writable == n_writable  # the guest was never short


def test_what_the_peer_sent_before_it_hung_up_reaches_the_guest(
    world: Any, path: str, frame: Frame
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    frames = [frame(i, 100) for i in range(1000)]
    peer.send(frames)
    peer.close()
    assert line.got() == frames
    assert not line.link.is_up
    assert line.counts == {"peer_lost": 1}


def test_a_guest_without_room_loses_what_waits_when_the_peer_hangs_up_and_it_is_counted(
    world: Any, path: str, frame: Frame
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    line.guest.room.n_max = 2
    peer = world.call(path)
    peer.send([frame(i) for i in range(5)])
    peer.socket.sendall(framed([frame(5)])[:-1])
    world.bench.settle()
    assert line.guest.frames == [frame(0), frame(1)]
    peer.close()
    world.bench.settle()  # which fails when it spins
    assert not line.link.is_up
    assert line.counts["rx_drop_disconnected"] == 3 + 1


def test_a_filter_that_takes_nothing_does_not_make_a_hang_up_spin(
    world: Any, path: str, frame: Frame
) -> None:  # F5
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    line.link.on_readable = lambda: None
    peer.close()
    world.bench.settle()
    assert not line.link.is_up


def test_a_frame_half_read_or_half_sent_is_not_continued_with_the_next_peer(
    world: Any, path: str, frame: Frame
) -> None:
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    line.fill(frame(0, FRAME_MAX))
    assert line.backend._outgoing.waiting
    peer.socket.sendall(framed([frame(1, 1500)])[:700])
    world.bench.settle()
    peer.close()
    world.bench.settle()
    assert line.counts["tx_drop_disconnected"] == 1
    assert line.counts["rx_drop_disconnected"] == 1
    peer = world.call(path)
    line.send(frame(2))
    peer.send([frame(3)])
    assert (peer.frames(), line.got()) == ([frame(2)], [frame(3)])


def test_frames_sent_to_a_peer_that_has_just_gone_are_dropped_and_counted(
    world: Any, path: str, frame: Frame
) -> None:  # F4
    line = world.line(Stream, f"stream:{path}", listen="on")
    peer = world.call(path)
    peer.close()
    assert line.send(frame(1), frame(2), frame(3)) == 3
    assert line.link.reason == f"stream:{path}: broken pipe; listening"
    assert line.counts["tx_drop_disconnected"] == 3
    assert line.guest.ups == [False, True, False]


def test_a_connection_that_was_reset_is_lost_and_nothing_more(world: Any, frame: Frame) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        line = world.line(Stream, f"stream:127.0.0.1:{listener.getsockname()[1]}")
        sock = listener.accept()[0]
        world.bench.settle()
        assert line.link.is_up
        linger_0 = b"\1\0\0\0\0\0\0\0"  # closing resets
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_0)
        sock.close()
        world.bench.settle()
    assert "connection reset by peer" in line.link.reason
    assert line.backend._peer.state is State.WAITING
