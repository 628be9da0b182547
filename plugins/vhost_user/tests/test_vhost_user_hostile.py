"""What a hostile VMM sends, and does not read."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress

import attrs
import pytest
from vnic.errors import PeerError
from vnic.session import REPLIES_MAX
from vnic.testing.vmm import DisconnectedError
from vnic_vhost_user.messages import FORMS, NO_FLAGS, Header, HeaderFlags, Request, encode_message
from vnic_vhost_user.payloads import U64, VringDescriptor, VringState
from vnic_vhost_user.testing import Vmm, ring_address


@pytest.mark.parametrize("request_", FORMS, ids=lambda r: Request(r).name)
def test_descriptors_that_come_along_are_closed_on_every_message(  # D1
    bench, caplog, n_fds, request_
) -> None:
    bench.serve(config="on")
    form = FORMS[request_]
    null = os.open("/dev/null", os.O_RDONLY)
    before = n_fds()
    for n in (0, 1, 2, 7, 8, 9, 252, 253):
        vmm = bench.connect()
        vmm.negotiate()
        payload = bytes(form.payload.SIZES[0])
        vmm.send(request_, payload, [null] * n, HeaderFlags.NEED_REPLY)
        bench.turn(3)
        vmm.close()
        bench.turn(2)
        assert n_fds() == before, f"{n} descriptors"
    os.close(null)


def test_descriptors_that_do_not_fit_end_the_session(
    bench, lines, n_fds, monkeypatch
) -> None:  # D1
    monkeypatch.setattr("vnic.session.ANCILLARY", socket.CMSG_SPACE(4 * 4))
    bench.serve()
    before = n_fds()
    vmm = bench.connect()
    null = os.open("/dev/null", os.O_RDONLY)
    vmm.send(Request.SET_OWNER, b"", [null] * 9)
    assert vmm.is_refused()
    (line,) = lines()
    assert line == (
        "nic0: session ended: descriptors were lost on the way, after 4 of them: this process "
        "may have no room for more (ulimit -n)"
    )
    vmm.close()
    os.close(null)
    assert n_fds() == before


def test_descriptors_keep_to_their_message_when_messages_arrive_together(bench) -> None:
    bench.serve()
    vmm = bench.running()
    call, err = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    messages = [
        (Request.SET_STATUS, U64(1), []),
        (Request.SET_VRING_CALL, VringDescriptor(index=0), [call]),
        (Request.SET_STATUS, U64(3), []),
        (Request.SET_VRING_ERR, VringDescriptor(index=0), [err]),
    ]
    for request, payload, fds in messages:
        vmm.send(request, payload, fds)
    assert vmm.ask_u64(Request.GET_STATUS) == 3
    bench.face.interrupts[0]()
    bench.servers[0].failed("test")
    assert os.eventfd_read(call) == 2  # one because it came late
    assert os.eventfd_read(err) == 1
    os.close(call)
    os.close(err)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Header.LAYOUT.pack(99, 1, 0), "request 99: is not served"),
        (Header.LAYOUT.pack(1, 2, 0), "GET_FEATURES: flags are 0x2; this is version 1"),
        (Header.LAYOUT.pack(5, 1, 1 << 30), "SET_MEM_TABLE: payload is 1073741824 bytes"),
        (Header.LAYOUT.pack(6, 1, 16), "SET_LOG_BASE: is not served"),
        (encode_message(8, VringState(index=0x10000, num=64), NO_FLAGS), "queue 0x10000"),
        (encode_message(2, U64(1 << 63), NO_FLAGS), "the driver takes bit 63, which is"),
    ],
)
def test_what_is_wrong_ends_the_session_with_one_line_and_the_next_one_works(
    bench, lines, n_fds, data, says
) -> None:
    bench.serve()
    before = n_fds()
    vmm = bench.connect()
    vmm.send_bytes(data)
    assert vmm.is_refused()
    vmm.close()
    assert len(lines()) == 1
    assert lines()[0].startswith(f"nic0: session ended: {says}") or says in lines()[0]
    assert n_fds() == before
    bench.running()
    assert sorted(bench.face.queues) == [0, 1]


def test_requests_of_features_not_offered_are_refused_with_their_descriptors(  # D2, D3, D5
    bench, n_fds
) -> None:
    bench.serve()
    before = n_fds()
    for request, size in [
        (Request.SET_LOG_BASE, 16),
        (Request.SET_LOG_FD, 0),
        (Request.GET_INFLIGHT_FD, 24),
        (Request.SET_INFLIGHT_FD, 24),
        (Request.SET_BACKEND_REQ_FD, 0),
        (Request.SET_DEVICE_STATE_FD, 8),
    ]:
        vmm = bench.connect()
        fd = os.memfd_create("log")
        vmm.send(request, b"\xff" * size, [fd])
        assert vmm.is_refused()
        os.close(fd)
        vmm.close()
    assert n_fds() == before


def test_ten_thousand_repeats_leave_nothing_behind(bench, n_fds, resident_kib) -> None:  # D2
    bench.serve()
    vmm = bench.running()
    vmm.stop_queue(0)
    vmm.send_fd(Request.SET_VRING_CALL, 0, vmm.queues[0].call_fd)
    before = n_fds(), resident_kib()
    fd = os.eventfd(0)
    for n in range(2_500):
        vmm.send(Request.SET_VRING_NUM, VringState(index=0, num=1 << n % 15))
        vmm.send(Request.SET_VRING_CALL, VringDescriptor(index=0), [fd])
        vmm.send(Request.SET_VRING_ERR, VringDescriptor(index=0), [fd])
        vmm.send(Request.SET_VRING_ADDR, ring_address(0, vmm.queues[0].addresses))
        bench.turn()
    os.close(fd)
    vmm.ask(Request.GET_FEATURES)
    assert n_fds() == before[0]
    assert resident_kib() - before[1] < 4096


def test_queues_restarted_again_and_again_keep_nothing_stale(bench, n_fds) -> None:  # D11
    bench.serve()
    vmm = bench.running()
    before = n_fds()
    for n in range(50):
        for index in (0, 1):
            addresses = vmm.queues[index].addresses
            assert vmm.stop_queue(index) == bench.face.positions[index]
            bench.face.kicks.clear()
            vmm.start_queue(index, addresses=attrs.evolve(addresses, base=n))
            assert bench.face.queues[index].base == n
            vmm.interrupts(index)
            bench.face.interrupts[index]()
            assert vmm.interrupts(index) == 1
    assert n_fds() == before


def test_a_vmm_that_never_reads_is_dropped(bench, lines) -> None:
    bench.serve()
    vmm = bench.connect()

    def ask_and_never_read() -> None:
        while True:
            with suppress(BlockingIOError):
                vmm.send(Request.GET_FEATURES)
            bench.turn()

    with pytest.raises(DisconnectedError):
        ask_and_never_read()
    assert f"the VMM leaves {REPLIES_MAX + 1} replies unread" in lines()[0]


def test_a_vmm_that_reads_late_gets_every_reply(bench) -> None:
    bench.serve()
    vmm = bench.connect()
    for _ in range(500):
        vmm.send(Request.GET_QUEUE_NUM)
        bench.turn()
    for _ in range(500):
        header, _ = vmm.receive()
        assert header.request == Request.GET_QUEUE_NUM


def test_no_mutation_of_a_real_session_hurts_more_than_that_session(  # D1, D8, D9
    bench, caplog, n_fds
) -> None:
    """Each message of a start is sent with bits flipped, bytes cut or added, and descriptors."""
    bench.serve(config="on")
    null = os.open("/dev/null", os.O_RDONLY)
    before = n_fds()
    chance = random.Random(1)
    for _ in range(300):
        vmm = bench.connect()
        spoil = chance.randrange(16)

        def send_bytes(data, fds=(), vmm=vmm, spoil=spoil):
            if chance.randrange(16) == spoil:
                data = bytearray(data)
                for _ in range(chance.randrange(1, 4)):
                    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                data = data[: chance.randrange(1, 50)] + bytes(chance.randrange(4))
                fds = [*fds, *[null] * chance.choice([0, 0, 1, 9])]
            Vmm.send_bytes(vmm, bytes(data), fds)

        vmm.send_bytes = send_bytes
        with suppress(DisconnectedError, TimeoutError, AssertionError, PeerError):
            vmm.negotiate()
            vmm.share_memory(1 << 20)
            vmm.start_queue(0)
            vmm.start_queue(1)
            vmm.stop_queue(0)
        vmm.close()
        bench.turn(4)
        assert n_fds() == before
    os.close(null)
    assert not any(record.exc_info for record in caplog.records)
    bench.running()
