"""netmap ports keep the contract of backends: a NIC, a pipe, and a port of the kernel's switch."""

from __future__ import annotations

from kit.outsides.netmap import HostsStack, OtherEnd, PortOfSwitch, PortOfVale, Wire
from vnic.loop import Loop
from vnic.testing.contract import BackendContract, Outside


class TestNic(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return Wire(loop)


class TestHostRing(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return HostsStack(loop)


class TestPipe(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return OtherEnd(loop)


class TestPortOfSwitch(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return PortOfSwitch(loop)


class TestKernelsVale(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return PortOfVale(loop)
