"""A hosting application: two machines with a virtio-net NIC each, in an asyncio program.

A VMM would have a real guest in that memory.  Here vnic's own software guest stands in for it.
"""

from __future__ import annotations

import asyncio
import mmap
import time
from collections.abc import Callable

from vnic.loop import Loop
from vnic.memory import Memory
from vnic.nic import open_spec
from vnic.registry import Registry
from vnic.testing.guest import Guest

MEMORY_SIZE = 16 << 20


class Machine:
    """What a NIC needs to live in: see `vnic.hookspecs.Host`."""

    def __init__(self, loop: Loop, spec: str, ip: str) -> None:
        self.loop = loop
        self.memory = Memory()
        self.memory.add(0, MEMORY_SIZE, buffer=mmap.mmap(-1, MEMORY_SIZE))
        self.nic = open_spec(spec, self)
        self.guest = self.boot(ip)
        self.woken = asyncio.Event()

    def interrupt(self, vector: int) -> None:
        """The NIC raises an MSI; a virtio-net that is driven as vhost calls its queue's own."""

    def set_irq(self, level: bool) -> None:
        """The NIC sets its interrupt pin."""

    def schedule(self, callback: Callable[[], None]) -> None:
        self.loop.schedule(callback)

    def failed(self, reason: str) -> None:
        print(f"{self.nic.name} has stopped: {reason}")

    # ---- the guest, which drives `nic.vhost` as its driver is told to by virtio's specification

    def boot(self, ip: str) -> Guest:
        self.size, self._free_gpa = MEMORY_SIZE, 0
        driver = Registry().load("drivers", "virtio-net").cls(self.nic, self)
        # An interrupt comes in the middle of the NIC's work: what it wakes runs afterwards.
        driver.on_interrupt = lambda: asyncio.get_running_loop().call_soon(self.run)
        return Guest(driver, ip, self.nic.name)

    def alloc(self, n: int, align: int = 16) -> int:
        gpa = -(-self._free_gpa // align) * align
        self._free_gpa = gpa + n
        return gpa

    def run(self) -> None:
        self.guest.poll()
        self.woken.set()


async def main() -> None:
    loop = Loop()
    asyncio.get_running_loop().add_reader(loop.fileno(), loop.dispatch)
    left = Machine(loop, "virtio-net,vale0:1", "10.0.0.1")
    right = Machine(loop, "virtio-net,vale0:2", "10.0.0.2")
    loop.dispatch()  # both NICs start before the first frame is sent
    for _ in range(3):
        start = time.perf_counter()
        ping = left.guest.ping("10.0.0.2", b"are you there?")
        while not ping.answered:
            await asyncio.wait_for(left.woken.wait(), 1)
            left.woken.clear()
        print(f"10.0.0.2 answered after {(time.perf_counter() - start) * 1e6:.0f} µs")
    for machine in (left, right):
        machine.nic.close()
    asyncio.get_running_loop().remove_reader(loop.fileno())
    loop.close()


if __name__ == "__main__":
    asyncio.run(main())
