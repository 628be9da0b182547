"""Datagrams keep the contract of backends, on UNIX sockets and over UDP."""

from __future__ import annotations

from kit.outsides.dgram import Udp, Unix
from vnic.loop import Loop
from vnic.testing.contract import BackendContract, Outside


class TestUnix(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return Unix(loop)


class TestUdp(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return Udp(loop)
