"""Interrupts by message and pin, and frames, by the driver's way through PCI."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import vnic
from kit.bench import FRAME, Bench
from kit.wire import running, settle
from vnic.features import Features
from vnic.hookspecs import ResetKind
from vnic.loop import Loop
from vnic.nic import Nic
from vnic.testing import DriverError, SoftwareHost
from vnic_virtio_net.testing import Driver, VirtioPciDevice
from vnic_virtio_net.testing.hostile import RX, TX
from vnic_virtio_net.testing.pci import COMMON_CFG, ISR_CONFIG, ISR_QUEUE, NO_VECTOR

# ---- interrupts ----------------------------------------------------------------------------------


def test_each_queue_has_a_message_of_its_own(bench: Bench) -> None:
    bench.start()
    bench.send()
    assert bench.host.interrupts == {2: 1}
    bench.post()
    bench.wire.deliver(FRAME)
    bench.settle()
    assert bench.host.interrupts == {1: 1, 2: 1}
    assert bench.host.irq_edges == 0
    assert bench.device.read_isr() == 0


@pytest.mark.parametrize("vector", [3, 0x7FF, 0xFFFE])
def test_a_vector_that_there_is_not_becomes_none(bench: Bench, vector: int) -> None:
    bench.negotiate()
    bench.device.set("config_msix_vector", vector)
    assert bench.device.get("config_msix_vector") == NO_VECTOR
    for queue in (RX, TX):
        bench.device.set("queue_msix_vector", 1, queue)
        bench.device.set("queue_msix_vector", vector, queue)
        assert bench.device.get("queue_msix_vector", queue) == NO_VECTOR


def test_a_queue_without_a_vector_does_not_interrupt(bench: Bench) -> None:
    bench.start()
    bench.device.set("queue_msix_vector", NO_VECTOR, TX)
    bench.send()
    assert len(bench.wire.sent) == 1
    assert bench.host.interrupts == {}
    assert bench.host.irq_edges == 0
    assert bench.device.read_isr() == 0


def test_the_pin_stays_up_until_the_isr_is_read(bench: Bench) -> None:
    bench.start(messages=False)
    bench.send()
    bench.send()
    assert bench.host.irq_level
    assert bench.host.irq_edges == 1
    assert bench.device.read_isr() == ISR_QUEUE
    assert not bench.host.irq_level
    assert bench.device.read_isr() == 0
    bench.send()
    assert bench.host.irq_edges == 2
    bench.device.set("device_status", 0)
    assert not bench.host.irq_level
    assert bench.device.read_isr() == 0


@pytest.mark.parametrize("messages", [True, False])
def test_the_carrier_is_seen_by_a_configuration_interrupt(bench: Bench, messages: bool) -> None:
    bench.start(Features.VERSION_1 | Features.STATUS, messages=messages)
    for n, up in enumerate((False, True), start=1):
        generation = bench.device.get("config_generation")
        if up:
            bench.wire.link.up()
        else:
            bench.wire.link.down("a test")
        bench.settle()
        assert bench.device.get("config_generation") != generation
        assert bench.device.read_config(6, 2) == bytes([up, 0])
        if messages:
            assert bench.host.interrupts == {0: n}
        else:
            assert bench.host.irq_level
        assert bench.device.read_isr() == ISR_CONFIG
    assert bench.runs


def test_who_did_not_ask_for_the_carrier_is_not_told(bench: Bench) -> None:
    bench.start()
    bench.wire.link.down("a test")
    bench.settle()
    assert bench.host.interrupts == {}
    bench.wire.link.up()
    bench.settle()
    assert bench.host.interrupts == {}
    assert bench.runs


# ---- with a driver -------------------------------------------------------------------------------


@attrs.define
class Port:
    """A NIC on the switch, and its driver."""

    nic: Nic
    host: SoftwareHost

    def drive(self, *, messages: bool = True) -> Driver:
        return Driver(self.nic, self.host, face="pci", messages=messages)


@pytest.fixture
def ports() -> Iterator[tuple[Loop, Port, Port]]:
    with running() as loop:
        ports = []
        for name in "ab":
            host = SoftwareHost(loop, 16 << 20)
            ports.append(Port(vnic.open(f"virtio-net,vale0:{name},mtu=9000", host), host))
        yield loop, ports[0], ports[1]
        settle(loop)
        for port in ports:
            port.nic.close()
            assert port.host.failures == []


def frames(source: Driver, target: Driver, n: int, length: int = 64, start: int = 0) -> list[bytes]:
    head = target.mac + source.mac + b"\x08\x00"
    return [(head + i.to_bytes(4, "big")).ljust(length, b"x") for i in range(start, start + n)]


@pytest.mark.parametrize("messages", [True, False], ids=["MSI-X", "pin"])
def test_frames_cross_the_switch_both_ways(ports: tuple[Loop, Port, Port], messages: bool) -> None:
    loop, *ends = ports
    a, b = (end.drive(messages=messages) for end in ends)
    assert (a.mtu, a.mac) == (9000, ends[0].nic.frontend.mac)
    settle(loop)
    for source, target in ((a, b), (b, a)):
        source.send(frames(source, target, 1))  # the switch learns whom not to lose a frame for
        settle(loop)
        assert len(target.recv()) == 1
    for source, target in ((a, b), (b, a)):
        sent = frames(source, target, 200, 9014)
        got: list[bytes] = []
        at = 0
        for _ in range(200):
            at += source.send(sent[at : at + 50])
            settle(loop)
            got += [frame for frame, _ in target.recv()]
            if len(got) == 200:
                break
        assert got == sent
        assert target.interrupts > 0
    for end, driver in zip(ends, (a, b), strict=True):
        settle(loop)
        driver.check()
        if messages:
            assert {1} <= end.host.interrupts.keys() <= {1, 2}
            assert end.host.irq_edges == 0
        else:
            assert end.host.interrupts == {}
            assert end.host.irq_edges > 0
        driver.stop()


def test_a_device_is_reset_while_frames_flow_and_comes_back(
    ports: tuple[Loop, Port, Port],
) -> None:
    loop, left, right = ports
    a, b = left.drive(), right.drive()
    settle(loop)
    a.prepare_bulk(frames(a, b, 7))
    sent = 0
    for i in range(60):
        sent += a.send_bulk(100)
        loop.dispatch()
        b.recv_bulk(256)
        if i % 20 == 10:
            received = b.n_received
            a.send_bulk(50)
            b.stop()  # with the sender's frames in its ring
            settle(loop)
            assert received > 0
            assert b.recv() == []
            b = right.drive()
        elif i % 20 == 19:
            a.send_bulk(50)
            a.stop()
            settle(loop)
            a = left.drive()
            a.prepare_bulk(frames(a, b, 7))
    settle(loop)
    while b.recv_bulk(256):
        settle(loop)
    probe = frames(a, b, 3, start=1000)
    while a.n_outstanding:
        settle(loop)
    a = left.drive()
    a.send(probe)
    settle(loop)
    assert [frame for frame, _ in b.recv()] == probe


def test_the_host_resets_everything(ports: tuple[Loop, Port, Port]) -> None:
    loop, left, right = ports
    function = left.nic.pci
    assert function is not None
    at_power_on = function.read_config(0, 256)
    for kind in ResetKind:
        a, b = left.drive(), right.drive()
        device = VirtioPciDevice(function)
        device.set_config(device.window_at + 12, 4, 1)
        settle(loop)
        assert function.read_config(0, 256) != at_power_on
        left.nic.reset(kind)
        assert function.read_config(0, 256) == at_power_on
        assert function.read_bar(0, COMMON_CFG["device_status"][0], 1) == 0
        b.send(frames(b, a, 3))
        settle(loop)
        assert a.rx.used_idx_now == 0
        a = left.drive()
        b.send(frames(b, a, 3))
        settle(loop)
        assert len(a.recv()) == 3


def test_a_driver_says_what_it_cannot_do_and_what_the_device_cannot() -> None:
    with running() as loop:
        bench = Bench.on(loop)
        driver = Driver(bench.nic, bench.host, face="pci")
        settle(loop)
        driver.check()
        bench.host.memory.view(driver.tx.avail_gpa, 6).cast("H")[1] = 0x8000
        driver.transport.kick(TX)
        settle(loop)
        with pytest.raises(DriverError, match="needs a reset"):
            driver.check()
        with pytest.raises(DriverError, match="only by the vhost face"):
            driver.pause()
        driver.stop()
        with pytest.raises(DriverError, match="a new driver has to negotiate"):
            driver.resume()
        bench.nic.close()
