"""One VMM on one socket: what happens from its first byte until either side is gone.

What is said on the socket is a server's own, in two parts: a `Connection` understands it and does
no I/O; a `SocketSession` carries out what the connection asks.  For the server see `vnic.server`.
"""

from __future__ import annotations

import array
import logging
import os
import select
import socket
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, TypeAlias

from vnic.errors import PeerError, VnicError
from vnic.hookspecs import ResetKind

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from vnic.hookspecs import Host
    from vnic.nic import Nic

log: Final = logging.getLogger("vnic.session")

REPLIES_MAX: Final = 1024
"""Answers that wait because the VMM doesn't read.  QEMU leaves unread what it maps at once."""

TRUNCATED_S: Final = 0.5
"""How often is looked whether guest memory was cut short.  What was there is zero until then."""

ANCILLARY: Final = socket.CMSG_SPACE(4 * 253)
"""Bytes for descriptors: SCM_MAX_FD of them, the most that Linux passes with one sendmsg."""

_RECEIVE_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_SEND_FLAGS: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_CTRUNC: Final = int(socket.MSG_CTRUNC)
# Numbers: an operation on flags takes as long as a small system call.

Steps: TypeAlias = "Generator[Any, Any, object]"
"""What is to be done for the bytes that came: yields events, and is sent each one's answer."""

Reply: TypeAlias = "tuple[bytes, Sequence[int]]"
"""Bytes to send, and the descriptors to send with them, which stay their owner's."""


class Connection(Protocol):
    """A protocol's state machine: bytes and descriptors in, events and replies out."""

    @property
    def wants(self) -> int:
        """How many bytes to read next, at most."""

    @property
    def mid_message(self) -> bool:
        """Whether a part of a message has come, and the rest hasn't."""

    def receive(self, data: bytes, fds: Sequence[int]) -> Steps:
        """Take what one recvmsg brought.  The descriptors are the connection's from here on.

        A stream returns bytes from before a descriptor together with those that it came with, and
        none from after.

        Raises: PeerError, here or in the steps, for whatever can't be understood.
        """

    def replies(self) -> list[Reply]:
        """Return the replies that are due, once."""

    def close(self) -> list[int]:
        """Return the descriptors that came in and went nowhere yet: they will be closed."""


