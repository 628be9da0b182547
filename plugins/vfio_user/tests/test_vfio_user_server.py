from __future__ import annotations

import logging
import os
import random
import socket
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from vnic.errors import ConfigError
from vnic.pci import Area, Bar, Mappable
from vnic.session import REPLIES_MAX
from vnic_vfio_user.messages import (
    FORMS,
    Command,
    Empty,
    HeaderFlags,
    Raw,
    Region,
    RegionAccess,
    RegionWrite,
    WriteMulti,
    encode_message,
)
from vnic_vfio_user.testing import (
    DisconnectedError,
    RefusedError,
)

COUNT, INTERRUPT, RAISE, SIGNAL, COPY, COPIED = 0, 4, 8, 12, 16, 20


# ---- a session -----------------------------------------------------------------------------------


def test_a_vmm_finds_the_device_and_uses_it(bench) -> None:
    bench.serve()
    vmm = bench.running()
    assert vmm.read_config(0, 4) == bytes.fromhex("34127856")
    assert vmm.read_config(0, 256)[0x2C:0x30] == bytes.fromhex("00000900")
    assert [vmm.region_info(i).size for i in range(9)] == [0x20000, 0, 64, 0, 4096, 0, 0, 256, 0]
    assert [vmm.irq_count(i) for i in range(5)] == [1, 0, 20, 1, 0]
    assert [vmm.read(0, COUNT, 4) for _ in range(3)] == [1, 2, 3]
    vmm.write(0, 0x100, 4, 0x12345678)
    assert vmm.read(0, 0x102, 2) == 0x1234
    vmm.write(2, 0x20, 1, 0xAB, posted=False)
    assert vmm.read(2, 0x20, 1) == 0xAB
    assert bench.nic.resets == ["device"]


def test_writes_are_carried_out_in_order_before_a_later_read(bench) -> None:
    bench.serve()
    vmm = bench.running()
    for i in range(200):
        vmm.write(0, 0x100 + 4 * i, 4, i)
    assert vmm.read(0, 0x100 + 4 * 199, 4) == 199
    assert [value for _, _, _, value in bench.device.accesses[:-1]] == list(range(200))


def test_several_writes_come_in_one_message(bench) -> None:
    bench.serve()
    vmm = bench.running()
    writes = tuple(RegionWrite(0x100 + 8 * i, 0, 8, bytes([i]) * 8) for i in range(200))
    assert vmm.ask(Command.REGION_WRITE_MULTI, WriteMulti(writes)) == (200).to_bytes(8, "little")
    vmm.send(Command.REGION_WRITE_MULTI, WriteMulti(writes), flags=HeaderFlags.NO_REPLY)
    assert vmm.read(0, 0x100 + 8 * 199, 4) == 199 * 0x01010101


