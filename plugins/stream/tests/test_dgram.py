"""Frames in datagrams: peers that come and go, and whose frames nobody asked for."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.peers import free_port
from vnic.burst import FRAME_MAX
from vnic.errors import ConfigError
from vnic.testing.bench import Bench
from vnic_stream import Dgram
from vnic_stream.dgram import LOOK_S

Frame = Callable[..., bytes]


@contextlib.contextmanager
def bound(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(path))
        sock.settimeout(5.0)
        yield sock
        path.unlink()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    return tmp_path / "here.sock"


@pytest.fixture
def there(tmp_path: Path) -> Path:
    return tmp_path / "there.sock"


def test_the_carrier_follows_who_is_at_the_peers_path(
    world: Any, here: Path, there: Path, frame: Frame
) -> None:
    line = world.line(Dgram, f"dgram:{here}", peer=str(there))
    assert line.guest.ups == [False]
    assert line.link.reason == (
        f"dgram:{here}: nobody at {there}: no such file or directory; waiting for it"
    )
    for n in range(2):
        with bound(there) as peer:
            line.wait(LOOK_S)
            assert line.link.is_up
            line.send(frame(n))
            peer.sendto(frame(n + 100), str(here))
            assert (peer.recv(2000), line.got()) == (frame(n), [frame(n + 100)])
        line.wait(LOOK_S)
        assert not line.link.is_up
    assert line.guest.ups == [False, True] * 2 + [False]


def test_a_peer_started_again_is_found_though_the_guest_says_nothing(
    world: Any, here: Path, there: Path, frame: Frame
) -> None:
    with bound(there):
        line = world.line(Dgram, f"dgram:{here}", peer=str(there))
    with bound(there) as peer:
        with pytest.raises(PermissionError):  # for the one before is still the only one
            peer.sendto(frame(1), str(here))
        line.wait(LOOK_S)
        peer.sendto(frame(2), str(here))
        assert line.got() == [frame(2)]
        assert line.guest.ups == []


def test_a_peer_started_again_is_found_by_the_first_frame_that_finds_it_gone(
    world: Any, here: Path, there: Path, frame: Frame
) -> None:
    with bound(there):
        line = world.line(Dgram, f"dgram:{here}", peer=str(there))
    with bound(there) as peer:
        assert line.send(frame(1)) == 1
        assert line.counts == {"tx_drop_no_peer": 1}
        line.send(frame(2))
        assert peer.recv(2000) == frame(2)
        assert line.guest.ups == []


def test_a_peer_that_broke_off_while_nobody_was_at_its_path_leaves_no_deaf_guest(
    world: Any, here: Path, there: Path, frame: Frame
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        first.bind(str(there))
        line = world.line(Dgram, f"dgram:{here}", peer=str(there))
        first.connect(str(here))
        line.send(frame(1))  # which stays unread: else Linux says nothing of what comes
        there.unlink()
        line.wait(LOOK_S)
        assert not line.link.is_up
        with bound(there.with_name("else.sock")) as other:
            first.connect(other.getsockname())
            line.wait(0)
    with bound(there) as second:
        line.wait(LOOK_S)
        second.sendto(frame(2), str(here))
        assert line.got() == [frame(2)]


def test_nobody_else_is_heard(world: Any, here: Path, there: Path, frame: Frame) -> None:
    with bound(there), bound(there.with_name("else.sock")) as other:
        line = world.line(Dgram, f"dgram:{here}", peer=str(there))
        with pytest.raises(PermissionError):
            other.sendto(frame(1), str(here))
        assert line.got() == []


def test_a_guest_is_not_its_own_peer(world: Any, here: Path) -> None:
    port = free_port(kind=socket.SOCK_DGRAM)
    for address in (str(here), f"127.0.0.1:{port}"):
        with pytest.raises(ConfigError, match="this NIC's own address; give the peer's"):
            world.line(Dgram, f"dgram:{address}", peer=address)
    assert not here.exists()


def test_the_name_goes_with_the_nic_and_one_left_behind_is_taken_over(
    world: Any, here: Path, there: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(here))
    line = world.line(Dgram, f"dgram:{here}", peer=str(there))
    line.link.close()
    assert not here.exists()


def test_udp_that_nobody_receives_is_lost_and_ends_nothing(world: Any, frame: Frame) -> None:
    here, there = (free_port(kind=socket.SOCK_DGRAM) for _ in range(2))
    line = world.line(Dgram, f"dgram:127.0.0.1:{here}", peer=f"127.0.0.1:{there}")
    assert line.link.is_up
    for n in range(5):
        assert line.send(frame(n)) == 1
    line.link.recv_disable()
    line.send(frame(5))
    line.link.recv_enable()
    assert line.link.is_up
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(5.0)
        peer.bind(("127.0.0.1", there))
        line.send(frame(6))
        assert peer.recv(2000) == frame(6)


def test_udp_is_heard_from_the_peer_alone(world: Any, frame: Frame) -> None:
    here = free_port(socket.AF_INET6, socket.SOCK_DGRAM)
    with (
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as peer,
        socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as other,
    ):
        peer.bind(("::1", 0))
        line = world.line(Dgram, f"dgram:[::1]:{here}", peer=f"[::1]:{peer.getsockname()[1]}")
        other.sendto(frame(1), ("::1", here))
        peer.sendto(frame(2), ("::1", here))
        assert line.got() == [frame(2)]


def test_a_frame_too_long_for_udp_is_dropped_and_counted_and_the_next_one_leaves(
    world: Any, frame: Frame
) -> None:  # F4
    here = free_port(kind=socket.SOCK_DGRAM)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.settimeout(5.0)
        peer.bind(("127.0.0.1", 0))
        there = peer.getsockname()[1]
        line = world.line(Dgram, f"dgram:127.0.0.1:{here}", peer=f"127.0.0.1:{there}")
        assert line.send(frame(1, 65508), frame(2)) == 2
        assert line.counts == {"tx_drop_too_long": 1}
        assert peer.recv(2000) == frame(2)


def test_an_empty_datagram_is_no_frame_and_no_end(
    world: Any, here: Path, there: Path, frame: Frame
) -> None:
    with bound(there) as peer:
        line = world.line(Dgram, f"dgram:{here}", peer=str(there))
        peer.sendto(b"", str(here))
        peer.sendto(frame(1), str(here))
        assert line.got()[-1] == frame(1)


def test_a_datagram_longer_than_any_frame_is_dropped_and_counted_and_the_next_one_read(
    here: Path, there: Path, frame: Frame
) -> None:
    bench = Bench(at_once_s=5.0, deadline_s=5.0)
    with bound(there) as peer, contextlib.closing(bench):
        bench.open(Dgram, f"dgram:{here}", Dgram.Options(peer=str(there)), lambda call: call())
        bench.guest.start()
        for data in (bytes(100_000), bytes(FRAME_MAX + 1), frame(1)):
            peer.sendto(data, str(here))
            bench.settle()
        assert bench.guest.frames == [frame(1)]
        assert bench.guest._room.counters["rx_drop_too_long"] == 2


def test_a_passed_socket_that_its_owner_shuts_down_is_down(world: Any) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        line = world.line(Dgram, f"dgram:fd={ours.fileno()}")
        ours.shutdown(socket.SHUT_RDWR)
        world.bench.settle()  # which fails when it spins
        assert line.link.reason == (
            f"dgram:fd={ours.fileno()}: its socket was shut down; pass another one"
        )


def test_a_passed_socket_whose_peer_has_gone_is_down(world: Any, frame: Frame) -> None:  # F4, F5
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours:
        line = world.line(Dgram, f"dgram:fd={ours.fileno()}")
        line.send(frame(1))
        assert theirs.recv(2000) == frame(1)
        theirs.close()
        assert line.send(frame(2)) == 1
        assert line.counts["tx_drop_no_peer"] == 1
        assert line.link.reason.endswith("its peer has closed it; pass another socket")


def test_a_guest_that_waits_is_told_when_a_passed_sockets_peer_turns_to_another(
    world: Any, there: Path, frame: Frame
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs, bound(there):
        line = world.line(Dgram, f"dgram:fd={ours.fileno()}")
        line.fill(frame(1))
        world.bench.settle()
        assert line.guest.n_writable == 0
        theirs.connect(str(there))  # an error, and room, at once
        world.bench.settle()
        assert line.guest.n_writable == 1


@pytest.mark.parametrize(("error", "n"), [(errno.EIO, 1), (errno.ECONNREFUSED, 0), (0, 0)])
def test_a_read_that_fails_is_counted_unless_it_is_of_frames_that_were_sent(
    world: Any, here: Path, there: Path, error: int, n: int
) -> None:
    class Failing:
        def readv(self, fd: int, *, header: bool) -> tuple[int, int]:
            return 0, error

    line = world.line(Dgram, f"dgram:{here}", peer=str(there))
    assert line.backend.recv(Failing()) == 0
    assert line.counts.get("rx_drop_other", 0) == n
