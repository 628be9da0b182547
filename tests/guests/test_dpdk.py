"""DPDK's virtio_user as the driver: a second one that nobody here wrote."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

import pytest
from kit.testpmd import Testpmd
from vnic.config import parse_nic
from vnic.loop import Loop
from vnic.nic import open_nic, open_spec
from vnic.testing import SoftwareHost
from vnic_vhost_user import Plugin, ServerOptions
from vnic_virtio_net.testing import Driver

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.dpdk

SIZES = (60, 61, 127, 128, 129, 590, 1023, 1500, 1514)
ROUNDS = 60
ECHO_MAC = bytes.fromhex("020000000001")


def until(loop: Loop, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "not in time"
        loop.dispatch(0.001)


@pytest.mark.parametrize(
    "options",
    ["", ",mrg_rxbuf=0", ",in_order=0", ",mrg_rxbuf=0,in_order=0,vectorized=1", ",queue_size=64"],
    ids=["as it comes", "not mergeable", "out of order", "vectorized", "short rings"],
)
def test_what_dpdk_sends_back_is_what_it_was_sent(tmp_path: Path, options: str) -> None:
    """Frames of many sizes go through testpmd, which swaps their addresses, and come back."""
    loop = Loop()
    path = tmp_path / "dpdk.sock"
    host = SoftwareHost(loop)
    ours = open_spec("virtio-net,vale0:ours", host)
    driver = Driver(ours, host)
    server = Plugin(ServerOptions(path=path), loop)
    theirs = open_nic(parse_nic("virtio-net,vale0:theirs"), server)
    server.serve(theirs)
    try:
        vdev = f"virtio_user0,path={path},queues=1{options}"
        if "queue_size" not in options:
            vdev += ",queue_size=256"
        exchange(loop, driver, vdev)
        # And again: the session that ended has left nothing in the way of the next.
        exchange(loop, driver, vdev)
        dropped = {
            name: n
            for nic in (ours, theirs)
            for name, n in nic.counters().items()
            if "drop" in name
        }
        assert not any(dropped.values()), dropped
    finally:
        server.close()
        theirs.close()
        ours.close()
        loop.close()


def exchange(loop: Loop, driver: Driver, vdev: str) -> None:
    started: list[Testpmd] = []
    thread = threading.Thread(
        target=lambda: started.append(
            Testpmd([vdev], options=["--forward-mode=macswap", "--port-topology=loop"])
        )
    )
    thread.start()
    until(loop, lambda: not thread.is_alive(), 60)
    (testpmd,) = started
    replies: list[str] = []
    try:
        typed = threading.Thread(target=lambda: replies.append(testpmd.command("start")))
        typed.start()
        until(loop, lambda: not typed.is_alive())
        check_echo(loop, driver)
    finally:
        ending = threading.Thread(target=testpmd.close)
        ending.start()
        until(loop, lambda: not ending.is_alive(), 30)


def check_echo(loop: Loop, driver: Driver) -> None:
    chance = random.Random(1)
    received: list[bytes] = []

    def collect() -> bool:
        received.extend(frame for frame, _ in driver.recv())
        return len(received) >= len(sent)

    for _ in range(ROUNDS):
        sent = [
            ECHO_MAC + driver.mac + b"\x88\xb5" + chance.randbytes(size - 14)
            for size in chance.choices(SIZES, k=32)
        ]
        received.clear()
        assert driver.send(sent) == len(sent)
        until(loop, collect)
        # What left with addresses a, b comes back with b, a; nothing else may have changed.
        assert received == [frame[6:12] + frame[:6] + frame[12:] for frame in sent]
    driver.check()