def test_registers_see_aligned_accesses_whatever_the_vmm_sends(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.write(0, 0x101, 7, 0x11223344556677)
    data = bytes(random.Random(1).randbytes(4096))
    vmm.write(0, 0x1003, 4096, int.from_bytes(data, "little"), posted=False)
    assert vmm.read_bytes(0, 0x1003, 4096) == data
    assert vmm.read(0, 0x100, 8) == 0x11223344556677 << 8
    assert all(n in (1, 2, 4) and offset % n == 0 for _, offset, n, _ in bench.device.accesses)


def test_the_device_reads_what_the_guest_wrote(bench) -> None:
    bench.serve()
    vmm = bench.running()
    gpa = vmm.alloc(4)
    vmm.memory.view(gpa, 4)[:] = b"abcd"
    vmm.write(0, COPY, 4, gpa)
    assert vmm.read_bytes(0, COPIED, 4) == b"abcd"


def test_a_reset_brings_the_device_back_to_power_on(bench) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.write(0, 0x100, 4, 5)
    vmm.write(0, RAISE, 4, 1)
    vmm.ask(Command.DEVICE_RESET, Empty())
    assert bench.nic.resets[-1] == "device"
    assert vmm.read(0, 0x100, 4) == 0
    assert vmm.read_config(4, 4) == bytes.fromhex("0000 1000")
    assert not bench.device.pci.irq


def test_a_part_of_a_bar_is_mapped_by_the_vmm(bench) -> None:
    fd = os.memfd_create("page", os.MFD_CLOEXEC)
    os.ftruncate(fd, 0x4000)
    registers: Any = SimpleNamespace(read=lambda offset, n: 0, write=lambda *_: None)
    mappable = Mappable(fd=fd, areas=[Area(0x3000, 0x1000)])
    bars = [Bar(index=2, size=0x4000, registers=registers, mappable=mappable)]
    bench.serve(bars=bars, capabilities=[])
    vmm = bench.running()
    info = vmm.region_info(2)
    assert info.areas == ((0x3000, 0x1000),)
    (theirs,) = vmm.fds
    os.pwrite(theirs, b"kick", info.offset + 0x3000)
    assert os.pread(fd, 4, 0x3000) == b"kick"
    os.close(fd)


# ---- the end, and the next one -------------------------------------------------------------------


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
    assert bench.connect().is_refused()
    assert "a second VMM" in lines()[-1]
    assert vmm.read(0, COUNT, 4) == 1


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


def test_a_vmm_that_reads_no_answers_is_sent_away_and_costs_no_memory(bench, lines) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with suppress(DisconnectedError, BlockingIOError):
        for _ in range(REPLIES_MAX * 20):
            vmm.send(Command.REGION_READ, RegionAccess(0x100, 0, 4096))
            bench.turn()
    assert "replies unread" in lines()[-1]
    assert bench.nic.resets[-1] == "session"


def test_answers_that_find_no_room_are_sent_when_there_is(bench) -> None:
    bench.serve()
    vmm = bench.running()
    n = 200  # 800 kB of answers
    for i in range(n):
        vmm.write(0, 0x100, 4, i)
        vmm.send(Command.REGION_READ, RegionAccess(0x100, 0, 4096))
        bench.turn()
    assert [int.from_bytes(vmm.receive()[1][16:20], "little") for _ in range(n)] == list(range(n))


def test_a_device_that_fails_ends_the_session_and_nothing_else(bench, lines) -> None:
    bench.serve()
    vmm = bench.running()
    vmm.send(Command.REGION_WRITE, RegionWrite(COPY, 0, 4, bytes(4)))  # raises: not memory
    assert vmm.is_refused()
    assert bench.running().read(0, COUNT, 4) == 1


def test_a_frontend_without_a_pci_face_is_refused_in_words(bench) -> None:
    server = bench.serve()
    server.close()
    bench.nic.pci = None
    with pytest.raises(ConfigError, match="speaks PCI only"):
        server.serve(bench.nic)


@pytest.mark.parametrize("seed", range(20))
def test_hostile_sessions_end_with_a_line_and_the_next_is_served(  # E8
    bench, caplog, n_fds, seed
) -> None:
    caplog.set_level(logging.CRITICAL, "vnic")
    bench.serve()
    before = n_fds()
    rng = random.Random(seed)
    reader, writer = os.pipe()
    fds = [reader, writer, os.eventfd(0), os.memfd_create("m")]
    for _ in range(10):
        vmm = bench.running()
        with suppress(DisconnectedError, BlockingIOError, AssertionError):
            for _ in range(50):
                command = rng.choice([*FORMS, 16, 99, rng.randrange(1 << 16)])
                least, most = (FORMS[command].payload.SIZES) if command in FORMS else (0, 64)
                size = rng.choice([least, least, most, rng.randint(0, 100)])
                content = rng.choice([rng.randbytes(size), bytes(size)])
                if rng.random() < 0.3:
                    content = bytes(rng.choice([0, 0, 0, 1, 4, 0xFF]) for _ in range(size))
                some = rng.sample(fds, rng.choice([0, 0, 0, 1, 2, 4]))
                flags = rng.choice([0, 0, 0, 0x10, 1, 0x20, rng.randrange(1 << 32)])
                header = encode_message(1, command, Raw(content), HeaderFlags(0))
                lie = rng.choice([0] * 10 + [-1, 1, 16, 1 << 20])
                header = (
                    header[:4]
                    + (max(0, len(header) + lie)).to_bytes(4, "little")
                    + flags.to_bytes(4, "little")
                    + header[12:]
                )
                vmm.send_bytes(header, some)
                bench.turn()
        vmm.close()
        bench.turn(3)
        assert n_fds() == before + len(fds)
        assert bench.servers[0].memory.regions == ()
    fresh = bench.running()
    assert fresh.read(0, COUNT, 4) == 1
    for fd in fds:
        os.close(fd)


def test_region_read_of_configuration_space_beyond_its_end_is_refused(bench) -> None:  # E1
    bench.serve()
    vmm = bench.running()
    for offset, n in ((0, 257), (255, 2), ((1 << 64) - 1, 1), ((1 << 64) - 4, 4)):
        with pytest.raises(RefusedError):
            vmm.read_bytes(Region.CONFIG, offset, n)
    assert vmm.read_config(252, 4) == bytes(4)
