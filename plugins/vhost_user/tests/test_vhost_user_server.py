from __future__ import annotations

import logging
import os
import random
import select
import socket
from contextlib import suppress
from types import SimpleNamespace

import attrs
import pytest
from vnic.errors import BackendError, ConfigError, PeerError
from vnic.features import Features
from vnic.session import REPLIES_MAX
from vnic_vhost_user.messages import (
    FORMS,
    NO_FLAGS,
    U64,
    ConfigSpace,
    Header,
    HeaderFlags,
    MemoryRegion,
    MemoryTable,
    ProtocolFeatures,
    Request,
    SingleRegion,
    VringDescriptor,
    VringState,
    encode_message,
)
from vnic_vhost_user.testing import GPA, USER, DisconnectedError, Vmm, ring_address


def lines(caplog, level: int = logging.WARNING) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= level]


# ---- a session -----------------------------------------------------------------------------------


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


def test_a_kick_is_heard_once_and_does_not_keep_the_loop_busy(bench) -> None:
    bench.serve()
    vmm = bench.running()
    bench.turn()
    bench.face.kicks.clear()
    for _ in range(3):
        vmm.kick(0)
    bench.turn(5)
    assert bench.face.kicks == [0]


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


def test_a_full_or_closed_call_descriptor_raises_nothing(bench, caplog) -> None:
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
    assert [line for line in lines(caplog) if "call descriptor" in line] == [
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
    bench, caplog, n_fds, request_, tmp_path
) -> None:
    bench.serve()
    before = n_fds()
    vmm = bench.running()
    with (tmp_path / "file").open("wb") as file:
        vmm.send(request_, VringDescriptor(index=0), [file.fileno()])
        assert vmm.is_refused()
    assert "an eventfd or a pipe is needed" in lines(caplog)[-1]
    vmm.close()
    assert n_fds() == before


def test_a_broken_device_is_told_to_the_vmm(bench, caplog) -> None:
    server = bench.serve()
    vmm = bench.running()
    vmm.send(Request.SET_STATUS, U64(0xF))
    vmm.ask_u64(Request.GET_STATUS)
    server.failed("queue 1: a chain loops")
    assert (vmm.errors(0), vmm.errors(1)) == (1, 1)
    assert vmm.ask_u64(Request.GET_STATUS) == 0x4F
    assert lines(caplog) == ["nic0: stopped until the driver resets it: queue 1: a chain loops"]


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


def test_configuration_space_is_served_to_who_asked_for_it(bench) -> None:
    bench.serve(config="on")
    vmm = bench.connect()
    vmm.negotiate()
    assert ProtocolFeatures.CONFIG in vmm.protocol_features
    reply = ConfigSpace.decode(vmm.ask(Request.GET_CONFIG, ConfigSpace(offset=0, data=bytes(6))))
    assert reply.data == bytes(range(6))
    vmm.tell(Request.SET_CONFIG, ConfigSpace(offset=2, data=b"ab"))
    assert bench.face.written == [(2, b"ab")]


# ---- memory while queues run ---------------------------------------------------------------------


@pytest.mark.parametrize("slots", [True, False])
def test_memory_is_changed_under_queues_that_run(bench, slots: bool) -> None:
    server = bench.serve()
    vmm = bench.connect()
    offered = ~ProtocolFeatures.CONFIGURE_MEM_SLOTS if not slots else None
    vmm.negotiate(protocol=offered)
    region = vmm.share_memory(1 << 20)
    vmm.start_queue(0)
    bench.face.positions[0] = 5
    more = os.memfd_create("more")
    os.ftruncate(more, 1 << 16)
    extra = MemoryRegion(guest_addr=0x1000, size=1 << 16, user_addr=0x1000)
    if slots:
        vmm.tell(Request.ADD_MEM_REG, SingleRegion(region=extra), [more])
        assert bench.face.queues[0].base == 0  # it was not disturbed
        vmm.tell(Request.REM_MEM_REG, SingleRegion(region=region))
        assert bench.face.queues == {}
        vmm.tell(Request.ADD_MEM_REG, SingleRegion(region=region), [vmm.memory_fd])
        bench.until(lambda: bench.face.queues)
    else:
        table = MemoryTable(regions=(extra, region))
        vmm.tell(Request.SET_MEM_TABLE, table, [more, vmm.memory_fd])
    os.close(more)
    assert [r.gpa for r in server.memory.regions] == [0x1000, GPA]
    assert bench.face.queues[0].base == 5
    assert bench.face.enabled[0]


