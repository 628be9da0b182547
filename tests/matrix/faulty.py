"""A filter above the real backend that fails in one way, as somebody's code may."""

from __future__ import annotations

from typing import Any

from vnic.burst import Burst, Room
from vnic.features import Features
from vnic.hookspecs import hookimpl
from vnic.link import Joint

FAULTS = (
    "send raises",
    "send returns more than it was given",
    "send returns less than nothing",
    "recv raises",
    "recv_enable raises",
    "get_capabilities raises",
    "set_capabilities raises",
)


class Faulty:
    """It passes everything on, but for its fault."""

    def __init__(self, fault: str) -> None:
        self._fault = fault

    @hookimpl
    def init(self, name: str, options: Any, link: Joint) -> None:
        self._beneath: Any = link.beneath

    @hookimpl
    def cleanup(self) -> None:
        pass

    @hookimpl
    def send(self, burst: Burst) -> int:
        self._raise("send")
        if self._fault == "send returns more than it was given":
            return len(burst) + 1
        if self._fault == "send returns less than nothing":
            return -1
        n: int = self._beneath.send(burst)
        return n

    @hookimpl
    def recv(self, room: Room) -> int:
        self._raise("recv")
        n: int = self._beneath.recv(room)
        return n

    @hookimpl
    def recv_enable(self) -> None:
        self._raise("recv_enable")

    @hookimpl
    def get_capabilities(self) -> Features:
        self._raise("get_capabilities")
        has = self._beneath.get_capabilities
        return Features(has()) if has is not None else Features(0)

    @hookimpl
    def set_capabilities(self, features: Features) -> None:
        self._raise("set_capabilities")

    def _raise(self, hook: str) -> None:
        if self._fault == f"{hook} raises":
            raise RuntimeError(f"{hook} fails on purpose")
