"""The stand-in of netmap's module, by itself or in its place, and NICs on its ports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest
from vnic.burst import BURST_MAX
from vnic.features import NONE, Features
from vnic.link import Link
from vnic.loop import Loop
from vnic.testing.bench import Bench, Guest
from vnic_netmap import Netmap, system
from vnic_netmap.abi import NIOCRXSYNC, NIOCTXSYNC
from vnic_netmap.testing import StandIn

NAMES = {NIOCTXSYNC: "txsync", NIOCRXSYNC: "rxsync"}


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with StandIn() as stand_in:
        yield stand_in


class CountingStandIn(StandIn):
    """It counts the syncs."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.n_calls: Counter[str] = Counter()

    def ioctl(self, fd: int, request: int, argument: Any = None) -> None:
        self.n_calls[NAMES.get(request, "other")] += 1
        super().ioctl(fd, request, argument)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingStandIn]:
    """The module that ports of this process are opened on."""
    with CountingStandIn() as module:
        monkeypatch.setattr(system, "current", module)
        yield module


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def run(loop: Loop) -> Callable[[], None]:
    """Run the loop until it rests."""
    bench = Bench(2, 5)
    bench.loop.close()
    bench.loop = loop
    return bench.settle


@attrs.define
class Side:
    """A port, and the guest of a NIC on it."""

    backend: Any
    link: Link
    guest: Guest

    @property
    def fd(self) -> int:
        return int(self.backend._port.fd)

    def dropped(self) -> dict[str, int]:
        return {name: n for name, n in self.link.counters().items() if "_drop_" in name}


@pytest.fixture
def side(module: CountingStandIn, loop: Loop) -> Iterator[Callable[..., Side]]:
    """Open a port: ``side("netmap:p{1", header=12)``."""
    sides: list[Side] = []

    def open_side(
        name: str,
        backend: type = Netmap,
        n_buffers: int = BURST_MAX,
        offloads: Features = NONE,
        **options: Any,
    ) -> Side:
        instance = backend()
        link = Link(name, loop)
        link.open([(instance, name, backend.Options(**options))])  # type: ignore[attr-defined]
        side = Side(instance, link, Guest(link, n_buffers, offloads))
        side.guest.start()
        sides.append(side)
        return side

    yield open_side
    for side in sides:
        side.link.close()