def test_guest_memory_needs_no_descriptor_once_it_is_mapped(bench, n_fds) -> None:
    bench.serve()
    vmm = bench.connect()
    vmm.negotiate()
    vmm.share_memory(1 << 20)
    before = n_fds()
    for _ in range(50):
        region = MemoryRegion(guest_addr=GPA, size=1 << 20, user_addr=USER)
        vmm.tell(Request.SET_MEM_TABLE, MemoryTable(regions=(region,)), [vmm.memory_fd])
    assert n_fds() == before


@pytest.mark.parametrize(
    ("region", "says"),
    [
        (MemoryRegion(guest_addr=0, size=1 << 30, user_addr=0), "has 0x100000"),
        (MemoryRegion(guest_addr=0, size=4096, user_addr=0, mmap_offset=1 << 20), "has 0x100000"),
        (MemoryRegion(guest_addr=GPA + 4096, size=4096, user_addr=0), "overlaps"),
    ],
)
def test_memory_that_cannot_be_ends_the_session(bench, caplog, n_fds, region, says) -> None:  # D3
    bench.serve()
    before = n_fds()
    vmm = bench.connect()
    vmm.negotiate()
    vmm.share_memory(1 << 20)
    vmm.send(Request.ADD_MEM_REG, SingleRegion(region=region), [vmm.memory_fd])
    assert vmm.is_refused()
    assert says in lines(caplog)[-1]
    vmm.close()
    assert n_fds() == before


def test_memory_that_is_cut_short_ends_the_session_and_not_the_process(  # D10
    bench, caplog
) -> None:
    server = bench.serve()
    vmm = bench.connect()
    vmm.negotiate()
    vmm.share_memory(1 << 20, sealed=False)
    vmm.start_queue(0)
    view = server.memory.view(GPA, 4096)
    os.ftruncate(vmm.memory_fd, 0)
    assert bytes(view) == bytes(4096)  # the fault is contained
    assert server.memory.truncated
    vmm.kick(0)
    bench.turn()
    server.failed("queue 0: avail index jumps")
    bench.turn(2)
    assert vmm.is_refused()
    assert lines(caplog)[-1] == (
        "nic0: session ended: the VMM has cut guest memory short, under the device"
    )
    assert bench.nic.resets == ["session"]
    assert not server.memory.regions
    bench.running()


def test_memory_that_is_cut_short_is_noticed_though_the_device_says_nothing(bench) -> None:  # D10
    server = bench.serve()
    vmm = bench.connect()
    vmm.negotiate()
    vmm.share_memory(1 << 20, sealed=False)
    view = server.memory.view(GPA, 1)
    os.ftruncate(vmm.memory_fd, 0)
    assert view[0] == 0
    bench.until(lambda: bench.nic.resets)


# ---- what a hostile VMM sends --------------------------------------------------------------------


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
    bench, caplog, n_fds, monkeypatch
) -> None:  # D1
    monkeypatch.setattr("vnic.session.ANCILLARY", socket.CMSG_SPACE(4 * 4))
    bench.serve()
    before = n_fds()
    vmm = bench.connect()
    null = os.open("/dev/null", os.O_RDONLY)
    vmm.send(Request.SET_OWNER, b"", [null] * 9)
    assert vmm.is_refused()
    (line,) = lines(caplog)
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
    bench, caplog, n_fds, data, says
) -> None:
    bench.serve()
    before = n_fds()
    vmm = bench.connect()
    vmm.send_bytes(data)
    assert vmm.is_refused()
    vmm.close()
    assert len(lines(caplog)) == 1
    assert lines(caplog)[0].startswith(f"nic0: session ended: {says}") or says in lines(caplog)[0]
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


