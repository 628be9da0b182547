"""Datagrams keep the contract of backends, on UNIX sockets and over UDP."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from typing import Any
from unittest import SkipTest

from kit.peers import free_port
from vnic.loop import Loop
from vnic.testing.contract import BackendContract, Outside
from vnic_stream import Dgram
from vnic_stream.dgram import LOOK_S

DEADLINE_S = 5.0


class Remote(Outside):
    """The outside of a datagram socket is another one, which is read as the loop turns."""

    plugin = Dgram
    sizes = (14, 15, 60, 64, 65, 590, 1500, 1514, 9014, 65535)

    def __init__(self, loop: Loop, sock: socket.socket, backends: str | tuple[str, int]) -> None:
        self.loop = loop
        self.sock = sock
        self.sock.setblocking(False)
        self.backends = backends
        self.left: list[bytes] = []
        self.watch = loop.watch(sock.fileno(), lambda _: self.read())

    def arrive(self, frames: Sequence[bytes]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        for i, frame in enumerate(frames):
            # A queue holds few, and the backend is to read on meanwhile.
            while i % self.holds == self.holds - 1 or not self._sent(frame):
                assert time.monotonic() < deadline
                self.loop.dispatch()
                if self._sent(frame):
                    break

    def _sent(self, frame: bytes) -> bool:
        try:
            self.sock.sendto(frame, self.backends)
        except BlockingIOError:
            return False
        except OSError:
            pass  # to nobody
        return True

    def departed(self) -> list[bytes]:
        self.read()
        frames, self.left = self.left, []
        return frames

    def read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.left.append(self.sock.recv(1 << 17))

    def refuse(self) -> None:
        raise SkipTest("the kernel refuses no datagram but for its length, or for want of a peer")

    def close(self) -> None:
        self.watch.close()
        self.sock.close()


class Unix(Remote):
    holds = 10  # net.unix.max_dgram_qlen, where nobody changed it

    def __init__(self, loop: Loop) -> None:
        self.folder = tempfile.mkdtemp()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(f"{self.folder}/b.sock")
        super().__init__(loop, sock, f"{self.folder}/a.sock")
        self.name = f"dgram:{self.folder}/a.sock"
        self.options = Dgram.Options(peer=f"{self.folder}/b.sock")
        self.wrong = (
            (self.name, Dgram.Options()),
            (f"dgram:{self.folder}/no/such/folder", self.options),
            (f"dgram:{self.folder}/b.sock", self.options),  # another's
            ("dgram:127.0.0.1:5000", self.options),
        )

    def fill(self) -> None:
        self.watch.set(read=False)

    def drain(self) -> None:
        self.watch.set(read=True)

    def hang_up(self) -> None:
        self.watch.close()
        self.sock.close()
        clock: Any = self.loop.clock
        clock.now_s += LOOK_S

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.folder)


class Udp(Remote):
    sizes = (14, 15, 60, 64, 65, 590, 1500, 1514, 9014, 65507)
    holds = 100
    wrong = (("dgram:192.0.2.1:5000", Dgram.Options(peer="192.0.2.2:5000")),)

    def fill(self) -> None:
        raise SkipTest("UDP is never full: what the receiver has no room for is lost")

    def hang_up(self) -> None:
        raise SkipTest("UDP tells nobody that the peer has gone")

    def __init__(self, loop: Loop) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind(("127.0.0.1", 0))
        port = free_port(kind=socket.SOCK_DGRAM)
        super().__init__(loop, sock, ("127.0.0.1", port))
        self.name = f"dgram:127.0.0.1:{port}"
        self.options = Dgram.Options(peer=f"127.0.0.1:{sock.getsockname()[1]}")


class TestUnix(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return Unix(loop)


class TestUdp(BackendContract):
    def make(self, loop: Loop) -> Outside:
        return Udp(loop)
