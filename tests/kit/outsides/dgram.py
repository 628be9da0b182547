"""What is behind a datagram socket: another one, which is read as the loop turns."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
import time
from collections.abc import Sequence
from typing import ClassVar

from vnic.loop import Loop
from vnic_stream import Dgram

from kit.outsides import DROPS, NO_HEADER, REFUSES_NOTHING, Outside
from kit.peers import free_port

DEADLINE_S = 5.0


class Remote(Outside):
    """A socket of either kind."""

    plugin = Dgram
    cannot: ClassVar = {"arrive_offloaded": NO_HEADER, "refuse": REFUSES_NOTHING}

    def __init__(self, loop: Loop, sock: socket.socket, backends: str | tuple[str, int]) -> None:
        super().__init__(loop)
        self.sock = sock
        self.sock.setblocking(False)
        self.backends = backends
        self.left: list[bytes] = []
        self.watch = loop.watch(sock.fileno(), lambda _: self.read())
        self.reads = True

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
            while self.reads:
                self.left.append(self.sock.recv(1 << 17))

    def fill(self) -> None:
        self.reads = False
        self.watch.set(read=False)

    def drain(self) -> None:
        self.reads = True
        self.watch.set(read=True)

    def close(self) -> None:
        self.watch.close()
        self.sock.close()


class Unix(Remote):
    """On UNIX sockets."""

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

    def hang_up(self) -> None:
        self.reads = False
        self.watch.close()
        self.sock.close()
        self.pass_second()

    def close(self) -> None:
        super().close()
        shutil.rmtree(self.folder)


class Udp(Remote):
    """Over UDP."""

    sizes = (14, 15, 60, 64, 65, 590, 1500, 1514, 9014, 65507)
    holds = 100
    wrong = (("dgram:192.0.2.1:5000", Dgram.Options(peer="192.0.2.2:5000")),)
    cannot: ClassVar = Remote.cannot | {
        "fill": DROPS,
        "hang_up": "nobody tells it that the other side is gone",
    }

    def __init__(self, loop: Loop) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind(("127.0.0.1", 0))
        port = free_port(kind=socket.SOCK_DGRAM)
        super().__init__(loop, sock, ("127.0.0.1", port))
        self.name = f"dgram:127.0.0.1:{port}"
        self.options = Dgram.Options(peer=f"127.0.0.1:{sock.getsockname()[1]}")
