"""A server that connects to a VMM, again and again."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest
from vnic_vhost_user.testing import Vmm


@pytest.fixture
def listener(bench):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(bench.path))
        sock.listen(1)
        sock.setblocking(False)
        yield sock


def accepted(bench, listener) -> Vmm:
    """Wait for the client, as a VMM that listens."""
    found: list[socket.socket] = []

    def accept() -> bool:
        with suppress(BlockingIOError):
            found.append(listener.accept()[0])
        return bool(found)

    bench.until(accept)
    bench.vmms.append(Vmm(found[0], bench.turn))
    return bench.vmms[-1]


def test_a_client_connects_and_comes_back_after_each_loss(bench, listener, n_fds) -> None:
    bench.serve(mode="client", reconnect="0.001")
    before = n_fds()
    for n in range(5):
        vmm = accepted(bench, listener)
        vmm.negotiate()
        vmm.share_memory(1 << 20)
        vmm.start_queue(0)
        vmm.close()
        bench.until(lambda n=n: len(bench.nic.resets) == n + 1)
    assert n_fds() <= before


def test_a_client_tries_for_ever_and_less_and_less_often(bench, lines) -> None:
    server = bench.serve(mode="client", reconnect="0.001")
    delays = []
    for _ in range(8):
        delays.append(server.vmm_socket.delay_s)
        bench.until(lambda: server.vmm_socket.delay_s != delays[-1])
    assert delays == [0.002 * 2**n for n in range(8)]
    assert lines() == [
        f"nic0: no VMM at {bench.path}: No such file or directory; trying again until there is"
    ]
    server.vmm_socket.delay_s = 29.0
    server.vmm_socket._connect()
    assert server.vmm_socket.delay_s == 30.0


def test_a_client_waits_shortly_again_once_it_was_served(bench, listener) -> None:
    server = bench.serve(mode="client", reconnect="0.001")
    server.vmm_socket.delay_s = 8.0
    vmm = accepted(bench, listener)
    vmm.negotiate()
    vmm.share_memory(1 << 20)
    vmm.start_queue(0)
    vmm.close()
    bench.until(lambda: bench.nic.resets)
    assert server.vmm_socket.delay_s == 0.002


def test_a_client_waits_longer_for_a_vmm_that_breaks_off(bench, listener) -> None:
    server = bench.serve(mode="client", reconnect="0.5")
    accepted(bench, listener).close()
    bench.until(lambda: bench.nic.resets)
    assert server.vmm_socket.delay_s == 1.0


def test_a_client_that_is_closed_tries_no_more(bench, listener) -> None:
    server = bench.serve(mode="client", reconnect="0.001")
    vmm = accepted(bench, listener)
    server.close()
    assert vmm.is_refused()
    bench.loop.dispatch(0.02)
    with pytest.raises(BlockingIOError):
        listener.accept()
