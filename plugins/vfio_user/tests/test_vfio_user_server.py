"""VMMs that come, go and return."""

from __future__ import annotations

import pytest
from vnic.errors import ConfigError
from vnic.testing.vmm import DisconnectedError
from vnic_vfio_user.messages import Command
from vnic_vfio_user.payloads import RegionAccess

COUNT = 0


def test_sessions_come_and_go_and_leave_nothing_behind(bench, n_fds) -> None:
    server = bench.serve()
    before = n_fds()
    for i in range(30):
        vmm = bench.running()
        vmm.use_vectors(5)
        if i % 3 == 0:
            vmm.send_bytes(b"\1\0\x0a\0\x99")  # in the middle of a message
        if i % 3 == 1:
            vmm.send(Command.REGION_READ, RegionAccess(COUNT, 0, 4))  # an answer left unread
        vmm.close()
        bench.turn(3)
        assert n_fds() == before
        assert bench.nic.resets[-1] == "session"
        assert server.memory.regions == ()
        assert not bench.device.pci.host_keeps_vectors


def test_a_second_vmm_is_refused_and_the_first_served(bench, lines) -> None:
    bench.serve()
    vmm = bench.running()
    for _ in range(3):
        assert bench.connect().is_refused()
    assert ["a second VMM" in line for line in lines()].count(True) == 1
    assert vmm.read(0, COUNT, 4) == 1
    vmm.close()
    bench.running()
    assert bench.connect().is_refused()
    assert "a second VMM" in lines()[-1]


def test_a_vmm_that_was_started_again_is_not_refused_for_its_predecessors_sake(bench) -> None:
    bench.serve()
    first = bench.running()
    first.send(Command.REGION_READ, RegionAccess(COUNT, 0, 4))
    first.close()
    second = bench.connect()  # before the loop has seen the end of the first
    bench.servers[0].vmm_socket._accept(0)
    second.start(1 << 20)
    assert second.read(0, COUNT, 4) == 1


def test_a_server_that_is_closed_ends_its_session(bench, n_fds) -> None:
    before = n_fds()
    server = bench.serve()
    vmm = bench.running()
    server.close()
    server.close()
    with pytest.raises(DisconnectedError):
        vmm.read(0, COUNT, 4)
    vmm.close()
    assert not bench.path.exists()
    assert n_fds() == before
    server.interrupt(0)
    server.set_irq(True)


def test_a_frontend_without_a_pci_face_is_refused_in_words(bench) -> None:
    server = bench.serve()
    server.close()
    bench.nic.pci = None
    with pytest.raises(ConfigError, match="speaks PCI only"):
        server.serve(bench.nic)
