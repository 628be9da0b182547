"""Kicks from the driver, interrupts to it, and their descriptors."""

from __future__ import annotations

import os
import select

import pytest
from vnic_vhost_user.messages import Request
from vnic_vhost_user.payloads import VringDescriptor


def test_a_kick_is_heard_once_and_does_not_keep_the_loop_busy(bench) -> None:
    bench.serve()
    vmm = bench.running()
    bench.turn()
    bench.face.kicks.clear()
    for _ in range(3):
        vmm.kick(0)
    bench.turn(5)
    assert bench.face.kicks == [0]


def test_a_queue_without_a_kick_descriptor_is_polled(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.send_fd(Request.SET_VRING_KICK, 1, None)
    bench.face.kicks.clear()
    bench.until(lambda: len(bench.face.kicks) >= 3)
    vmm.stop_queue(1)
    bench.turn()
    bench.face.kicks.clear()
    bench.loop.dispatch(0.01)
    assert bench.face.kicks == []


def test_a_kick_after_the_stop_is_not_heard(bench) -> None:  # B7
    bench.serve()
    vmm = bench.running()
    vmm.stop_queue(1)
    bench.face.kicks.clear()
    vmm.kick(1)
    bench.turn(3)
    assert bench.face.kicks == []


def test_an_interrupt_raised_before_the_call_descriptor_came_is_not_lost(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.send_fd(Request.SET_VRING_CALL, 0, None)
    bench.face.interrupts[0]()
    assert vmm.interrupts(0) in (0, 1)
    vmm.send_fd(Request.SET_VRING_CALL, 0, vmm.queues[0].call_fd)
    assert vmm.interrupts(0) == 1


def test_a_full_or_closed_call_descriptor_raises_nothing(bench, lines) -> None:
    bench.serve()
    vmm = bench.running()
    os.eventfd_write(vmm.queues[0].call_fd, 2**64 - 2 - vmm.interrupts(0))
    bench.face.interrupts[0]()
    reader, writer = os.pipe()
    vmm.send_fd(Request.SET_VRING_CALL, 1, writer)
    os.close(writer)
    os.close(reader)
    bench.face.interrupts[1]()
    bench.face.interrupts[1]()
    assert [line for line in lines() if "call descriptor" in line] == [
        "a call descriptor can't be written to any more: Broken pipe"
    ]


def test_a_kick_pipe_whose_other_end_is_gone_does_not_keep_the_loop_busy(bench) -> None:
    bench.serve()
    vmm = bench.running()
    reader, writer = os.pipe()
    vmm.send_fd(Request.SET_VRING_KICK, 1, reader)
    os.close(reader)
    bench.face.kicks.clear()
    os.write(writer, b"12345678")
    bench.turn()
    assert bench.face.kicks == [1]
    os.close(writer)
    bench.turn(3)
    assert bench.face.kicks == [1]
    assert select.select([bench.loop.fileno()], [], [], 0) == ([], [], [])  # it sleeps


@pytest.mark.parametrize(
    "request_", [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]
)
def test_a_descriptor_that_could_block_the_process_is_refused(  # D11
    bench, lines, n_fds, request_, tmp_path
) -> None:
    bench.serve()
    before = n_fds()
    vmm = bench.running()
    with (tmp_path / "file").open("wb") as file:
        vmm.send(request_, VringDescriptor(index=0), [file.fileno()])
        assert vmm.is_refused()
    assert "an eventfd or a pipe is needed" in lines()[-1]
    vmm.close()
    assert n_fds() == before


def test_a_host_interrupts_by_queue(bench) -> None:
    server = bench.serve()
    server.interrupt(0)  # nobody is there
    vmm = bench.running()
    vmm.interrupts(1)
    server.interrupt(1)
    server.set_irq(True)
    assert vmm.interrupts(1) == 1
    ran = []
    server.schedule(lambda: ran.append(1))
    bench.turn()
    assert ran == [1]
