"""A filter above the real backend that fails in one way, as somebody's code may."""

from __future__ import annotations

from kit.fakes import PassingFilter
from vnic.burst import Burst, Room
from vnic.features import Features
from vnic.hookspecs import hookimpl

FAULTS = (
    "send raises",
    "send returns more than it was given",
    "send returns less than nothing",
    "recv raises",
    "recv_enable raises",
    "get_capabilities raises",
    "set_capabilities raises",
)


class Faulty(PassingFilter):
    """It passes everything on, but for its fault."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self._fault = fault

    @hookimpl
    def send(self, burst: Burst) -> int:
        self._raise("send")
        if self._fault == "send returns more than it was given":
            return len(burst) + 1
        if self._fault == "send returns less than nothing":
            return -1
        return super().send(burst)

    @hookimpl
    def recv(self, room: Room) -> int:
        self._raise("recv")
        return super().recv(room)

    @hookimpl
    def recv_enable(self) -> None:
        self._raise("recv_enable")

    @hookimpl
    def recv_disable(self) -> None:
        self._raise("recv_disable")

    @hookimpl
    def get_capabilities(self) -> Features:
        self._raise("get_capabilities")
        has = self.beneath.get_capabilities
        return Features(has()) if has is not None else Features(0)

    @hookimpl
    def set_capabilities(self, features: Features) -> None:
        self._raise("set_capabilities")

    def _raise(self, hook: str) -> None:
        if self._fault == f"{hook} raises":
            raise RuntimeError(f"{hook} fails on purpose")
