"""What a VMM does with a device, from its first message to a reset."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from vnic.features import Features
from vnic_vhost_user.messages import ProtocolFeatures, Request
from vnic_vhost_user.payloads import U64, ConfigSpace


def test_a_vmm_starts_runs_stops_and_starts_again(bench) -> None:
    bench.serve()
    vmm = bench.connect()
    assert vmm.negotiate() == int(bench.face.get_features())
    assert bench.face.features & Features.VERSION_1
    vmm.share_memory(1 << 20)
    for base in (0, 17, 0xFFFF):
        for index in (0, 1):
            vmm.start_queue(index, base=base)
        assert {i: q.base for i, q in bench.face.queues.items()} == {0: base, 1: base}
        assert bench.face.enabled == {0: True, 1: True}
        bench.face.kicks.clear()
        vmm.kick(1)
        bench.turn()
        assert bench.face.kicks == [1]
        bench.face.interrupts[0]()
        assert vmm.interrupts(0) >= 1
        bench.face.positions[1] = 99
        assert vmm.stop_queue(0) == base
        assert vmm.stop_queue(1) == 99
        assert not bench.face.queues


def test_the_device_reads_what_the_guest_wrote(bench) -> None:
    server = bench.serve()
    vmm = bench.running()
    gpa = vmm.alloc(5)
    vmm.memory.view(gpa, 5)[:] = b"hello"
    assert bytes(server.memory.view(gpa, 5)) == b"hello"


def test_queues_start_where_buffers_may_already_be(bench) -> None:
    bench.serve()
    bench.running()
    assert set(bench.face.kicks) == {0, 1}


def test_a_broken_device_is_told_to_the_vmm(bench, lines) -> None:
    server = bench.serve()
    vmm = bench.running()
    vmm.send(Request.SET_STATUS, U64(0xF))
    vmm.ask_u64(Request.GET_STATUS)
    server.failed("queue 1: a chain loops")
    assert (vmm.errors(0), vmm.errors(1)) == (1, 1)
    assert vmm.ask_u64(Request.GET_STATUS) == 0x4F
    assert lines() == ["nic0: stopped until the driver resets it: queue 1: a chain loops"]


@pytest.mark.parametrize("request_", [Request.RESET_DEVICE, Request.SET_STATUS])
def test_the_guests_reset_reaches_the_nic_and_the_queues_start_again(bench, request_) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.tell(request_, U64(0) if request_ is Request.SET_STATUS else b"")
    assert bench.nic.resets == ["device"]
    assert vmm.interrupts(0) >= 0
    vmm.tell(Request.SET_FEATURES, U64(int(bench.face.get_features())))
    vmm.start_queue(0)
    assert list(bench.face.queues) == [0]


def test_configuration_space_is_served_to_who_asked_for_it(bench) -> None:
    bench.serve(config="on")
    vmm = bench.connect()
    vmm.negotiate()
    assert ProtocolFeatures.CONFIG in vmm.protocol_features
    reply = ConfigSpace.decode(vmm.ask(Request.GET_CONFIG, ConfigSpace(offset=0, data=bytes(6))))
    assert reply.data == bytes(range(6))
    vmm.tell(Request.SET_CONFIG, ConfigSpace(offset=2, data=b"ab"))
    assert bench.face.written == [(2, b"ab")]


def test_an_mtu_that_differs_from_the_option_is_told_to_the_operator(bench, lines) -> None:
    bench.nic.options = SimpleNamespace(mtu=9000)
    bench.serve()
    vmm = bench.running()
    vmm.tell(Request.NET_SET_MTU, U64(9000))
    assert lines() == []
    vmm.tell(Request.NET_SET_MTU, U64(1500))
    (line,) = lines()
    assert line == (
        "nic0: the VMM gives the guest an MTU of 1500, mtu=9000 was asked for; give both the "
        "same: host_mtu=9000 on the VMM's side"
    )
    assert vmm.tell(Request.NET_SET_MTU, U64(10)) == 1
