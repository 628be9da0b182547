"""VMMs that come, go, die and return; the socket they come to; options."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest
from vnic.errors import BackendError, ConfigError
from vnic_vhost_user.messages import Request
from vnic_vhost_user.testing import Vmm

NOBODY = 65534
DIES_AFTER = list(range(13))  # messages until queue 0 runs


@pytest.mark.parametrize("n", DIES_AFTER)
@pytest.mark.parametrize("cut", [0, 5, 12])
def test_a_vmm_that_dies_at_any_message_leaves_a_server_that_listens(  # D9
    bench, n_fds, n, cut
) -> None:
    bench.serve()
    before = n_fds()
    vmm = bench.connect()

    sent = 0

    class DiedError(Exception):
        pass

    original = Vmm.send_bytes

    def send_bytes(self, data, fds=()):
        nonlocal sent
        if sent == n:
            if cut:
                original(self, data[:cut], fds)
            raise DiedError
        sent += 1
        original(self, data, fds)

    def start() -> None:
        vmm.negotiate()
        vmm.share_memory(1 << 20)
        vmm.start_queue(0)

    vmm.send_bytes = send_bytes.__get__(vmm)
    with pytest.raises(DiedError):
        start()
    vmm.close()
    bench.turn(4)
    assert n_fds() == before
    assert bench.nic.resets == ["session"]
    bench.running()
    assert sorted(bench.face.queues) == [0, 1]


def test_a_vmm_that_leaves_without_reading_its_answer_does_no_harm(bench, lines) -> None:  # D9
    bench.serve()
    for _ in range(10):
        vmm = bench.connect()
        vmm.send(Request.GET_FEATURES)
        vmm.close()
    bench.turn(20)
    assert lines(logging.ERROR) == []
    bench.running()


def test_the_server_outlives_a_hundred_vmms(bench, n_fds) -> None:  # D12
    server = bench.serve()
    before = n_fds()
    for _ in range(100):
        vmm = bench.running()
        vmm.close()
        bench.turn(2)
        assert not server.memory.regions
    assert bench.nic.resets == ["session"] * 100
    assert n_fds() == before


def test_a_second_vmm_is_refused_and_the_first_goes_on(bench, lines) -> None:
    bench.serve()
    first = bench.running()
    second = bench.connect()
    assert second.is_refused()
    (line,) = (line for line in lines() if "refused" in line)
    assert line.startswith(f"nic0: a second VMM (process {os.getpid()}) is refused")
    first.ask(Request.GET_FEATURES)


def test_a_vmm_that_was_started_again_is_not_refused_for_its_predecessors_sake(bench) -> None:
    bench.serve()
    first = bench.running()
    first.send(Request.GET_FEATURES)
    first.close()
    second = bench.connect()  # before the loop has seen the end of the first
    bench.servers[0].vmm_socket._accept(0)
    second.negotiate()
    assert bench.nic.resets == ["session"]


def test_closing_the_server_ends_the_session_and_removes_the_socket(bench, n_fds) -> None:
    before = n_fds()
    server = bench.serve()
    vmm = bench.running()
    server.close()
    server.close()
    assert vmm.is_refused()
    assert bench.nic.resets == ["session"]
    assert not bench.path.exists()
    vmm.close()
    assert n_fds() == before


def test_a_socket_left_by_a_killed_process_is_replaced(bench) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(bench.path))
    left.close()
    bench.serve()
    bench.running()


def test_a_path_that_is_no_socket_is_left_alone(bench) -> None:
    bench.path.write_text("precious")
    with pytest.raises(ConfigError, match="exists and is not a socket; choose another path"):
        bench.serve()
    assert bench.path.read_text() == "precious"


def test_a_socket_that_somebody_listens_on_is_left_alone(bench, n_fds) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(bench.path))
        other.listen(0)
        before = n_fds()
        for _ in range(3):  # until its backlog is full too
            with pytest.raises(BackendError, match="another process listens on it; stop that one"):
                bench.serve()
        assert n_fds() == before
    assert bench.path.exists()


def test_a_folder_that_does_not_exist_is_named_with_the_remedy(bench) -> None:
    bench.path = bench.path.parent / "none" / "x.sock"
    with pytest.raises(ConfigError, match=r"there is no folder .*/none; create it: mkdir -p "):
        bench.serve()


def test_a_path_that_is_too_long_for_a_socket_is_refused(bench) -> None:
    bench.path = bench.path.parent / ("x" * 108)
    with pytest.raises(ConfigError, match="at most 107 bytes; choose a shorter one"):
        bench.serve()


@contextmanager
def not_root() -> Iterator[None]:
    """Be a user who may not write everywhere."""
    user = os.geteuid()
    os.seteuid(user or NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_folder_that_may_not_be_written_to_is_named(bench) -> None:
    bench.path.parent.chmod(0o500)
    with not_root(), pytest.raises(BackendError, match="choose a folder that it may write to"):
        bench.serve()


def test_a_frontend_that_is_no_virtio_device_is_refused_in_words(bench) -> None:
    bench.nic.vhost = None
    with pytest.raises(ConfigError, match="can't be served over vhost-user, which speaks virtio"):
        bench.serve()


MAC = bytes.fromhex("525400010203")


@attrs.frozen(kw_only=True)
class NetOptions:
    mac: bytes | None = None
    mtu: int = 1500


@pytest.mark.parametrize(
    ("options", "what", "theirs"),
    [
        ({}, None, None),
        ({"mac": MAC}, "MAC", "mac=52:54:00:01:02:03"),
        ({"mtu": 9000}, "MTU", "host_mtu=9000"),
        ({"mac": MAC, "mtu": 9000}, "MAC and MTU", "mac=52:54:00:01:02:03,host_mtu=9000"),
    ],
)
def test_options_that_only_the_vmm_can_bring_to_the_guest_are_warned_of(
    bench, lines, options, what, theirs
) -> None:
    bench.nic.options = NetOptions(**options)
    bench.serve()
    says = (
        f"nic0: over vhost-user the VMM tells the guest its {what}; give the VMM the same: "
        f"-device virtio-net-pci,{theirs},netdev=..."
    )
    assert lines() == ([says] if what else [])


def test_no_warning_where_the_vmm_reads_them_from_the_configuration_space(bench, lines) -> None:
    bench.nic.options = NetOptions(mtu=9000)
    bench.serve(config=True)
    assert lines() == []
