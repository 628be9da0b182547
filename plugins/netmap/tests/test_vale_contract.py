"""A port of the embedded switch keeps the contract of backends."""

from __future__ import annotations

from kit.outsides.vale import AnotherPort
from vnic.loop import Loop
from vnic.testing.contract import BackendContract, Outside


class TestVale(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return AnotherPort(loop)