def test_a_vmm_that_never_reads_is_dropped(bench, caplog) -> None:
    bench.serve()
    vmm = bench.connect()

    def ask_and_never_read() -> None:
        while True:
            with suppress(BlockingIOError):
                vmm.send(Request.GET_FEATURES)
            bench.turn()

    with pytest.raises(DisconnectedError):
        ask_and_never_read()
    assert f"the VMM leaves {REPLIES_MAX + 1} replies unread" in lines(caplog)[0]


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


# ---- coming and going ----------------------------------------------------------------------------

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


def test_a_vmm_that_leaves_without_reading_its_answer_does_no_harm(bench, caplog) -> None:  # D9
    bench.serve()
    for _ in range(10):
        vmm = bench.connect()
        vmm.send(Request.GET_FEATURES)
        vmm.close()
    bench.turn(20)
    assert lines(caplog, logging.ERROR) == []
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


def test_a_second_vmm_is_refused_and_the_first_goes_on(bench, caplog) -> None:
    bench.serve()
    first = bench.running()
    second = bench.connect()
    assert second.is_refused()
    assert [line for line in lines(caplog) if "refused" in line] == [
        f"nic0: a second VMM (process {os.getpid()}) is refused"
    ]
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_to_is_named(bench) -> None:
    bench.path.parent.chmod(0o500)
    with pytest.raises(BackendError, match="choose a folder that it may write to"):
        bench.serve()


def test_a_frontend_that_is_no_virtio_device_is_refused_in_words(bench) -> None:
    bench.nic.vhost = None
    with pytest.raises(ConfigError, match="can't be served over vhost-user, which speaks virtio"):
        bench.serve()


# ---- client mode ---------------------------------------------------------------------------------


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


def test_a_client_tries_for_ever_and_less_and_less_often(bench, caplog) -> None:
    server = bench.serve(mode="client", reconnect="0.001")
    delays = []
    for _ in range(8):
        delays.append(server.vmm_socket.delay_s)
        bench.until(lambda: server.vmm_socket.delay_s != delays[-1])
    assert delays == [0.002 * 2**n for n in range(8)]
    assert lines(caplog) == [
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


# ---- options -------------------------------------------------------------------------------------


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
    bench, caplog, options, what, theirs
) -> None:
    bench.nic.options = NetOptions(**options)
    bench.serve()
    says = (
        f"nic0: over vhost-user the VMM tells the guest its {what}; give the VMM the same: "
        f"-device virtio-net-pci,{theirs},netdev=..."
    )
    assert lines(caplog) == ([says] if what else [])


def test_no_warning_where_the_vmm_reads_them_from_the_configuration_space(bench, caplog) -> None:
    bench.nic.options = NetOptions(mtu=9000)
    bench.serve(config=True)
    assert lines(caplog) == []


def test_an_mtu_that_differs_from_the_option_is_told_to_the_operator(bench, caplog) -> None:
    bench.nic.options = SimpleNamespace(mtu=9000)
    bench.serve()
    vmm = bench.running()
    vmm.tell(Request.NET_SET_MTU, U64(9000))
    assert lines(caplog) == []
    vmm.tell(Request.NET_SET_MTU, U64(1500))
    (line,) = lines(caplog)
    assert line == (
        "nic0: the VMM gives the guest an MTU of 1500, mtu=9000 was asked for; give both the "
        "same: host_mtu=9000 on the VMM's side"
    )
    assert vmm.tell(Request.NET_SET_MTU, U64(10)) == 1
