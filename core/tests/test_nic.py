"""A NIC from its text to its end: who gets which option, and what is left of one that fails."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from kit.fakes import FakeBackend, FakeRoom, PassingFilter
from kit.loops import LoopBench
from vnic.burst import Burst
from vnic.errors import BackendError, ConfigError
from vnic.hookspecs import Host, ResetKind, hookimpl
from vnic.link import Joint, Link
from vnic.nic import Nic, open_spec
from vnic.testing import SoftwareHost


@attrs.frozen
class FrontendOptions:
    mtu: int = attrs.field(default=1500, converter=int)
    queues: int = attrs.field(default=1, converter=int)


@attrs.frozen
class BackendOptions:
    mtu: int = attrs.field(default=1500, converter=int)
    sndbuf: int = attrs.field(default=0, converter=int)


@attrs.frozen
class FilterOptions:
    rate: int = attrs.field(default=0, converter=int)


class Frontend:
    Options = FrontendOptions
    link: Link

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.raises: set[str] = set()
        self.room = FakeRoom()

    def _called(self, hook: object) -> None:
        self.calls.append(hook)
        if hook in self.raises:
            raise ConfigError(f"{hook} on purpose")

    @hookimpl
    def init(self, options: FrontendOptions, link: Link, host: Host) -> None:
        self.options, self.link = options, link
        self._called("init")

    @hookimpl
    def cleanup(self) -> None:
        self._called("cleanup")

    @hookimpl
    def reset(self, kind: ResetKind) -> None:
        self._called(kind)

    @hookimpl
    def transmit(self) -> None:
        self._called("transmit")

    @hookimpl
    def receive(self) -> None:
        self._called("receive")
        self.link.recv(self.room)  # type: ignore[arg-type]  # a room by its verbs

    @hookimpl
    def link_changed(self, up: bool) -> None:
        self._called(("link_changed", up))

    def counters(self) -> dict[str, int]:
        return {"tx_frames": 5, "shared": 1}


class Backend(FakeBackend):
    Options = BackendOptions

    @hookimpl
    def init(self, name: str, options: BackendOptions, link: Joint) -> None:
        self.name, self.options = name, options
        super().init(name, options, link)


class Filter(PassingFilter):
    Options = FilterOptions

    @hookimpl
    def init(self, name: str, options: FilterOptions, link: Joint) -> None:
        self.options = options
        super().init(name, options, link)


@attrs.define
class Rig:
    """Plugins that are there already, where a registry would make them."""

    bench: LoopBench = attrs.Factory(LoopBench)
    frontend: Frontend = attrs.Factory(Frontend)
    backend: Backend = attrs.Factory(Backend)
    filters: list[Filter] = attrs.Factory(list)

    def load(self, group: str, name: str, type_: str | None = None) -> Any:
        if group == "filters":
            return SimpleNamespace(cls=self._make_filter)
        plugin = {"frontends": self.frontend, "backends": self.backend}[group]
        made: Any = type("Made", (), {"__new__": lambda _: plugin, "Options": plugin.Options})
        return SimpleNamespace(cls=made)

    @property
    def _make_filter(self) -> Any:
        def make(_: object) -> Filter:
            self.filters.append(Filter())
            return self.filters[-1]

        return type("Made", (), {"__new__": make, "Options": FilterOptions})

    def open(self, spec: str = "fe,be0") -> Nic:
        host = SoftwareHost(self.bench.loop, 1 << 20)
        registry: Any = self
        return open_spec(spec, host, registry)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.bench.close()


def test_options_go_to_whom_they_belong_and_a_shared_one_to_both(rig: Rig) -> None:
    rig.open("fe,be0,mtu=9000,queues=2,sndbuf=7,filter=slow,rate=3")
    assert rig.frontend.options == FrontendOptions(mtu=9000, queues=2)
    assert (rig.backend.name, rig.backend.options) == ("be0", BackendOptions(mtu=9000, sndbuf=7))
    assert [f.options for f in rig.filters] == [FilterOptions(rate=3)]


def test_an_option_that_nobody_takes_opens_nothing(rig: Rig) -> None:
    with pytest.raises(ConfigError, match='unknown option "color"'):
        rig.open("fe,be0,color=red")
    assert rig.frontend.calls == rig.backend.calls == []


@pytest.mark.parametrize("error", [ConfigError("no"), BackendError("no"), RuntimeError("no")])
def test_a_backend_that_cannot_be_opened_leaves_nothing_open(rig: Rig, error: Exception) -> None:
    def refuse(hook: str) -> None:
        rig.backend.calls.append(hook)
        if hook == "init":
            raise error

    rig.backend._called = refuse  # type: ignore[method-assign]
    with pytest.raises(type(error), match="no"):
        rig.open()
    assert rig.backend.calls == ["init", "cleanup"]
    assert rig.frontend.calls == []


def test_a_frontend_that_cannot_be_built_closes_its_backend_and_filters(rig: Rig) -> None:
    rig.frontend.raises = {"init"}
    with pytest.raises(ConfigError, match="init on purpose"):
        rig.open("fe,be0,filter=slow")
    assert rig.frontend.calls == ["init", "cleanup"]
    assert rig.backend.calls[-1] == rig.filters[0].calls[-1] == "cleanup"


def test_closing_twice_closes_once_from_the_guests_side_on(rig: Rig) -> None:
    nic = rig.open()
    rig.backend.calls = rig.frontend.calls  # in one list
    rig.frontend.calls.clear()
    nic.close()
    nic.close()
    assert nic.closed
    assert rig.frontend.calls == ["cleanup", "cleanup"]


def test_a_frontend_whose_cleanup_fails_closes_its_backend_all_the_same(rig: Rig) -> None:
    nic = rig.open()
    rig.frontend.raises = {"cleanup"}
    nic.close()
    assert rig.backend.calls[-1] == "cleanup"


def test_a_closed_nic_hears_nothing(rig: Rig) -> None:
    nic = rig.open()
    nic.link.recv_enable()
    joint = rig.backend.link
    joint.down("about to end")
    nic.close()
    rig.frontend.calls.clear()
    joint.readable()
    joint.writable()
    joint.up()
    rig.bench.settle()
    assert rig.frontend.calls == []


def test_what_the_link_says_reaches_the_frontend(rig: Rig) -> None:
    nic = rig.open()
    nic.link.recv_enable()
    rig.frontend.calls.clear()
    rig.backend.deliver(bytes(60))
    assert rig.frontend.room.frames == [bytes(60)]
    rig.backend.link.writable()
    rig.backend.link.writable()
    rig.bench.settle()
    rig.backend.link.down("gone")
    rig.bench.settle()
    assert rig.frontend.calls == ["receive", "transmit", ("link_changed", False), "transmit"]


def test_counters_are_those_of_frontend_link_and_backend_together(rig: Rig) -> None:
    nic = rig.open()
    rig.backend.link.count("shared", 2)
    rig.backend.takes = 0
    nic.link.send(Burst.of([bytes(60)]))
    assert nic.counters() == {"tx_frames": 5, "shared": 3, "tx_full": 1}


def test_a_reset_is_the_frontends(rig: Rig) -> None:
    nic = rig.open()
    rig.frontend.calls.clear()
    nic.reset(ResetKind.DEVICE)
    assert rig.frontend.calls == [ResetKind.DEVICE]


def test_a_frontend_without_faces_has_none(rig: Rig) -> None:
    assert rig.open().vhost is None
