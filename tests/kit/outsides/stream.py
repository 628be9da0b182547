"""What is behind a stream: its peer, in the same process."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from typing import ClassVar

from vnic.loop import Loop
from vnic_stream import Stream

from kit.outsides import NO_HEADER, REFUSES_NOTHING, Outside
from kit.peers import StreamPeer, free_port

DEADLINE_S = 5.0


class Remote(Outside):
    """A peer by a socket of whatever kind."""

    plugin = Stream
    holds = 1000
    wrong = (
        ("stream", Stream.Options()),
        ("stream:", Stream.Options()),
        ("stream:fd=1000000", Stream.Options()),
        ("stream:/no/such/folder/a.sock", Stream.Options(listen=True)),
        ("stream:192.0.2.1:5000", Stream.Options(listen=True)),  # another host's
    )
    cannot: ClassVar = {"arrive_offloaded": NO_HEADER, "refuse": REFUSES_NOTHING}

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.folder = tempfile.mkdtemp()
        self.peer: StreamPeer | None = None
        self.reads = True

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
        return self.peer.frames() if self.reads else []

    def fill(self) -> None:
        self.reads = False

    def drain(self) -> None:
        self.reads = True
        assert self.peer is not None
        self.peer.read()

    def hang_up(self) -> None:
        assert self.peer is not None
        self.peer.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self.peer is not None:
            self.peer.close()
        shutil.rmtree(self.folder)


class CalledByUnix(Remote):
    """It calls the backend on a UNIX socket."""

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
    """It is called on a UNIX socket."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.listener = self.listen()
        self.options = Stream.Options()

    def listen(self) -> socket.socket:
        """Listen, and say on what name."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(f"{self.folder}/b.sock")
        listener.listen()
        self.name = f"stream:unix:{self.folder}/b.sock"
        return listener

    def connect(self) -> socket.socket:
        self.listener.settimeout(DEADLINE_S)
        return self.listener.accept()[0]

    def hang_up(self) -> None:
        self.listener.close()
        super().hang_up()

    def close(self) -> None:
        self.listener.close()
        super().close()


class CallsTcp(CallsUnix):
    """It is called by TCP."""

    def listen(self) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0))
        self.name = f"stream:127.0.0.1:{listener.getsockname()[1]}"
        return listener


class CalledByTcp6(Remote):
    """It calls the backend by TCP, over IPv6."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop)
        self.port = free_port(socket.AF_INET6)
        self.name = f"stream:[::1]:{self.port}"
        self.options = Stream.Options(listen=True)

    def connect(self) -> socket.socket:
        return socket.create_connection(("::1", self.port))
