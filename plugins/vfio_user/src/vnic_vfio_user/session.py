"""One VMM on one socket: carries out what its connection asks, until either side is gone.

It owns the socket and every descriptor that came through it.

Nothing here waits: a message is carried out and answered within the call that read it, and what a
register write sets in motion is scheduled by the frontend and runs after it.  The same goes the
other way: frames move only within a call that the loop makes, kernels and backends keep no address
beyond it, and messages are read between such calls.  So when DMA_UNMAP is carried out nothing is
in flight, and after its reply nothing can be: that is how it waits for what is in flight.
"""

from __future__ import annotations

import array
import logging
import os
import select
import socket
import stat
from typing import TYPE_CHECKING, Any, Final

from vnic.errors import PeerError, VnicError
from vnic.hookspecs import ResetKind

from vnic_vfio_user import events
from vnic_vfio_user.connection import Connection
from vnic_vfio_user.interrupts import Interrupts
from vnic_vfio_user.messages import Region

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from vnic.loop import Loop, Timer
    from vnic.memory import Memory
    from vnic.nic import Nic
    from vnic.pci import Function

    from vnic_vfio_user.connection import Reply

log: Final = logging.getLogger("vnic.vfio_user")

CHUNK: Final = 64 * 1024
"""Bytes read at once: some thousand messages, and all that a VMM gets of the loop at a time."""

SCM_MAX_FD: Final = 253
"""More than Linux passes with one sendmsg; what a receiver must be ready for."""

REPLIES_MAX: Final = 1024
"""Answers that wait because the VMM doesn't read.  QEMU leaves unread what it maps at once."""

TRUNCATED_S: Final = 0.5
"""How often is looked whether guest memory was cut short.  What was there is zero until then."""

BACKINGS_MAX: Final = 8
"""Files of guest memory that are looked at to find out whether the VMM shares them."""

LOOKED_AT: Final = 32 << 20
"""Bytes of each.  Firmware and kernel are within them, and leave something in the first page; to
find nothing takes some ten milliseconds, once.
"""

PRIVATE: Final = (
    "the guest runs, and its memory is empty as the VMM passes it: the VMM has mapped it for "
    "itself, and no frame can be found or delivered; give the guest shared memory: "
    "-object memory-backend-memfd,...,share=on"
)

_ANCILLARY: Final = socket.CMSG_SPACE(SCM_MAX_FD * 4)
_RECEIVE_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
_SEND_FLAGS: Final = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
_ACCESS: Final = 8
"""Bytes of a BAR in one access, of a message that has more."""


