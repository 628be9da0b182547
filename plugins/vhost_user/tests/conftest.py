from __future__ import annotations

import logging
import resource
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kit.descriptors import n_open
from kit.vhost_user import Script
from vnic.errors import PeerError
from vnic.features import Features
from vnic.loop import Loop
from vnic_vhost_user import Plugin, ServerOptions
from vnic_vhost_user.testing import Vmm

FEATURES = Features.VERSION_1 | Features.EVENT_IDX | Features.MRG_RXBUF | Features.MTU


class FakeFace:
    """A vhost face that writes down what it is told, and looks at the memory as a real one does."""

    def __init__(self, n_queues: int = 2) -> None:
        self.n_queues = n_queues
        self.memory: Any = None
        self.features = Features(0)
        self.queues: dict[int, Any] = {}
        self.interrupts: dict[int, Any] = {}
        self.enabled: dict[int, bool] = {}
        self.kicks: list[int] = []
        self.positions = dict.fromkeys(range(n_queues), 0)
        self.written: list[tuple[int, bytes]] = []

    def get_features(self) -> Features:
        return FEATURES

    def set_features(self, features: Features) -> None:
        if features & ~FEATURES:
            raise PeerError("SET_FEATURES: more than was offered")
        self.features = features

    def start_queue(self, index: int, queue: Any, interrupt: Any) -> None:
        assert index not in self.queues, "started twice"
        if not self.memory.covers(queue.desc_gpa, 16 * queue.size):
            raise PeerError(f"queue {index}: outside memory")
        self.queues[index] = queue
        self.interrupts[index] = interrupt
        self.positions[index] = queue.base

    def stop_queue(self, index: int) -> int:
        self.queues.pop(index, None)
        return self.positions[index]

    def enable_queue(self, index: int, enabled: bool) -> None:
        self.enabled[index] = enabled

    def kick(self, index: int) -> None:
        self.kicks.append(index)

    def read_config(self, offset: int, n: int) -> bytes:
        return bytes(range(offset, offset + n))

    def write_config(self, offset: int, data: bytes) -> None:
        self.written.append((offset, data))


class FakeNic:
    """As much of a NIC as a server sees."""

    def __init__(self, face: FakeFace | None) -> None:
        self.name = "nic0"
        self.options: Any = SimpleNamespace()
        self.vhost = face
        self.resets: list[str] = []

    def reset(self, kind: Any) -> None:
        self.resets.append(kind.value)
        if self.vhost is not None:
            self.vhost.queues.clear()


class Bench:
    """A loop, a NIC, and servers of it that are closed in the end."""

    def __init__(self, path: Any) -> None:
        self.path = path
        self.loop = Loop()
        self.face = FakeFace()
        self.nic = FakeNic(self.face)
        self.servers: list[Plugin] = []
        self.vmms: list[Vmm] = []

    def serve(self, **options: Any) -> Plugin:
        server = Plugin(ServerOptions(**{"path": str(self.path), **options}), self.loop)
        self.servers.append(server)
        self.face.memory = server.memory
        server.serve(self.nic)  # type: ignore[arg-type]  # a fake
        return server

    def connect(self) -> Vmm:
        self.vmms.append(Vmm.connect(self.path, self.turn))
        return self.vmms[-1]

    def running(self) -> Vmm:
        """Connect a VMM and start both queues."""
        vmm = self.connect()
        vmm.negotiate()
        vmm.share_memory(1 << 20)
        for index in (0, 1):
            vmm.start_queue(index)
        self.turn()
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
    bench = Bench(tmp_path / "vhost.sock")
    yield bench
    bench.close()


@pytest.fixture
def script() -> Script:
    """A VMM without a socket that has said nothing yet."""
    return Script()


@pytest.fixture
def ready(script: Script) -> Script:
    """And one that may start queues."""
    script.negotiate()
    return script


@pytest.fixture
def n_fds() -> Any:
    """Counts this process's descriptors."""
    return n_open


@pytest.fixture
def resident_kib() -> Any:
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.fixture
def lines(caplog: Any) -> Any:
    """What was logged, from warnings up."""
    return lambda level=logging.WARNING: [
        record.getMessage() for record in caplog.records if record.levelno >= level
    ]
