from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kit.descriptors import n_open
from vnic.loop import Loop
from vnic.pci import (
    Bar,
    BarKind,
    Function,
    Identity,
    MsiX,
    PowerManagement,
)
from vnic_vfio_user import Plugin, ServerOptions
from vnic_vfio_user.testing import Vmm

MSIX = MsiX(vectors=20, table_bar=4, table_offset=0, pba_bar=4, pba_offset=0x800)


class Counter:
    """A device that counts; a driver reads 0 for the count, 4 for its interrupt, which clears it.

    0x00 count, 0x04 interrupt (cleared by reading), 0x08 raise the pin, 0x0c signal a vector,
    0x10 copy the word at a guest address to 0x14, 0x18 schedule work; everything else is memory.
    """

    def __init__(self, host: Any, **description: Any) -> None:
        self.host = host
        self.accesses: list[tuple[str, int, int, int]] = []
        self.storage = bytearray(0x20000)
        self.count = 0
        self.work: Any = None
        bars = [
            Bar(index=0, size=0x20000, registers=self),
            Bar(index=2, size=64, kind=BarKind.IO, registers=self),
            Bar(index=4, size=0x1000, registers=self),
        ]
        self.pci = Function(
            host,
            Identity(vendor=0x1234, device=0x5678, revision=3, class_code=0xFF0000, subsystem=9),
            **{"bars": bars, "capabilities": [PowerManagement(), MSIX], **description},
        )

    def read(self, offset: int, n: int) -> int:
        self.accesses.append(("read", offset, n, 0))
        if offset == 0:
            self.count += 1
            return self.count
        if offset == 4:
            level = self.pci.irq
            self.pci.set_irq(False)
            return int(level)
        return int.from_bytes(self.storage[offset : offset + n], "little")

    def write(self, offset: int, n: int, value: int) -> None:
        self.accesses.append(("write", offset, n, value))
        if offset == 8:
            self.pci.set_irq(bool(value))
        elif offset == 12:
            self.pci.signal(value)
        elif offset == 16:
            self.storage[20:24] = bytes(self.host.memory.view(value, 4))
        elif offset == 24:
            self.host.schedule(self.work)
        else:
            self.storage[offset : offset + n] = value.to_bytes(n, "little")

    def reset(self) -> None:
        self.count = 0
        self.storage = bytearray(len(self.storage))
        self.pci.reset()


class FakeNic:
    """As much of a NIC as a server sees."""

    def __init__(self, device: Counter | None) -> None:
        self.name = "nic0"
        self.options = SimpleNamespace()
        self.device = device
        self.pci = device.pci if device else None
        self.resets: list[str] = []

    def reset(self, kind: Any) -> None:
        self.resets.append(kind.value)
        if self.device is not None:
            self.device.reset()


class Bench:
    """A loop, a device, and servers of it that are closed in the end."""

    def __init__(self, path: Any) -> None:
        self.path = path
        self.loop = Loop()
        self.device: Any = None
        self.nic: Any = None
        self.servers: list[Plugin] = []
        self.vmms: list[Vmm] = []

    def serve(self, *, options: Any = None, **description: Any) -> Plugin:
        server = Plugin(ServerOptions(path=str(self.path), **(options or {})), self.loop)
        self.servers.append(server)
        self.device = Counter(server, **description)
        self.nic = FakeNic(self.device)
        server.serve(self.nic)
        return server

    def connect(self) -> Vmm:
        self.vmms.append(Vmm.connect(self.path, self.turn))
        return self.vmms[-1]

    def running(self) -> Vmm:
        vmm = self.connect()
        vmm.start(1 << 20)
        return vmm

    def turn(self, n: int = 1) -> None:
        for _ in range(n):
            self.loop.dispatch()

    def until(self, condition: Any, timeout_s: float = 5.0) -> None:
        """Run the loop until something is so: for what waits for a timer."""
        deadline = self.loop.clock() + timeout_s
        while not condition():
            assert self.loop.clock() < deadline, "it does not happen"
            self.loop.dispatch(0.05)

    def close(self) -> None:
        for vmm in self.vmms:
            vmm.close()
        for server in self.servers:
            server.close()
        self.loop.close()


@pytest.fixture
def bench(tmp_path: Any) -> Iterator[Bench]:
    bench = Bench(tmp_path / "vfio.sock")
    yield bench
    bench.close()


@pytest.fixture
def n_fds() -> Any:
    """Counts this process's descriptors."""
    return n_open


@pytest.fixture
def lines(caplog: Any) -> Any:
    """What was logged, from warnings up."""
    return lambda level=logging.WARNING: [
        record.getMessage() for record in caplog.records if record.levelno >= level
    ]
