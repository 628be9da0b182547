"""What a hostile VMM sends, and does not read."""

from __future__ import annotations

import logging
import os
import random
import socket
from contextlib import suppress

import pytest
from vnic.session import REPLIES_MAX
from vnic.testing.vmm import DisconnectedError
from vnic_vfio_user.device_payloads import Region
from vnic_vfio_user.messages import FORMS, Command, HeaderFlags, encode_message
from vnic_vfio_user.payloads import Raw, RegionAccess, RegionWrite
from vnic_vfio_user.testing import RefusedError

COUNT, COPY = 0, 16


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