class Session:
    """A VMM that is connected.  ``ended`` is called once, when it no longer is."""

    def __init__(
        self,
        sock: socket.socket,
        nic: Nic,
        memory: Memory,
        loop: Loop,
        *,
        ended: Callable[[Session], None],
    ) -> None:
        assert nic.pci is not None
        self.served = False
        """Guest memory was mapped: this VMM speaks the protocol."""
        self._socket = sock
        self._nic = nic
        self._function: Function = nic.pci
        self._memory = memory
        self._loop = loop
        self._ended = ended
        self._connection = Connection(self._function, nic.name)
        self._function.host_keeps_vectors = True
        self._irqs = Interrupts(self._function, loop)
        self._backings: dict[tuple[int, int], int] | None = {}
        """Files of guest memory by device and inode; None once they were looked at."""
        self._buffer = bytearray(CHUNK)
        self._out: list[Reply] = []
        self._writing = False
        self._open = True
        sock.setblocking(False)
        self._watch = loop.watch(sock.fileno(), self._ready)
        self._truncated: Timer | None = None
        self._watch_memory()

    @property
    def gone(self) -> bool:
        """Whether the VMM has closed its end, though there may be messages left to read."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def end(self, reason: str, level: int = logging.INFO) -> None:
        """Forget the VMM: its interrupts, its memory, its descriptors.  Twice is allowed."""
        if not self._open:
            return
        self._open = False
        log.log(level, "%s: session ended: %s", self._nic.name, reason)
        if self._truncated is not None:
            self._truncated.cancel()
        self._watch.close()
        self._nic.reset(ResetKind.SESSION)
        self._function.host_keeps_vectors = False
        self._irqs.close()
        self._memory.clear()
        self._forget_backings()
        _close_all(self._connection.close())
        self._socket.close()
        self._ended(self)

    def interrupt(self, vector: int) -> None:
        """Interrupt by message."""
        self._irqs.signal(vector)

    def set_irq(self, level: bool) -> None:
        """Interrupt by pin, when it goes up."""
        if level:
            self._irqs.raise_pin()

    def failed(self, reason: str) -> None:
        """End, if the VMM itself has broken the device; a guest's driver resets it.

        The VMM is not told: QEMU answers an error interrupt by stopping the whole guest.
        """
        if self._memory.truncated:  # not from within the burst that met it
            self._loop.schedule(self._check_memory)

    # ---- the socket ------------------------------------------------------------------------------

    def _ready(self, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT:
                self._send()
            # Whatever is left is reported again: to ask for it costs a system call, and a guest
            # that waits for its answer has sent nothing more.
            self._receive()
        except VnicError as error:
            self.end(str(error), logging.ERROR)
        except ConnectionError:
            self.end("the VMM closed the connection, and left an answer unread")
        except OSError as error:
            self.end(f"its socket failed: {error.strerror}", logging.ERROR)
        except Exception:
            log.exception("%s: the device failed on what its VMM sent", self._nic.name)
            self.end("the device failed", logging.ERROR)

    def _receive(self) -> None:
        try:
            n, ancillary, flags, _ = self._socket.recvmsg_into(
                [self._buffer], _ANCILLARY, _RECEIVE_FLAGS
            )
        except BlockingIOError:
            return
        fds = _descriptors(ancillary) if ancillary else []
        if flags & socket.MSG_CTRUNC:
            _close_all(fds)
            raise PeerError(
                f"descriptors were lost on the way, after {len(fds)} of them: this process may "
                f"have no room for more (ulimit -n)"
            )
        if not n:
            _close_all(fds)
            cut = ", in the middle of a message" if self._connection.mid_message else ""
            self.end(f"the VMM closed the connection{cut}")
            return
        steps = self._connection.receive(bytes(memoryview(self._buffer)[:n]), fds)
        try:
            self._carry_out(steps)
        finally:  # what came before a message that ends the session is answered
            if self._open:
                self._out += self._connection.replies()
                self._send()

    def _send(self) -> None:
        while self._out:
            data, fds = self._out[0]
            try:
                if fds:
                    n = socket.send_fds(self._socket, [data], fds, _SEND_FLAGS)
                else:
                    n = self._socket.send(data, _SEND_FLAGS)
            except BlockingIOError:
                break
            if n < len(data):
                self._out[0] = data[n:], ()
            else:
                del self._out[0]
        if len(self._out) > REPLIES_MAX:
            raise PeerError(f"the VMM leaves {len(self._out)} replies unread")
        if self._writing != bool(self._out):
            self._writing = bool(self._out)
            self._watch.set(read=True, write=self._writing)

    # ---- what the connection asks ----------------------------------------------------------------

    def _carry_out(self, steps: Generator[events.Event, Any, None]) -> None:
        answer: object = None
        while True:
            try:
                event = steps.send(answer)
            except StopIteration:
                return
            answer = self._do(event)
            if not self._open:
                return

    def _do(self, event: events.Event) -> Any:
        match event:
            case events.ReadRegion(region, offset, count):
                return self._read(region, offset, count)
            case events.WriteRegion(region, offset, data):
                self._write(region, offset, data)
            case events.MaskPin(masked):
                self._function.mask_irq() if masked else self._function.unmask_irq()
            case events.MapMemory():
                return self._map(event)
            case events.UnmapMemory(address, size):
                self._memory.remove(address, size)
            case events.SetTriggers(index, start, fds):
                self._irqs.set_triggers(index, start, fds)
            case events.SetUnmask(fd):
                self._irqs.set_unmask(fd)
            case events.DisableIrqs(index):
                self._irqs.disable(index)
            case events.Trigger(index, vector):
                self._irqs.trigger(index, vector)
            case events.Reset():
                self._nic.reset(ResetKind.DEVICE)
                self._irqs.pending.clear()
            case events.Discard(fds):
                _close_all(fds)
        return None

    def _read(self, region: int, offset: int, count: int) -> bytes:
        if region == Region.CONFIG:
            return self._function.read_config(offset, count)
        if count <= _ACCESS:
            return self._function.read_bar(region, offset, count).to_bytes(count, "little")
        stop = offset + count
        return b"".join(
            self._read(region, at, min(_ACCESS, stop - at)) for at in range(offset, stop, _ACCESS)
        )

    def _write(self, region: int, offset: int, data: bytes) -> None:
        if region == Region.CONFIG:
            self._function.write_config(offset, data)
            self._check_backings()
            return
        for at in range(0, len(data), _ACCESS):
            piece = data[at : at + _ACCESS]
            value = int.from_bytes(piece, "little")
            self._function.write_bar(region, offset + at, len(piece), value)

    # ---- memory ----------------------------------------------------------------------------------

    def _map(self, new: events.MapMemory) -> str | None:
        try:
            self._memory.add(
                new.address, new.size, fd=new.fd, offset=new.offset, writable=new.writable
            )
        except PeerError as error:
            os.close(new.fd)
            return str(error)
        self.served = True
        status = os.fstat(new.fd)
        key = status.st_dev, status.st_ino
        if (
            self._backings is not None
            and stat.S_ISREG(status.st_mode)
            and key not in self._backings
            and len(self._backings) < BACKINGS_MAX
        ):
            self._backings[key] = new.fd
        else:
            os.close(new.fd)
        return None

    def _check_backings(self) -> None:
        """Say if guest memory is the VMM's alone, as soon as the guest is sure to run.

        A VMM that maps its file privately passes the descriptor all the same: what the guest
        writes is then in the VMM's copies, and the file stays as it was made.  Whoever lets the
        device use memory has used some.
        """
        if self._backings and self._function.bus_master:
            if all(map(_is_empty, self._backings.values())):
                log.error("%s: %s", self._nic.name, PRIVATE)
            self._forget_backings()

    def _forget_backings(self) -> None:
        _close_all((self._backings or {}).values())
        self._backings = None

    def _watch_memory(self) -> None:
        self._truncated = self._loop.timer(TRUNCATED_S, self._watch_memory)
        self._check_memory()

    def _check_memory(self) -> None:
        if self._open and self._memory.truncated:
            self.end("the VMM has cut guest memory short, under the device", logging.ERROR)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _is_empty(fd: int) -> bool:
    """Return whether there are only zeroes where a running guest has left something."""
    nothing = bytes(CHUNK)
    for at in range(0, LOOKED_AT, CHUNK):
        try:
            piece = os.pread(fd, CHUNK, at)
        except OSError:  # whatever it is, it isn't known to be empty
            return False
        if not piece:
            break
        if piece != nothing[: len(piece)]:
            return False
    return True


def _close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
