from __future__ import annotations

import os

import pytest
from vnic_vfio_user.device_payloads import Irq, IrqSet, IrqSetFlags
from vnic_vfio_user.messages import Command
from vnic_vfio_user.testing import (
    DISABLE,
    EVENTFD,
    MASK,
    UNMASK,
    RefusedError,
)

COUNT, INTERRUPT, RAISE, SIGNAL, COPY, COPIED, WORK = 0, 4, 8, 12, 16, 20, 24


def test_the_pin_is_an_edge_until_the_vmm_unmasks_it(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.write(0, RAISE, 4, 1)
    vmm.read(0, COUNT, 4)
    assert vmm.pin() == 1
    vmm.write(0, RAISE, 4, 0)
    vmm.write(0, RAISE, 4, 1)
    vmm.read(0, COUNT, 4)
    assert vmm.pin() == 0, "masked since the first"
    vmm.unmask()
    assert vmm.pin() == 1, "still asked for: once more"
    assert vmm.read(0, INTERRUPT, 4) == 0, "masked, so the pin is down"
    vmm.unmask()
    assert vmm.pin() == 0, "answered by the guest"


def test_a_pin_that_is_up_before_its_descriptor_comes_is_not_lost(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.set_irqs(DISABLE, Irq.INTX)
    vmm.write(0, RAISE, 4, 1)
    vmm.read(0, COUNT, 4)
    assert vmm.pin() == 0
    vmm.take_irqs(Irq.INTX)
    assert vmm.pin() == 1


def test_a_masked_pin_stays_down_until_it_is_unmasked(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.set_irqs(MASK, Irq.INTX, 0, 1)
    vmm.write(0, RAISE, 4, 1)
    vmm.read(0, COUNT, 4)
    assert vmm.pin() == 0
    vmm.unmask()
    assert vmm.pin() == 1


def test_a_pin_that_the_driver_disables_stays_down(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.write_config(4, bytes.fromhex("0704"))
    vmm.write(0, RAISE, 4, 1)
    assert vmm.read_config(6, 2) == bytes.fromhex("1800"), "it asks all the same"
    assert vmm.pin() == 0
    vmm.write_config(4, bytes.fromhex("0700"))
    assert vmm.pin() == 1


def test_kvm_unmasks_the_pin_through_a_descriptor(bench, n_fds) -> None:
    bench.serve()
    vmm = bench.running()
    before = n_fds()
    resample = os.eventfd(0, os.EFD_NONBLOCK)
    flags = IrqSetFlags.DATA_EVENTFD | IrqSetFlags.ACTION_UNMASK
    vmm.set_irqs(flags, Irq.INTX, 0, 1, [resample])
    vmm.write(0, RAISE, 4, 1)
    vmm.read(0, COUNT, 4)
    assert vmm.pin() == 1
    os.eventfd_write(resample, 1)
    bench.turn(2)
    assert vmm.pin() == 1
    vmm.set_irqs(DISABLE, Irq.INTX)
    os.close(resample)
    vmm.take_irqs(Irq.INTX)
    assert n_fds() == before


def test_vectors_interrupt_each_through_its_own_descriptor(bench) -> None:
    bench.serve()
    vmm = bench.running()
    assert vmm.read_config(0x48, 4) == bytes.fromhex("11001300")
    vmm.use_vectors(20)
    for vector in (0, 7, 19, 19, 20, 4000):
        vmm.write(0, SIGNAL, 4, vector)
    vmm.read(0, COUNT, 4)
    assert [vmm.interrupts(Irq.MSIX, i) for i in range(20)] == [1, *[0] * 6, 1, *[0] * 11, 2]
    vmm.write(0, RAISE, 4, 1)
    vmm.read(0, COUNT, 4)
    assert vmm.pin() == 0, "the pin is silent while messages are enabled"


def test_a_vector_that_is_signalled_while_its_descriptor_is_away_is_not_lost(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.use_vectors(2)
    vmm.set_irqs(DISABLE, Irq.MSIX)
    vmm.write(0, SIGNAL, 4, 1)
    vmm.take_irqs(Irq.MSIX, 0, 3)
    assert [vmm.interrupts(Irq.MSIX, i) for i in range(3)] == [0, 1, 0]
    vmm.take_irqs(Irq.MSIX, 0, 3)
    assert vmm.interrupts(Irq.MSIX, 1) == 0


def test_the_vmm_can_try_an_interrupt(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.use_vectors(3)
    vmm.set_irqs(DISABLE, Irq.MSIX, 2, 1)
    assert vmm.interrupts(Irq.MSIX, 2) == 1
    flags = IrqSetFlags.DATA_BOOL | IrqSetFlags.ACTION_TRIGGER
    payload = IrqSet(flags=flags, index=Irq.MSIX, count=3, data=b"\1\0\1")
    vmm.ask(Command.DEVICE_SET_IRQS, payload)
    assert [vmm.interrupts(Irq.MSIX, i) for i in range(3)] == [1, 0, 1]


def test_an_error_interrupt_is_taken_and_never_raised(bench, n_fds, lines) -> None:
    server = bench.serve()
    vmm = bench.running()
    vmm.take_irqs(Irq.ERR)
    server.failed("queue 1: a chain loops")
    assert vmm.interrupts(Irq.ERR) == 0
    assert lines() == ["nic0: stopped until the driver resets it: queue 1: a chain loops"]
    assert vmm.read(0, COUNT, 4) == 1


def test_a_descriptor_that_could_block_the_process_is_refused(bench, n_fds, tmp_path) -> None:
    bench.serve()
    before = n_fds()
    for index, n in ((Irq.INTX, 1), (Irq.MSIX, 5)):
        vmm = bench.running()
        with (tmp_path / "file").open("wb") as file:
            payload = IrqSet(flags=int(EVENTFD), index=index, count=n)
            vmm.send(Command.DEVICE_SET_IRQS, payload, [file.fileno()] * n)
            assert vmm.is_refused()
        vmm.close()
        assert n_fds() == before


def test_interrupts_that_do_not_exist_are_refused_and_their_descriptors_closed(  # E3
    bench, n_fds
) -> None:
    bench.serve()
    vmm = bench.running()
    before = n_fds()
    fd = os.eventfd(0)
    for index, start in ((Irq.INTX, 1), (Irq.MSIX, 20), (Irq.MSIX, (1 << 32) - 1), (9, 0)):
        with pytest.raises(RefusedError):
            vmm.set_irqs(EVENTFD, index, start, 1, [fd])
    with pytest.raises(RefusedError):
        vmm.set_irqs(UNMASK, Irq.MSIX, 0, 1)
    os.close(fd)
    assert n_fds() == before
