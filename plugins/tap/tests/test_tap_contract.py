"""A tap keeps the contract of backends, in each form in which it can be opened."""

from __future__ import annotations

import pytest
from kit.missing import Missing
from kit.outsides import tap
from vnic.loop import Loop
from vnic.testing.contract import BackendContract, Outside


class _OnHost(BackendContract):
    outside: type[Outside]

    def make(self, loop: Loop) -> Outside:
        try:
            return self.outside(loop)
        except Missing as missing:
            pytest.skip(str(missing))


@pytest.mark.root
class TestTap(_OnHost):
    outside = tap.HostSide


@pytest.mark.root
class TestTapOfAnyName(_OnHost):
    outside = tap.OfAnyName


@pytest.mark.root
class TestPersistentTap(_OnHost):
    outside = tap.Persistent


@pytest.mark.root
class TestTapInAnotherNamespace(_OnHost):
    outside = tap.InAnotherNamespace


@pytest.mark.root
class TestPassedTap(_OnHost):
    outside = tap.PassedOn


@pytest.mark.root
class TestMacvtap(_OnHost):
    outside = tap.BehindAMacvtap


@pytest.mark.root
class TestPassedMacvtap(_OnHost):
    outside = tap.OnAPassedMacvtap
