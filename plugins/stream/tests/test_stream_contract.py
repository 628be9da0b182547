"""Streams of each kind keep the contract of backends."""

from __future__ import annotations

import socket
from typing import Any

from kit.outsides.stream import CalledByTcp6, CalledByUnix, CallsTcp, CallsUnix, Remote
from vnic.loop import Loop
from vnic.testing.contract import BackendContract, Outside
from vnic_stream import Stream


class GivenOne(Remote):
    """Its name is another one each time that it is asked for: the old pair is closed."""

    options = Stream.Options()

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.theirs: socket.socket | None = None
        self.passed: socket.socket | None = None

    def connect(self) -> socket.socket:
        assert self.theirs is not None
        return self.theirs

    def __getattr__(self, attribute: str) -> Any:
        if attribute != "name":
            raise AttributeError(attribute)
        self.close_pair()
        self.passed, self.theirs = socket.socketpair()
        return f"stream:fd={self.passed.fileno()}"

    def close_pair(self) -> None:
        for sock in (self.passed, self.theirs):
            if sock is not None:
                sock.close()

    def close(self) -> None:
        self.close_pair()
        super().close()


class TestCalledByUnix(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return CalledByUnix(loop)


class TestCallsUnix(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return CallsUnix(loop)


class TestCallsTcp(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return CallsTcp(loop)


class TestCalledByTcp6(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return CalledByTcp6(loop)


class TestGivenOne(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return GivenOne(loop)