class SocketSession:
    """A VMM that is connected.  It owns the socket and every descriptor that came through it.

    What a session of your own owes:

    - a connection, given to ``__init__``, that understands the bytes;
    - `do`, which carries out what the connection asks, and waits for nothing: a message is
      carried out and answered within the call that read it;
    - ``served``, set once the VMM is sure to speak the protocol: a client whose VMM never does
      tries again less and less often;
    - `interrupt`, and `set_irq` if the device has a pin;
    - `let_go`, which closes every descriptor that `do` has kept.

    It is given the rest: reading and answering in turn with everybody else; guest memory that is
    unmapped in the end, and watched in case the VMM cuts it short; and whatever is raised ends the
    session, and only that, with one line in the log, and resets the NIC.
    """

    READS_PER_TURN: ClassVar[int] = 1
    """A VMM that never stops sending gets no more of the loop than this at a time.  What is left is
    reported again; to read until nothing is costs a system call more."""

    def __init__(self, sock: socket.socket, nic: Nic, host: Host, connection: Connection) -> None:
        self.nic = nic
        self.loop = host.loop
        self.memory = host.memory
        """The guest's; what is mapped goes when the session ends."""
        self.connection = connection
        self.served = False
        """This VMM speaks the protocol: for a subclass to say."""
        self.on_ended: Callable[[], None] = _nothing
        """Called once, when the VMM is no longer connected."""
        self._socket = sock
        self._out: list[Reply] = []
        self._writing = False
        self._open = True
        sock.setblocking(False)
        self._watch = self.loop.watch(sock.fileno(), self._ready)
        self._truncated = self.loop.timer(TRUNCATED_S, self._watch_memory)

    # ---- what a subclass gives -------------------------------------------------------------------

    def do(self, event: Any) -> Any:
        """Carry out an event of the connection, and return its answer.

        The descriptors in it are the session's: kept until `let_go`, or closed, even if it raises.

        Raises: VnicError, which ends the session.
        """
        raise NotImplementedError

    def interrupt(self, vector: int) -> None:
        """Raise a message-signalled interrupt, or a queue's."""
        raise NotImplementedError

    def set_irq(self, level: bool) -> None:
        """Set the level of the pin.  Without one: nothing."""

    def let_go(self) -> None:
        """Close what it holds beside memory and socket, once; the NIC is reset already."""

    # ---- its life --------------------------------------------------------------------------------

    @property
    def gone(self) -> bool:
        """Whether the VMM has closed its end, though there may be messages left to read."""
        poll = select.poll()
        poll.register(self._socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def failed(self, reason: str) -> None:
        """Take note that the device is broken; end, if the VMM itself has broken it."""
        if self.memory.truncated:  # not from within the burst that met it
            self.loop.schedule(self._check_memory)

    def end(self, reason: str, level: int = logging.INFO) -> None:
        """Forget the VMM: its interrupts, its memory, its descriptors.  Twice is allowed."""
        if not self._open:
            return
        self._open = False
        log.log(level, "%s: session ended: %s", self.nic.name, reason)
        self._truncated.cancel()
        self._watch.close()
        try:
            self.nic.reset(ResetKind.SESSION)
        except Exception:
            log.exception("%s: the frontend's reset failed", self.nic.name)
        self.let_go()
        self.memory.clear()
        close_all(self.connection.close())
        self._socket.close()
        self.on_ended()

    def abort(self, error: Exception) -> None:
        """End for what was raised, with a line that says whose fault it was."""
        match error:
            case VnicError():
                self.end(str(error), logging.ERROR)
            case ConnectionError():
                self.end("the VMM closed the connection, and left an answer unread")
            case OSError():
                self.end(f"its socket failed: {error.strerror}", logging.ERROR)
            case _:
                text = "%s: the device failed on what its VMM sent"
                log.error(text, self.nic.name, exc_info=error)
                self.end("the device failed", logging.ERROR)

    def _watch_memory(self) -> None:
        self._truncated = self.loop.timer(TRUNCATED_S, self._watch_memory)
        self._check_memory()

    def _check_memory(self) -> None:
        if self._open and self.memory.truncated:
            self.end("the VMM has cut guest memory short, under the device", logging.ERROR)

    # ---- the socket ------------------------------------------------------------------------------

    def _ready(self, mask: int) -> None:
        try:
            if mask & select.EPOLLOUT:
                self._send()
            for _ in range(self.READS_PER_TURN):
                if not self._receive():
                    break
        except Exception as error:
            self.abort(error)

    def _receive(self) -> bool:
        """Read once, and answer; return whether there may be more."""
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(
                self.connection.wants, ANCILLARY, _RECEIVE_FLAGS
            )
        except BlockingIOError:
            return False
        fds = _descriptors(ancillary) if ancillary else []
        if flags & _CTRUNC:
            close_all(fds)
            raise PeerError(
                f"descriptors were lost on the way, after {len(fds)} of them: this process may "
                f"have no room for more (ulimit -n)"
            )
        if not data:
            close_all(fds)
            cut = ", in the middle of a message" if self.connection.mid_message else ""
            self.end(f"the VMM closed the connection{cut}")
            return False
        steps = self.connection.receive(data, fds)
        try:
            self.carry_out(steps)
        finally:  # what came before a message that ends the session is answered
            if self._open:
                self._out += self.connection.replies()
                self._send()
        return self._open

    def carry_out(self, steps: Steps) -> None:
        """Do what the connection asks, event after event, as long as the session lasts."""
        answer: object = None
        while self._open:
            try:
                event = steps.send(answer)
            except StopIteration:
                return
            answer = self.do(event)

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


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors."""
    for fd in fds:
        os.close(fd)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    return list(fds)


def _nothing() -> None:
    return
