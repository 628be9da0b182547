"""Streams of each kind keep the contract of backends."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from typing import Any
from unittest import SkipTest

from kit.peers import StreamPeer, free_port
from vnic.loop import Loop
from vnic.testing.contract import BackendContract, Outside
from vnic_stream import Stream

DEADLINE_S = 5.0


class Remote(Outside):
    """The outside of a stream is its peer, in the same process."""

    plugin = Stream
    sizes = (14, 15, 60, 64, 65, 590, 1500, 1514, 9014, 65535)
    holds = 1000
    wrong = (
        ("stream", Stream.Options()),
        ("stream:", Stream.Options()),
        ("stream:fd=1000000", Stream.Options()),
        ("stream:/no/such/folder/a.sock", Stream.Options(listen=True)),
        ("stream:192.0.2.1:5000", Stream.Options(listen=True)),  # another host's
    )

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.folder = tempfile.mkdtemp()
        self.peer: StreamPeer | None = None

    def connect(self) -> socket.socket:
        """Return the peer's side, once the backend was opened."""
        raise NotImplementedError

    def open(self, call: Callable[[], None]) -> None:
        call()
        if self.peer is not None:
            self.peer.close()
        self.peer = StreamPeer(self.connect())
        for _ in range(5):
            self.loop.dispatch(0.001)

    def arrive(self, frames: Sequence[bytes]) -> None:
        assert self.peer is not None
        self.peer.send(frames)

    def departed(self) -> list[bytes]:
        assert self.peer is not None
        return self.peer.frames()

    def fill(self) -> None:
        pass  # nobody reads but when asked

    def drain(self) -> None:
        assert self.peer is not None
        self.peer.read()

    def refuse(self) -> None:
        raise SkipTest("a stream takes all frames, or is broken")

    def hang_up(self) -> None:
        assert self.peer is not None
        self.peer.close()

    def close(self) -> None:
        if self.peer is not None:
            self.peer.close()
        shutil.rmtree(self.folder)


class CalledByUnix(Remote):
    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.path = f"{self.folder}/a.sock"
        self.name = f"stream:{self.path}"
        self.options = Stream.Options(listen=True)

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.path)
        return sock


class CallsUnix(Remote):
    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{self.folder}/b.sock")
        self.listener.listen()
        self.name = f"stream:unix:{self.folder}/b.sock"
        self.options = Stream.Options()

    def connect(self) -> socket.socket:
        self.listener.settimeout(DEADLINE_S)
        return self.listener.accept()[0]

    def hang_up(self) -> None:
        self.listener.close()  # or it would be called again
        super().hang_up()

    def close(self) -> None:
        self.listener.close()
        super().close()


class CallsTcp(CallsUnix):
    def __init__(self, loop: Loop) -> None:
        Remote.__init__(self, loop)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.name = f"stream:127.0.0.1:{self.listener.getsockname()[1]}"
        self.options = Stream.Options()


class CalledByTcp6(Remote):
    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.port = free_port(socket.AF_INET6)
        self.name = f"stream:[::1]:{self.port}"
        self.options = Stream.Options(listen=True)

    def connect(self) -> socket.socket:
        return socket.create_connection(("::1", self.port))


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
