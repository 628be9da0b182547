"""A third server, of a protocol that nobody else speaks: what it gets from core, and what it owes.

A message is one byte; what the bytes mean is in `Talk` and `Session`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vnic.errors import GuestError, PeerError
from vnic.hookspecs import Host, ResetKind
from vnic.loop import Loop
from vnic.server import SocketServer
from vnic.session import REPLIES_MAX, SocketSession, Steps, close_all
from vnic.sockets import SocketOptions
from vnic.testing.vmm import SocketVmm

GPA, SIZE = 0x1000, 1 << 16

LONG = 1 << 20
"""Bytes of an answer that no socket takes at once."""


class Talk:
    """Answers a byte with what the session says to it, and sends descriptors back."""

    def __init__(self) -> None:
        self.wants = 4096
        self.mid_message = False
        self.waiting: list[int] = []
        self.answers: list[tuple[bytes, Sequence[int]]] = []

    def receive(self, data: bytes, fds: Sequence[int]) -> Steps:
        self.waiting += fds
        if b"?" in data:
            raise PeerError("?: can't be understood")
        return self.steps(data)

    def steps(self, data: bytes) -> Steps:
        for byte in data:
            self.mid_message = byte == ord("(")
            said = yield bytes((byte,)), self.waiting
            self.answers.append((said, self.waiting if byte == ord("b") else ()))

    def replies(self) -> list[tuple[bytes, Sequence[int]]]:
        due, self.answers = self.answers, []
        return due

    def close(self) -> list[int]:
        left, self.waiting = self.waiting, []
        return left


class Session(SocketSession):
    """Keeps, maps or gives back what came, and fails as it is told to."""

    def __init__(self, sock: socket.socket, nic: Any, host: Host) -> None:
        super().__init__(sock, nic, host, Talk())
        self.kept: list[int] = []

    def do(self, event: tuple[bytes, list[int]]) -> bytes:
        byte, fds = event
        match byte:
            case b"k":
                self.kept, fds[:] = fds[:], []
            case b"m":
                self.memory.add(GPA, SIZE, fd=fds[0])
            case b"s":
                self.served = True
            case b"l":
                return b"L" * LONG
            case b"g":
                raise GuestError("g: not like this")
            case b"z":
                raise ZeroDivisionError
            case b"e":
                self.end("it was asked to")
        return byte.upper()

    def let_go(self) -> None:
        self.nic.done.append("let go")
        close_all(self.kept)

    def interrupt(self, vector: int) -> None:
        self._socket.send(bytes((vector,)))


class Third(SocketServer):
    def open_session(self, sock: socket.socket, nic: Any) -> Session:
        return Session(sock, nic, self)


class Bench:
    """A loop, a NIC that writes down what is done to it, a server of it, and its VMMs."""

    def __init__(self, path: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.path = str(path)
        self.caplog = caplog
        self.loop = Loop()
        self.done: list[str] = []
        self.nic: Any = SimpleNamespace(
            name="nic0", done=self.done, reset=lambda kind: self.done.append(f"reset {kind.value}")
        )
        self.server = Third(SocketOptions(path=self.path), self.loop)
        self.vmms: list[SocketVmm] = []

    def connect(self) -> SocketVmm:
        self.vmms.append(SocketVmm.connect(self.path, self.loop.dispatch))
        self.turn()
        return self.vmms[-1]

    def turn(self, n: int = 3) -> None:
        for _ in range(n):
            self.loop.dispatch()

    def tell(self, vmm: SocketVmm, data: bytes, *fds: int) -> bytes:
        """Send something, and return what is answered; nothing if the session ended."""
        vmm.send_bytes(data, fds)
        self.turn()
        return vmm.socket.recv(LONG)

    def ended(self, level: int = logging.ERROR) -> str:
        """Return why the last session ended."""
        record = self.caplog.records[-1]
        assert record.levelno == level
        return record.getMessage().removeprefix("nic0: session ended: ")

    def works(self) -> bool:
        """Whether the next VMM is served."""
        with self.connect() as vmm:
            answer = self.tell(vmm, b"a")
        self.turn()
        return answer == b"A"


@pytest.fixture
def bench(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Bench]:
    caplog.set_level(logging.INFO)
    bench = Bench(tmp_path / "third.sock", caplog)
    bench.server.serve(bench.nic)
    yield bench
    bench.server.close()
    for vmm in bench.vmms:
        vmm.close()
    bench.loop.close()


def n_fds() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture
def guest_memory() -> Iterator[int]:
    fd = os.memfd_create("guest")
    os.ftruncate(fd, SIZE)
    yield fd
    os.close(fd)


def test_what_came_together_is_answered_in_order(bench: Bench) -> None:
    vmm = bench.connect()
    assert bench.tell(vmm, b"abc") == b"ABC"
    assert bench.tell(vmm, b"x") == b"X"


def test_what_came_before_a_message_that_ends_the_session_is_answered(bench: Bench) -> None:
    vmm = bench.connect()
    assert bench.tell(vmm, b"agc") == b"A"
    assert vmm.is_refused()
    assert bench.ended() == "g: not like this"
    assert bench.works()


def test_nothing_is_carried_out_once_the_session_has_ended(bench: Bench) -> None:
    vmm = bench.connect()
    assert bench.tell(vmm, b"aez") == b""
    assert bench.ended(logging.INFO) == "it was asked to"


@pytest.mark.parametrize(
    ("data", "level", "says"),
    [
        (b"?", logging.ERROR, "?: can't be understood"),
        (b"g", logging.ERROR, "g: not like this"),
        (b"z", logging.ERROR, "the device failed"),
        (b"m", logging.ERROR, "the device failed"),  # and no descriptor came
    ],
)
def test_whatever_is_raised_ends_one_session_and_leaves_nothing(
    bench: Bench, data: bytes, level: int, says: str
) -> None:
    before = n_fds()
    with bench.connect() as vmm:
        assert bench.tell(vmm, data) == b""
    assert bench.ended(level) == says
    assert bench.done == ["reset session", "let go"]
    assert n_fds() == before
    assert bench.works()


def test_a_device_that_fails_is_logged_with_where_it_did(bench: Bench) -> None:
    bench.tell(bench.connect(), b"z")
    (record,) = (record for record in bench.caplog.records if record.exc_info)
    assert record.getMessage() == "nic0: the device failed on what its VMM sent"
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_a_frontend_that_cannot_be_reset_ends_one_session_and_leaves_nothing(
    bench: Bench, guest_memory: int
) -> None:
    def fail(kind: ResetKind) -> None:
        raise ZeroDivisionError

    bench.nic.reset = fail
    before = n_fds()
    with bench.connect() as vmm:
        bench.tell(vmm, b"m", guest_memory)
    bench.turn()
    assert n_fds() == before
    assert bench.done == ["let go"]
    assert "nic0: the frontend's reset failed" in bench.caplog.text
    assert bench.works()


@pytest.mark.parametrize("data", [b"k", b"a", b"m", b"?"])
def test_descriptors_are_closed_with_the_session_wherever_they_went(
    bench: Bench, guest_memory: int, data: bytes
) -> None:
    before = n_fds()
    vmm = bench.connect()
    bench.tell(vmm, data, guest_memory)
    vmm.close()
    bench.turn()
    assert n_fds() == before
    assert not bench.server.memory.regions


def test_descriptors_are_sent_with_the_reply_they_belong_to(
    bench: Bench, guest_memory: int
) -> None:
    vmm = bench.connect()
    vmm.send_bytes(b"ab", [guest_memory])
    assert (vmm.receive_bytes(1), vmm.fds) == (b"A", [])
    assert vmm.receive_bytes(1) == b"B"
    assert [os.path.sameopenfile(fd, guest_memory) for fd in vmm.fds] == [True]


def test_descriptors_that_are_lost_on_the_way_end_the_session(
    bench: Bench, guest_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vnic.session.ANCILLARY", socket.CMSG_SPACE(4 * 2))
    before = n_fds()
    with bench.connect() as vmm:
        bench.tell(vmm, b"a", *[guest_memory] * 4)
    assert bench.ended().startswith("descriptors were lost on the way, after 2 of them")
    assert n_fds() == before


@pytest.mark.parametrize(("last", "where"), [(b"a", ""), (b"(", ", in the middle of a message")])
def test_a_vmm_that_leaves_is_forgotten(bench: Bench, last: bytes, where: str) -> None:
    with bench.connect() as vmm:
        bench.tell(vmm, last)
    bench.turn()
    assert bench.ended(logging.INFO) == f"the VMM closed the connection{where}"
    assert bench.done == ["reset session", "let go"]


def test_a_vmm_that_reads_late_gets_every_answer(bench: Bench) -> None:
    vmm = bench.connect()
    bench.server._session._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    for _ in range(REPLIES_MAX // 2):
        vmm.send_bytes(b"a")
        bench.turn(1)
    got = b""
    for _ in range(REPLIES_MAX):
        try:
            got += vmm.socket.recv(4096)
        except BlockingIOError:
            bench.turn(1)
    assert got == b"A" * (REPLIES_MAX // 2)


def test_an_answer_that_is_too_long_for_the_socket_comes_in_pieces(bench: Bench) -> None:
    vmm = bench.connect()
    got = bench.tell(vmm, b"l")
    assert 0 < len(got) < LONG
    for _ in range(1000):
        try:
            got += vmm.socket.recv(LONG)
        except BlockingIOError:
            if len(got) >= LONG:
                break
            bench.turn(1)
    assert got == b"L" * LONG


def test_a_vmm_that_never_reads_is_dropped(bench: Bench) -> None:
    vmm = bench.connect()
    for _ in range(10):
        if bench.server._session is None:
            break
        vmm.send_bytes(b"a" * (REPLIES_MAX // 2))
        bench.turn(1)
    assert bench.server._session is None
    assert bench.ended().endswith("replies unread")


def test_guest_memory_that_is_cut_short_ends_the_session(bench: Bench, guest_memory: int) -> None:
    vmm = bench.connect()
    assert bench.tell(vmm, b"m", guest_memory) == b"M"
    os.ftruncate(guest_memory, 0)
    assert bytes(bench.server.memory.view(GPA, 8)) == bytes(8)
    bench.server.failed("queue 1: a chain loops")
    assert bench.done == []  # not from within the burst that met it
    bench.turn()
    assert bench.ended() == "the VMM has cut guest memory short, under the device"
    assert bench.works()


def test_a_second_vmm_is_refused_until_the_first_is_gone(bench: Bench) -> None:
    first, second = bench.connect(), bench.connect()
    assert second.is_refused()
    assert bench.tell(first, b"a") == b"A"
    first.close()
    third = bench.connect()
    assert bench.tell(third, b"a") == b"A"


def test_interrupts_go_to_the_vmm_that_is_there(bench: Bench) -> None:
    bench.server.interrupt(7)
    bench.server.set_irq(True)
    vmm = bench.connect()
    bench.server.interrupt(65)
    bench.server.set_irq(True)  # it has no pin
    assert vmm.receive_bytes(1) == b"A"


def test_a_session_that_cannot_begin_is_over_and_the_next_one_begins(bench: Bench) -> None:
    begin, before = bench.server.open_session, n_fds()

    def fail(sock: socket.socket, nic: Any) -> Session:
        bench.server.open_session = begin  # type: ignore[method-assign]
        raise ZeroDivisionError

    bench.server.open_session = fail  # type: ignore[method-assign]
    with bench.connect() as vmm:
        assert vmm.is_refused()
    assert n_fds() == before
    assert "nic0: its session can't begin" in bench.caplog.text
    assert bench.works()


def test_a_client_learns_from_served_how_soon_to_try_again(bench: Bench, tmp_path: Path) -> None:
    path = str(tmp_path / "vmm.sock")
    client = Third(SocketOptions(path=path, mode="client", reconnect=0.001), bench.loop)
    delays = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(5)
        client.serve(bench.nic)
        assert client.vmm_socket is not None
        for data in (b"a", b"a", b"s"):
            bench.loop.dispatch(0.01)
            with SocketVmm(listener.accept()[0], bench.loop.dispatch) as vmm:
                bench.tell(vmm, data)
            bench.turn()
            delays.append(client.vmm_socket.delay_s)
        client.close()
    assert delays == [0.002, 0.004, 0.002]


def test_a_client_without_descriptors_tries_again_when_there_are_some(
    bench: Bench, tmp_path: Path
) -> None:
    path = str(tmp_path / "vmm.sock")
    client = Third(SocketOptions(path=path, mode="client", reconnect=0.001), bench.loop)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(5)
        with no_descriptors():
            client.serve(bench.nic)
            bench.loop.dispatch(0.01)
            bench.loop.dispatch(0.01)
        assert "Too many open files; trying again" in bench.caplog.text
        bench.loop.dispatch(0.1)
        listener.accept()[0].close()
        bench.turn()
        client.close()


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path("/dev/null").open() as highest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest.fileno(), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_to_close_is_to_end_the_session_and_to_remove_the_socket(bench: Bench) -> None:
    vmm = bench.connect()
    for _ in range(2):
        bench.server.close()
    assert vmm.is_refused()
    assert bench.ended(logging.INFO) == "the NIC is closed"
    assert bench.done == ["reset session", "let go"]
    assert not Path(bench.path).exists()
